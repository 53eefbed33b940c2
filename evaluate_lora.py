"""Scores LoRAs beside the model without them, on pairs that were held back from their training.

    python evaluate_lora.py --lora runs/<run> [runs/<other> file.safetensors hub/name ...]

The data are those that the first LoRA's run was trained on, drawings for the toy, or --dataset_name or --dataroot.
"""

import json
import logging
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepfashion_training.preflight import DataConfig, checked_data_path, toy_data_folder
from folder_lists import dresscode_pairs, is_dresscode, viton_hd_pairs
from tryon.cli import parse_flags, run_script
from tryon.config import (
    MaskConfig,
    TrainConfig,
    TryOnConfig,
    is_nowhere,
    mistakes,
    setting,
)
from tryon.console import MODEL_LIBRARIES, load_libraries, set_up_logging
from tryon.data.category import CATEGORIES, MaskRule
from tryon.files import file_hash, save_json
from tryon.flux.lora_header import LoraFacts, denoising, lora_on_disk, panel_size, read_facts
from tryon.runs import run_of, runs_folder

if TYPE_CHECKING:
    import torch

    from tryon.data.sample import SampleSource
    from tryon.evaluation.score import CaseSource

logger = logging.getLogger(__name__)

# What decides which items of a data set a training holds back.
SPLIT = ("seed", "max_validation_samples", "min_reference")
# What models of one comparison share; of the mask rule only a difference is said.
ALIKE = ("base", "transformer", "prompt", "max_sequence_length", "height", "width")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Which LoRAs are scored, on what, and how their pictures are drawn."""

    lora: tuple[str, ...] = setting((), "runs, checkpoints, folders, .safetensors files or hub names; needed")
    dataset_name: str | None = setting(
        None, "hub name, folder of parquet files or saved data set; what the first LoRA was trained on if not given"
    )
    dataroot: str | None = setting(None, "folder laid out as VITON-HD or DressCode is, instead of --dataset_name")
    validation_data_list: str | None = setting(None, "list of pairs in --dataroot; as trained, or that of the test")
    num_samples: int | None = setting(32, "score on the first N pairs of each category; 'none': on all", 1)
    seed: int = setting(0, "seed of the noise: case i starts from seed + i", 0)
    steps: int | None = setting(None, "denoising steps; as the first LoRA was trained for, else 30, if not given", 1)
    guidance_scale: float | None = setting(None, "guidance; likewise", 0)
    batch_size: int = setting(1, "persons dressed at once", 1)
    output_dir: str | None = setting(
        None,
        "where scores and pictures go, and are gone on with; if not given, a folder `scores` in the first LoRA's run",
    )


def read_settings(argv: list[str]) -> tuple[TryOnConfig, EvaluateConfig]:
    """The flags, checked. Raises ValueError, in one sentence, for everything that is missing or wrong."""
    description = "Scores LoRAs, and the model without them, on held-out pairs."
    given, of_evaluation = parse_flags(argv, "python evaluate_lora.py", description, TryOnConfig, EvaluateConfig)
    config, asked = TryOnConfig(**given), EvaluateConfig(**of_evaluation)
    problems = [] if asked.lora else ["--lora is missing"]
    problems += [
        f"--lora {name} does not exist: name a run, a checkpoint, a folder, a file or a hub name"
        for name in asked.lora
        if is_nowhere(name)
    ]
    if asked.dataset_name and asked.dataroot:
        problems.append("give either --dataset_name or --dataroot")
    if asked.dataroot and not Path(asked.dataroot).expanduser().is_dir():
        problems.append(f"--dataroot {asked.dataroot} is no folder")
    if asked.validation_data_list and asked.dataset_name:
        problems.append("--validation_data_list has no place beside --dataset_name")
    if config.cache != "none":
        problems.append(f"--cache {config.cache} has no place here, as scores are of pictures without it: leave it out")
    problems += [*mistakes(config), *mistakes(asked)]
    if problems:
        raise ValueError("; ".join(problems))
    if asked.dataset_name:
        asked = replace(asked, dataset_name=checked_data_path(asked.dataset_name))
    if asked.dataroot:
        asked = replace(asked, dataroot=str(Path(asked.dataroot).expanduser().absolute()))
    return config, asked


def main(argv: list[str]) -> None:
    config, asked = read_settings(argv)
    set_up_logging(is_main_process=True)
    loras = open_loras(asked.lora, config.cache_dir)
    facts = [read_facts(file) for file in loras.values()]
    check_alike(list(loras.values()), facts, config)
    (first, lora), *_ = loras.items()
    learnt = learnt_from(list(loras.values()))
    named = {"base": config.base or facts[0].base, "transformer": config.transformer or facts[0].transformer}
    data = named_data(asked, next(iter(learnt.values())))

    load_libraries(*MODEL_LIBRARIES)
    import torch
    from diffusers.training_utils import free_memory

    from tryon.evaluation.compare import summarise
    from tryon.evaluation.perceptual import load_perception
    from tryon.evaluation.score import BASE, is_measured, measure, open_folder
    from tryon.flux.memory import choose_quantization
    from tryon.inference.pipeline import TryOnModel, load_try_on, same_models, swap_lora
    from tryon.toy.model import use_toy_model_for_try_on

    config = use_toy_model_for_try_on(config, facts[0])
    height, width = panel_size(config, facts[0])
    steps, guidance = denoising(facts[0], asked.steps, asked.guidance_scale)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    what, cases = choose_cases(asked, data, learnt, facts[0], replace(config, height=height, width=width), device)
    folder = scores_folder(asked, lora, first)
    settings = {
        "data": what, "num_samples": asked.num_samples, "height": height, "width": width, "steps": steps,
        "guidance_scale": guidance, "seed": asked.seed, "batch_size": asked.batch_size,
        **named, "prompt": facts[0].prompt, "max_sequence_length": facts[0].max_sequence_length,
        "lora_scale": config.lora_scale, "quantization": choose_quantization(config.quantization, device),
        "device": device.type,
    }  # fmt: skip
    open_folder(folder, settings, cases)
    logger.info("scoring on %s: %s", what, ", ".join(f"{len(source)} {kind}" for kind, source in cases.items()))

    model: TryOnModel | None = None
    for digest, file in loras.items():
        wanted = [BASE, digest] if digest == first else [digest]
        if not (missing := [name for name in wanted if not is_measured(folder, name, cases)]):
            logger.info("%s is measured already", file)
            continue
        if model and same_models(model, read_facts(file)):
            model = swap_lora(model, config, file)
        else:
            model = None
            free_memory()
            model = load_try_on(config, file)
        for name in missing:
            how = "without LoRA" if name == BASE else f"with {file}"
            logger.info("trying on %s, %d steps at guidance %g", how, steps, guidance)
            measure(
                folder, name, model, cases, steps=steps, guidance=guidance, seed=asked.seed, batch_size=asked.batch_size
            )

    headings = ["LoRA"] if len(loras) == 1 else [f"LoRA {number}" for number in range(1, len(loras) + 1)]
    models = {BASE: "base", **dict(zip(loras, headings, strict=True))}
    perception = load_perception(Path(config.data_cache_dir).expanduser() / "metrics", device)
    results = summarise(folder, models, cases, perception)
    legend = {
        heading: {"file": str(file), "sha256": digest, "step": each.step if each.known else None}
        for heading, each, (digest, file) in zip(headings, facts, loras.items(), strict=True)
    }
    write_scores(
        folder, {"settings": settings, "loras": legend, "not_computed": perception.missing}, results, models, cases
    )


def open_loras(names: tuple[str, ...], hub_cache: str | None) -> dict[str, Path]:
    """The files that the names mean, by their hashes. Raises ValueError where two are the same."""
    files: dict[str, Path] = {}
    for name in names:
        file = lora_on_disk(name, hub_cache)
        digest = file_hash(file)[:16]
        if digest in files:
            raise ValueError(f"--lora {name} is the same file as {files[digest]}: name each LoRA once")
        files[digest] = file
    return files


def learnt_from(files: list[Path]) -> dict[Path, dict[str, Any]]:
    """The settings of the runs of LoRAs, in their order, then of those of the LoRAs that these began from
    (--init_lora), as what was learnt there is in them too. Empty where nobody knows."""
    learnt: dict[Path, dict[str, Any]] = {}
    waiting = list(files)
    while waiting:
        file = waiting.pop(0)
        if file not in learnt:
            run = run_of(file)
            config = run / "config.json" if run else None
            learnt[file] = json.loads(config.read_text()) if config and config.is_file() else {}
            if origin := learnt[file].get("init_lora"):
                waiting.append(Path(origin))
    return learnt


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
        return Path(asked.output_dir).expanduser().absolute()
    run = run_of(lora)
    return run / "scores" if run else runs_folder() / f"scores_{digest}"


@dataclass(frozen=True)
class NamedData:
    """What is scored on: a data set, or a folder and its list of test pairs; nothing for drawings."""

    dataset: str | None
    dataroot: str | None = None
    pairs: str | None = None


def named_data(asked: EvaluateConfig, trained: dict[str, Any]) -> NamedData:
    """What the flags name, else what the first LoRA was trained on. trained: the settings of its run.

    Raises ValueError where a list of pairs is named that no folder has, or that cannot be used.
    """
    dataset = None if asked.dataroot else asked.dataset_name or trained.get("dataset_name")
    dataroot = None if dataset else asked.dataroot or trained.get("dataroot")
    if not dataroot:
        if asked.validation_data_list:
            raise ValueError(
                "--validation_data_list is for VITON-HD and DressCode folders: give --dataroot, or leave it out"
            )
        return NamedData(dataset)
    of_run = trained.get("validation_data_list") if dataroot == trained.get("dataroot") else None
    listed = asked.validation_data_list or of_run
    if is_dresscode(dataroot):
        listed = listed or "test_pairs_paired.txt"
        dresscode_pairs(dataroot, listed, None)
    else:
        listed = listed or "test_pairs.txt"
        viton_hd_pairs(dataroot, "test", listed, None)
    return NamedData(None, dataroot, listed)


def choose_cases(
    asked: EvaluateConfig,
    named: NamedData,
    learnt: dict[Path, dict[str, Any]],
    facts: LoraFacts,
    config: TryOnConfig,
    device: "torch.device",
) -> tuple[str, dict[str, "CaseSource"]]:
    """What the scores are of, in words, and the cases of each kind.

    learnt: see learnt_from; the split of one that was trained on these data is kept, so that no pair is scored on that
    was trained on. facts: the first LoRA's. config: with the panel's size. Raises ValueError where no data is known,
    and where another LoRA learnt from some of it.
    """
    from tryon.evaluation.score import held_out
    from tryon.inference.pipeline import usable_rule

    rule, trained = usable_rule(facts), next(iter(learnt.values()))
    name, dataroot = named.dataset, named.dataroot
    of_toy = name is not None and name == str(toy_data_folder(trained.get("data_cache_dir", "")))
    if of_toy or (config.toy and not (name or dataroot)):
        return f"drawings, masks by {rule.name}", drawn_cases(asked, config, rule)
    if dataroot:
        data = folder_data(dataroot, named.pairs, rule, config)
        check_unseen_persons(learnt, dataroot, data)
        return dataroot, held_out(data, asked.num_samples, data.name)
    if name is None:
        raise ValueError("nobody knows what the first LoRA was trained on: give --dataset_name or --dataroot")

    from deepfashion_training.deepfashion_dataset import load_deepfashion

    masks = mask_config(rule)
    # Of data that no LoRA was trained on a tenth of the items is scored, however many that are.
    unseen = {"max_validation_samples": sys.maxsize}
    kept = next((settings for settings in learnt.values() if settings.get("dataset_name") == name), unseen)
    chosen = replace(_kept(DataConfig, kept), dataset_name=name, parser=rule.parser)
    split = replace(
        _kept(TrainConfig, kept), height=config.height, width=config.width, cache_dir=config.cache_dir,
        data_cache_dir=str(Path(config.data_cache_dir).expanduser().absolute()),
    )  # fmt: skip
    check_unseen(learnt, name, {**vars(chosen), **vars(split)})
    _, data = load_deepfashion(chosen, masks, split, device)
    return f"{name}, masks by {rule.name}", held_out(data, asked.num_samples, lambda index: data.pair(index).pid)


def check_unseen(learnt: dict[Path, dict[str, Any]], name: str, used: dict[str, Any]) -> None:
    """Raises ValueError where a LoRA was trained on another split of the data set `name`, and may know some of the
    pairs by heart; says of which LoRAs nobody knows. learnt: see learnt_from. used: the settings of the split that is
    scored on."""
    for file, settings in known(learnt):
        differences = [each for each in SPLIT if settings.get(each, used[each]) != used[each]]
        if settings.get("dataset_name") == name and differences:
            words = ", ".join(f"{each} {settings[each]} instead of {used[each]}" for each in differences)
            raise ValueError(
                f"{file} was trained on another split of {name} ({words}) and may have learnt from pairs that are "
                "scored: score it by itself, or on data that none of the LoRAs has seen"
            )


def check_unseen_persons(learnt: dict[Path, dict[str, Any]], dataroot: str, data: "SampleSource") -> None:
    """The same for the pairs of a folder. VITON-HD's lies in two, of which only that for tests is scored on."""
    from folder_datasets import DressCodeData, load_dresscode

    for file, settings in known(learnt):
        if isinstance(data, DressCodeData) and settings.get("dataroot") == dataroot:
            listed = settings["train_data_list"]
            trained = load_dresscode(dataroot, listed, MaskConfig(), data.height, data.width, None)
            if both := {person for person, *_ in trained.pairs} & {person for person, *_ in data.pairs}:
                raise ValueError(
                    f"{file} was trained on {listed}, which has {len(both)} persons of those that are scored: give "
                    "another --validation_data_list"
                )


