"""Scores LoRAs beside the model without them, on pairs that were held back from their training.

    python evaluate_lora.py --lora runs/<run> [runs/<other> file.safetensors hub/name ...]

The data are those that the first LoRA's run was trained on, drawings for the toy, or --dataset_name or --dataroot.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from deepfashion_training import held_out
from deepfashion_training.preflight import checked_data_path
from tryon.cli import parse, run_script
from tryon.config import (
    DEFAULT_PARSER,
    MOST_AT_ONCE,
    MOST_DENOISING,
    MOST_GUIDANCE,
    MOST_SEED,
    TryOnConfig,
    is_nowhere,
    setting,
)
from tryon.console import MODEL_LIBRARIES, load_libraries, set_up_logging
from tryon.data.category import CATEGORIES
from tryon.files import file_hash, full_path
from tryon.flux.lora_header import LoraFacts, denoising, lora_on_disk, panel_size, read_facts, takes_off
from tryon.report import REPORT, add_evaluation
from tryon.runs import run_of, runs_folder
from tryon.scores import read_lines
from tryon.units import plural

logger = logging.getLogger(__name__)

# What models of one comparison share; of the mask rule only a difference is said.
ALIKE = ("base", "transformer", "prompt", "max_sequence_length", "height", "width")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(held_out.HeldOutConfig):
    """Which LoRAs are scored, on what, and how their pictures are drawn."""

    lora: tuple[str, ...] = setting((), "runs, checkpoints, folders, .safetensors files or hub names", needed=True)
    seed: int = setting(0, "seed of the noise: case i starts from seed + i", 0, MOST_SEED)
    steps: int | None = setting(
        None, "denoising steps; as the first LoRA was trained for, else 30, if not given", 1, MOST_DENOISING
    )
    guidance_scale: float | None = setting(
        None, "guidance; as the first LoRA was trained for, else 30, if not given", 0, MOST_GUIDANCE
    )
    batch_size: int = setting(1, "persons dressed at once", 1, MOST_AT_ONCE)
    give_back: bool = setting(False, "score results as tryon_inference_lora.py --give_back makes them")
    text: bool = setting(False, "also read what is printed on garments and say how much of it the results show")
    parser: str | None = setting(
        None, f"hub name or folder of a human parser, such as {DEFAULT_PARSER}, that looks for leftovers in photographs"
    )
    output_dir: str | None = setting(
        None, "folder for scores and pictures, continued where it holds some; if not given, `scores` in the first "
        "LoRA's run",
    )  # fmt: skip


def read_settings(argv: list[str]) -> tuple[TryOnConfig, EvaluateConfig]:
    """The flags, checked. Raises ValueError, in one sentence, for everything that is missing or wrong."""
    description = "Scores LoRAs, and the model without them, on held-out pairs."
    shapes = TryOnConfig, EvaluateConfig
    config, asked = parse(argv, "python evaluate_lora.py", description, *shapes, problems=problems_of)
    if asked.dataset_name:
        asked = replace(asked, dataset_name=checked_data_path(asked.dataset_name))
    if asked.dataroot:
        asked = replace(asked, dataroot=str(full_path(asked.dataroot)))
    return config, asked


def problems_of(config: TryOnConfig, asked: EvaluateConfig) -> Iterator[str]:
    """What is wrong with the flags beyond single values."""
    for name in asked.lora:
        if is_nowhere(name):
            yield f"--lora {name} does not exist: name a run, a checkpoint, a folder, a file or a hub name"
    yield from held_out.mistaken_flags(asked)
    if config.cache != "none":
        yield f"--cache {config.cache} changes pictures, and scores are of pictures without it: leave it out"


def main(argv: list[str]) -> None:
    config, asked = read_settings(argv)
    set_up_logging(is_main_process=True)

    # What can be refused by looking at the LoRAs' headers and at the lists of pairs.
    loras = open_loras(asked.lora, config.cache_dir)
    files, (first, *_) = list(loras.values()), loras
    facts = [read_facts(file) for file in files]
    check_alike(files, facts, config)
    trained = held_out.training_settings(files)
    asked = held_out.named_data(asked, trained)

    load_libraries(*MODEL_LIBRARIES)
    import torch
    from diffusers.training_utils import free_memory

    from tryon.evaluation import score
    from tryon.evaluation.cases import BASE, places_of
    from tryon.evaluation.perceptual import load_perception
    from tryon.evaluation.text import load_reader
    from tryon.inference.dressing import part_finder
    from tryon.inference.pipeline import TryOnModel, load_try_on, same_models, swap_lora, usable_rule
    from tryon.toy.model import parser_for_try_on, use_toy_model_for_try_on

    read_text = load_reader() if asked.text else None  # before all else, as it may be missing

    # All models try on the same cases, as the first LoRA was trained for unless flags say otherwise.
    size = height, width = panel_size(config, facts[0])
    how = score.Denoising(*denoising(facts[0], asked.steps, asked.guidance_scale), asked.seed, asked.batch_size)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaded = use_toy_model_for_try_on(config, facts[0])
    sized = replace(loaded, height=height, width=width)
    try_offs = [category for category in CATEGORIES if all(takes_off(each, category) for each in facts)]
    rule = usable_rule(facts[0])
    data, cases = held_out.choose_cases(asked, trained, rule, sized, device, try_offs=try_offs)
    folder, settings = scores_folder(asked, files[0], first), score.settings_of(data, facts[0], config, size, how)
    find_parts = None
    if asked.give_back:
        settings["give_back"] = True
        parser = asked.parser or parser_for_try_on(loaded, facts[0])
        find_parts = part_finder(parser, config.cache_dir, at_once=True)
    score.open_folder(folder, settings, cases)
    logger.info("scoring on %s: %s", data, ", ".join(f"{len(source)} {kind}" for kind, source in cases.items()))

    with kept_when_stopped(folder):
        # What the folder does not hold yet, by one LoRA after the other; with the first one also the model without it.
        model: TryOnModel | None = None
        for number, (digest, file) in enumerate(loras.items(), 1):
            names = [BASE, digest] if digest == first else [digest]
            if not places_of(names, cases) - read_lines(folder).keys():
                logger.info("%s is measured already", file)
                continue
            if model and same_models(model, read_facts(file)):
                model = swap_lora(model, loaded, file)
            else:
                model = None
                free_memory()
                model = load_try_on(loaded, file)
            place = f"{file} ({number} of {len(loras)})" if len(loras) > 1 else file
            logger.info("trying on with %s, %s at guidance %g", place, plural(how.steps, "step"), how.guidance_scale)
            score.measure(folder, model, names, cases, how, find_parts)

        # What all that says of them.
        headings = ["LoRA"] if len(loras) == 1 else [f"LoRA {number}" for number in range(1, len(loras) + 1)]
        models = {BASE: "base", **dict(zip(loras, headings, strict=True))}
        metrics = Path(config.data_cache_dir).expanduser() / "metrics"
        perception = load_perception(metrics, device, asked.parser, config.cache_dir)
        perception = replace(perception, read=read_text)
        legend = {
            heading: {
                "file": str(file),
                "sha256": digest,
                "step": each.step if each.known else None,
                "base_categories": each.base_categories,
                "own_data": held_out.is_own(trained[file], asked),
            }
            for heading, each, (digest, file) in zip(headings, facts, loras.items(), strict=True)
        }
        score.write_scores(folder, {**settings, "num_samples": asked.num_samples}, legend, models, cases, perception)
    for run in dict.fromkeys(map(run_of, files)):
        if run and (run / "config.json").is_file():
            add_evaluation(run, folder)
            logger.info("in the run's report: %s", run / REPORT)


@contextmanager
def kept_when_stopped(folder: Path) -> Iterator[None]:
    """Around the measuring: where a signal ends it, the log says what is kept and how to go on."""
    try:
        yield
    except SystemExit:
        logger.info("what is measured so far is kept in %s: the same command goes on", folder)
        raise


def open_loras(names: tuple[str, ...], hub_cache: str | None) -> dict[str, Path]:
    """The files that the names mean, by their hashes. Raises ValueError where two are the same."""
    files: dict[str, Path] = {}
    for name in names:
        file = full_path(lora_on_disk(name, hub_cache))
        digest = file_hash(file)[:16]
        if digest in files:
            raise ValueError(f"--lora {name} is the same file as {files[digest]}: name each LoRA once")
        files[digest] = file
    return files


def check_alike(files: list[Path], facts: list[LoraFacts], config: TryOnConfig) -> None:
    """Raises ValueError, with the differences, where LoRAs were trained for other models, prompts or panels than the
    first, and no flag says which to use for all."""
    for file, each in zip(files[1:], facts[1:], strict=True):
        names = [name for name in ALIKE if getattr(config, name, None) is None]
        one, two = vars(facts[0]), vars(each)
        differences = [f"{name} {two[name]} instead of {one[name]}" for name in names if one[name] != two[name]]
        if differences:
            raise ValueError(
                f"{file} cannot be compared with {files[0]}: it was trained with {', '.join(differences)}: score it by "
                "itself, or give --base, --transformer, --height and --width for all"
            )
        if one["mask_rule"] != two["mask_rule"]:
            logger.warning(
                "%s was trained with the mask rule %s and is scored with that of the first, %s: its scores may suffer",
                file, two["mask_rule"], one["mask_rule"],
            )  # fmt: skip


def scores_folder(asked: EvaluateConfig, lora: Path, digest: str) -> Path:
    """Where the scores go: the same for the same command, so that it goes on. lora, digest: of the first LoRA."""
    if asked.output_dir:
        return full_path(asked.output_dir)
    run = run_of(lora)
    return run / "scores" if run else runs_folder() / f"scores_{digest}"


if __name__ == "__main__":
    run_script(main)
