"""Shares a run's LoRA: writes its file and a model card into the run's folder `share`, and uploads both to the hub.

    python -m tryon.share runs/<run> [--push_to_hub user/name] [--private] [--format comfyui] [--with_pictures]

Of the run's pictures, drawn people alone are shared without being asked for: others show people of the data set.
"""

import json
import logging
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from huggingface_hub import ModelCard, ModelCardData
from safetensors.numpy import load_file, save_file

from tryon.cli import parse, run_script
from tryon.config import HUB_NAME, mistaken_upload, setting
from tryon.console import set_up_logging
from tryon.data.category import CATEGORIES
from tryon.files import damage, read_json
from tryon.flux.lora_check import check_lora
from tryon.flux.lora_header import (
    ADAPTER_KEY,
    FACTS_KEY,
    PREFIX,
    LoraFacts,
    facts_entry,
    read_adapter,
    read_facts,
    read_header,
)
from tryon.flux.prompts import prompt_for
from tryon.hub import check_login, upload
from tryon.pages import TEMPLATES
from tryon.report import (
    DATA,
    ENVIRONMENT,
    LENGTH_IN_WORDS,
    advised_checkpoint,
    judged,
    judged_rows,
    meanings_of,
    read_lengths,
    score_table,
    scored_pictures,
    scored_step,
    validation_grids,
)  # fmt: skip
from tryon.runs import (
    CHECKPOINT,
    LORA_FILE,
    best_checkpoint,
    checkpoints,
    find_checkpoint,
    identity_of,
    keep_best,
    meant_lora,
    read_metrics,
    step_of,
)
from tryon.units import gigabytes, plural

logger = logging.getLogger(__name__)

CARD = "README.md"
CARD_TEMPLATE = TEMPLATES / "model_card.md"
PICTURES = "pictures"
FLUX_LICENCE = "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md"


@dataclass(frozen=True, kw_only=True)
class ShareConfig:
    """Which run is shared, and where."""

    run: str = setting(None, "the run's folder, whose result is shared, or a checkpoint", positional=True)
    push_to_hub: str | None = setting(None, "upload to this repository of the hub, user/name; without it, only show")
    private: bool = setting(False, "make that repository a private one; one that is public already is refused")
    format: Literal["diffusers", "comfyui"] = setting(
        "diffusers", "where alpha goes if it is not the rank: into the weights, or beside them, as ComfyUI reads it"
    )
    with_pictures: bool = setting(
        False, "show the run's sample pictures in the card: they show people of your data; drawn ones always are"
    )


def write_share(config: ShareConfig) -> Path:
    """Writes the LoRA of a checkpoint and its card into the run's folder share, and returns that. Unless a checkpoint
    is given, it is the best of a run with --keep_best, else the newest valid one.

    Raises ValueError where the folder is no run, the checkpoint is damaged, there is none, or no pictures that were
    asked for, or the folder cannot be written into.
    """
    given = Path(config.run).expanduser()
    run = given.parent if CHECKPOINT.fullmatch(given.name) else given
    if not (settings := read_json(run / "config.json")):
        raise ValueError(f"{run} holds no config.json: name the folder of a run")
    best, folder = best_checkpoint(run) if given == run else None, run / "share"
    checkpoint = best or find_checkpoint(config.run, run)
    if checkpoint in (given, best) and (problem := damage(checkpoint)):
        raise ValueError(f"{problem}: name the run or another of its checkpoints")
    why = f"its validation {keep_best(run)} is the lowest" if best else "the newest"
    advise(run, checkpoint, "as given" if checkpoint == given else why)
    pictures = _pictures(run, step_of(checkpoint)) if config.with_pictures or _is_drawn(settings) else []
    if config.with_pictures and not pictures:
        raise ValueError(f"{run} has no sample pictures: leave --with_pictures out")
    try:
        folder.mkdir(exist_ok=True)
        if (folder / PICTURES).exists():
            shutil.rmtree(folder / PICTURES)
        for picture in pictures:
            (folder / PICTURES).mkdir(exist_ok=True)
            shutil.copyfile(picture, folder / PICTURES / picture.name)
        export_lora(meant_lora(checkpoint), folder / LORA_FILE, config.format)
        facts = read_facts(folder / LORA_FILE)
        assert facts.known, "a run's LoRA says what it was trained for"
        settings["quantization"] = identity_of(checkpoint)["quantization"]  # what "auto" meant
        metadata, values = _metadata(settings, facts), card_values(run, config.push_to_hub, settings, facts, pictures)
        ModelCard.from_template(metadata, template_path=str(CARD_TEMPLATE), **values).save(folder / CARD)
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error}): make room on the disk, then share again") from error
    return folder