def known(learnt: dict[Path, dict[str, Any]]) -> list[tuple[Path, dict[str, Any]]]:
    """The LoRAs of which somebody knows what they were trained on; a word in the log on each of the others."""
    for file, settings in learnt.items():
        if not settings:
            logger.warning("nobody knows what %s was trained on: it may have learnt from some of these pairs", file)
    return [(file, settings) for file, settings in learnt.items() if settings]


def mask_config(rule: MaskRule) -> MaskConfig:
    """The settings that the rule follows from."""
    return MaskConfig(
        mask_rule=rule.name, mask_top=rule.top, mask_bottom=rule.bottom, mask_left=rule.left, mask_right=rule.right
    )


def _kept(shape: type, trained: dict[str, Any]) -> Any:
    """A run's settings as they were, those that it does not know at their defaults."""
    return shape(**{each.name: trained[each.name] for each in fields(shape) if each.name in trained})


def drawn_cases(asked: EvaluateConfig, config: TryOnConfig, rule: MaskRule) -> dict[str, "CaseSource"]:
    """Drawings that no run has seen, in their own garments and in others, with the truth of both."""
    from tryon.toy.examples import EVALUATION_SEED, DrawnCases, DrawnData

    if asked.num_samples is None:
        raise ValueError("drawings have no end: give --num_samples")
    count = len(CATEGORIES) * asked.num_samples
    paired = DrawnData(count, EVALUATION_SEED, CATEGORIES, config.height, config.width, mask_rule=rule)
    return {"paired": DrawnCases(paired), "unpaired": DrawnCases(replace(paired, unpaired=True))}


def folder_data(dataroot: str, pairs: str, rule: MaskRule, config: TryOnConfig) -> "SampleSource":
    """The test pairs of a folder, as the list `pairs` has them."""
    from folder_datasets import load_dresscode, load_viton_hd

    sizes = (config.height, config.width)
    if is_dresscode(dataroot):
        return load_dresscode(dataroot, pairs, mask_config(rule), *sizes, None)
    return load_viton_hd(dataroot, "test", pairs, *sizes, None)


def write_scores(
    folder: Path,
    facts: dict[str, Any],
    results: dict[str, Any],
    models: dict[str, str],
    cases: dict[str, "CaseSource"],
) -> None:
    """Writes evaluation.json, evaluation.md and the grids, and says what they hold. Raises ValueError where a pixel
    outside a mask is not the person's."""
    from tryon.evaluation.compare import LEAST_CASES, changed_outside, outlines, tables, worst_grid

    save_json(folder / "evaluation.json", {**facts, "scores": results})
    changed = changed_outside(results)
    missing = [f"{name.upper()}: not computed: {why}" for name, why in facts["not_computed"].items()]
    table = tables(results, models)
    text = ["# Scores", "", f"Data: {facts['settings']['data']}.", ""]
    text += [f"- {heading}: `{each['file']}`, step {each['step'] or 'unknown'}, sha256 {each['sha256']}"
             for heading, each in facts["loras"].items()]  # fmt: skip
    text += table
    text += [
        "",
        "Means over the cases, with 95 % intervals; `all` counts every case the same. PSNR in dB, SSIM and length: "
        "higher is better; LPIPS, FID and KID: lower is better. `mask`: inside the mask alone. The interval of a "
        f"difference in bold excludes 0; none of fewer than {LEAST_CASES} cases is marked, and of many differences "
        "one in twenty is by chance. A value of fewer cases than its row has says of how many. FID and KID of less "
        "than thousands of pictures compare models on the same cases alone.",
        "",
        "How much of the masks' outlines follows the picture, which may tell what was worn: "
        + "; ".join(outlines(results))
        + ". "
        + ("Outside the masks no pixel changed." if not changed else f"{', '.join(changed)} CHANGED PIXELS OUTSIDE."),
    ]
    text += ["", *(f"- {line}" for line in missing)] if missing else []
    (folder / "evaluation.md").write_text("\n".join(text) + "\n")
    for line in [*table, "", *missing]:
        logger.info("%s", line)
    for kind, source in cases.items():
        worst_grid(folder, models, kind, source).save(folder / f"worst-{kind}.png")
        order = "the first cases" if source[0].truth is None else "the worst cases first"
        logger.info("%s: %s", order, folder / f"worst-{kind}.png")
    logger.info("scores: %s and %s", folder / "evaluation.md", folder / "evaluation.json")
    if changed:
        raise ValueError(
            f"{', '.join(changed)} changed pixels outside of the masks, which must stay the person's: "
            f"{folder / 'measured.jsonl'} says in which cases"
        )


if __name__ == "__main__":
    run_script(main)