def advise(run: Path, checkpoint: Path, why: str) -> None:
    """Says which checkpoint is shared and why, and where the report's verdict advises another, how to share that."""
    logger.info("%s is shared: %s", checkpoint.name, why)
    if (advised := advised_checkpoint(run, checkpoints(run))) and advised != checkpoint:
        words = "the run's report advises %s, whose scores are higher: python -m tryon.share %s shares that"
        logger.warning(words, advised.name, shlex.quote(str(advised)))


def _pictures(run: Path, step: int) -> list[Path]:
    """Sample pictures of the step: of the pairs that were scored where there are some, else of the last validation."""
    scored = scored_pictures(run) if _is_scored(run, step) else []
    return scored or [path for path in validation_grids(run) if int(path.stem.removeprefix("step-")) <= step][-1:]


def _is_scored(run: Path, step: int) -> bool:
    """Whether the run's own scores, if there are some, are those of this step."""
    return scored_step(run) in (None, step)


def push(config: ShareConfig) -> None:
    """Writes the run's folder share and uploads it to the repository that `config` names. Raises ValueError where that
    cannot be done, with the command that does it later."""
    folder = write_share(config)
    try:
        check_login(config.push_to_hub)
        for line in listed(folder):
            logger.info("uploading to %s: %s", config.push_to_hub, line)
        logger.info("shared: %s", upload(folder, shared(folder), config.push_to_hub, config.private))
    except ValueError as error:
        flags = [f"--push_to_hub {config.push_to_hub}", *(["--private"] if config.private else [])]
        flags += [f"--format {config.format}"] if config.format != "diffusers" else []
        flags += ["--with_pictures"] if config.with_pictures else []
        command = f"python -m tryon.share {shlex.quote(config.run)} {' '.join(flags)}"
        raise ValueError(f"{error}; nothing of the run is lost, upload it with `{command}`") from error


def export_lora(file: Path, target: Path, form: Literal["diffusers", "comfyui"] = "diffusers") -> None:
    """Writes a LoRA of this project to `target` in a form that every program reads. A file that has that form already
    is linked.

    Programs other than diffusers do not read the header and take alpha for the rank. So B is multiplied by
    alpha / rank, the factor of peft's B A x; or, for `comfyui`, the weights stay as they are and alpha is a tensor
    beside each layer's, which diffusers reads too, where the header does not say it. Paths in the header are cut to
    their last part: elsewhere this machine's folders mean nothing. Raises ValueError as check_lora.
    """
    header, adapter, facts, state = read_header(file), read_adapter(file), read_facts(file), load_file(file)
    assert facts.known and adapter is not None, "another project's LoRA is not ours to share"
    check_lora(file, adapter, state)
    rank, alpha = adapter[f"{PREFIX}r"], adapter[f"{PREFIX}lora_alpha"]
    named = replace(
        facts, base=_public_name(facts.base), transformer=_public_name(facts.transformer),
        mask_parser=facts.mask_parser and _public_name(facts.mask_parser),
    )  # fmt: skip
    target.unlink(missing_ok=True)
    if form == "diffusers" and alpha == rank and named == facts:
        try:
            os.link(file, target)
        except OSError:  # another disk, or one without links
            shutil.copyfile(file, target)
        return
    if form == "comfyui":
        del header[ADAPTER_KEY]
        for layer in {key.partition(".lora_")[0] for key in state}:
            state[f"{layer}.alpha"] = np.array(alpha, np.float32)
    else:
        for key, tensor in state.items():
            if key.endswith(".lora_B.weight"):
                tensor *= alpha / rank
        header[ADAPTER_KEY] = json.dumps({**adapter, f"{PREFIX}lora_alpha": rank})
    header[FACTS_KEY] = facts_entry(named)
    save_file(state, target, header)


def _public_name(name: str) -> str:
    """The hub's name where the path is in the hub's cache, else the last part of a path."""
    if in_hub_cache := re.search(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/", name):
        return "/".join(in_hub_cache.groups())
    return Path(name).name if Path(name).is_absolute() else name


def shared(folder: Path) -> list[str]:
    """The files of a folder `share` that are uploaded."""
    return [CARD, LORA_FILE, *sorted(f"{PICTURES}/{path.name}" for path in (folder / PICTURES).glob("*"))]


def listed(folder: Path) -> list[str]:
    """The files that are uploaded, with their sizes."""
    return [f"{folder / name} ({gigabytes((folder / name).stat().st_size)})" for name in shared(folder)]


def card_values(
    run: Path, name: str | None, settings: dict[str, Any], facts: LoraFacts, pictures: Sequence[Path]
) -> dict[str, Any]:
    """The values that the card's template names. jinja2 would leave a missing one out without a word. name: of the
    hub's repository, if that is known."""
    scores = score_table(run) if _is_scored(run, facts.step) else []
    found = judged(run, run / f"checkpoint-{facts.step}")
    trained = [category for category in CATEGORIES if category not in facts.base_categories]
    return {
        "title": name.rpartition("/")[2] if name else "Try-on LoRA",
        "name": name or "<user>/<name>",
        "settings": settings,
        "facts": facts,
        "transformer": _link(facts.transformer),
        "base": _link(facts.base),
        "loaded_transformer": _loaded(facts.transformer),
        "loaded_base": _loaded(facts.base),
        "subfolder": ', subfolder="transformer"' if facts.transformer.startswith("black-forest-labs/") else "",
        "lora_file": LORA_FILE,
        "data": _data(settings),
        "drawn": _is_drawn(settings),
        "pictures": {picture.stem: f"{PICTURES}/{picture.name}" for picture in pictures},
        "of_deepfashion": "deepfashion" in Path(settings.get("dataset_name") or "").name.lower(),
        "prompts": list(dict.fromkeys(prompt_for(facts.prompt, category) for category in trained)),
        "trained": trained,
        "scores": scores,
        "evaluated": judged_rows(found) if found and not scores else None,
        "verdict": found.said if found else "",
        "meanings": meanings_of(run),
        "lengths": read_lengths(run) if scores else "",
        "length_in_words": LENGTH_IN_WORDS,
        "losses": _loss_table(run, facts.step),
        "pairs": _pairs(run),
        "masks": _masks(facts),
        "environment": ", ".join(f"{key} {value}" for key, value in read_json(run / ENVIRONMENT).items()),
        "flux_licence": FLUX_LICENCE,
        "plural": plural,
    }


def _metadata(settings: dict[str, Any], facts: LoraFacts) -> ModelCardData:
    """The card's metadata, by the hub's specification of model cards."""
    common: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "image-to-image"}
    tags = ["lora", "diffusers", "virtual-try-on"]
    if settings["toy"]:
        return ModelCardData(license="apache-2.0", tags=[*tags, "toy"], **common)
    return ModelCardData(
        license="other", license_name="flux-1-dev-non-commercial-license", license_link=FLUX_LICENCE,
        base_model=[each for each in (facts.transformer, facts.base) if HUB_NAME.fullmatch(each)] or None,
        base_model_relation="adapter", tags=[*tags, "flux", "catvton"], **common,
        datasets=[data] if HUB_NAME.fullmatch(data := settings.get("dataset_name") or "") else None,
    )  # fmt: skip


def _loss_table(run: Path, step: int) -> list[list[str]]:
    """Validation losses at the first step and at the last one up to `step`, as rows of cells, the head first; empty
    where there are fewer than two."""
    losses = [row for row in read_metrics(run) if "validation/loss" in row and row["step"] <= step]
    if len(losses) < 2:
        return []
    first, last = losses[0], losses[-1]
    names = sorted(name for name in last if name.startswith("validation/"))
    rows = [[name.removeprefix("validation/"), f"{first[name]:.4f}", f"{last[name]:.4f}"] for name in names]
    return [["", f"step {first['step']}", f"step {last['step']}"], *rows]


def _pairs(run: Path) -> str:
    return "; ".join(
        f"{what}: {', '.join(f'{count:,} {category}' for category, count in found.items())}"
        for what, found in read_json(run / DATA).items()
    )


def _masks(facts: LoraFacts) -> str:
    rule = facts.mask_rule
    if any(facts.mask_offsets):
        rule += " with offsets (top, bottom, left, right) of " + ", ".join(f"{each:g}" for each in facts.mask_offsets)
    return rule + (f", parts of the person by {facts.mask_parser}" if facts.mask_parser else "")


def _is_drawn(settings: dict[str, Any]) -> bool:
    """Whether the run's data are the toy's own, whose people are drawn."""
    data = Path(settings.get("dataset_name") or "")
    return settings["toy"] and data.parent == Path(settings["data_cache_dir"]) / "toy"


def _data(settings: dict[str, Any]) -> str:
    """The data set in words, without paths of the machine that trained."""
    name = settings.get("dataset_name") or ""
    if _is_drawn(settings):
        return "drawings of the toy's world"
    if HUB_NAME.fullmatch(name):
        return f"[{name}](https://huggingface.co/datasets/{name})"
    return "a private folder"


def _link(name: str) -> str:
    return f"[{name}](https://huggingface.co/{name})" if HUB_NAME.fullmatch(name) else f"`{name}` (not from the hub)"


def _loaded(name: str) -> str:
    """What the card's Python loads: the hub's name, or a placeholder for a folder."""
    return name if HUB_NAME.fullmatch(name) else f"<folder of {name}>"


def main(argv: list[str]) -> None:
    def problems(config: ShareConfig) -> Iterator[str]:
        return mistaken_upload(config.push_to_hub, config.private)

    (config,) = parse(argv, "python -m tryon.share", "Shares a run's LoRA.", ShareConfig, problems=problems)
    set_up_logging(is_main_process=True)
    if config.push_to_hub:
        push(config)
        return
    for line in listed(write_share(config)):
        logger.info("would be uploaded: %s", line)
    logger.info("look at them, then give --push_to_hub user/name")


if __name__ == "__main__":
    run_script(main)
