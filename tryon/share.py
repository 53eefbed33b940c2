"""A run's LoRA for others: its file and a model card in the run's folder `share`, and their upload to the hub.

    python -m tryon.share runs/<run> [--push_to_hub user/name] [--private]

Nothing else of the run is shared: its pictures show people of the data set.
"""

import json
import logging
import os
import re
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from safetensors.numpy import load_file, save_file

from tryon.cli import parse, run_script
from tryon.config import HUB_NAME, mistaken_upload, setting
from tryon.console import set_up_logging
from tryon.data.category import CATEGORIES
from tryon.flux.lora_header import ADAPTER_KEY, FACTS_KEY, PREFIX, LoraFacts, read_facts, read_header
from tryon.flux.prompts import prompt_for
from tryon.hub import check_login, upload
from tryon.report import (
    COLUMNS_IN_WORDS,
    LENGTH_IN_WORDS,
    read_data,
    read_environment,
    read_length,
    read_metrics,
    read_scores,
)
from tryon.runs import LORA_FILE, identity_of, lora_file, newest_checkpoint
from tryon.units import gigabytes

logger = logging.getLogger(__name__)

CARD = "README.md"
SHARED = (CARD, LORA_FILE)
FLUX_LICENCE = "https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md"


@dataclass(frozen=True, kw_only=True)
class ShareConfig:
    """Which run is shared, and where."""

    run: str = setting(None, "the run's folder", positional=True)
    push_to_hub: str | None = setting(None, "upload to this repository of the hub, user/name; without it, only show")
    private: bool = setting(False, "make that repository a private one; one that is public already is refused")


def write_share(run: Path, name: str | None) -> Path:
    """Writes the LoRA of the run's newest valid checkpoint and its card into run/share, and returns that folder.

    name: of the repository on the hub, which the card's examples use; None where it is not known yet. Raises ValueError
    where the folder is no run, has no checkpoint, or cannot be written into.
    """
    if not (run / "config.json").is_file():
        raise ValueError(f"{run} holds no config.json: name the folder of a run")
    checkpoint, folder = newest_checkpoint(run), run / "share"
    try:
        folder.mkdir(exist_ok=True)
        export_lora(lora_file(checkpoint), folder / LORA_FILE)
        facts = read_facts(folder / LORA_FILE)
        assert facts.known, "a run's LoRA says what it was trained for"
        (folder / CARD).write_text(model_card(run, checkpoint, facts, name))
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error}): make room on the disk, then share again") from error
    return folder


def push(run: Path, name: str, private: bool) -> None:
    """Writes run/share and uploads it. Raises ValueError where that cannot be done, with the command that does it
    later."""
    folder = write_share(run, name)
    try:
        check_login(name)
        for line in listed(folder):
            logger.info("uploading to %s: %s", name, line)
        logger.info("shared: %s", upload(folder, SHARED, name, private))
    except ValueError as error:
        command = f"python -m tryon.share {shlex.quote(str(run))} --push_to_hub {name}{' --private' if private else ''}"
        raise ValueError(f"{error}; nothing of the run is lost, upload it with `{command}`") from error


def export_lora(file: Path, target: Path) -> None:
    """Writes `target`: a LoRA of this project as every program reads it. The very same file where it is so already.

    ComfyUI reads no header and takes alpha for the rank; so alpha / rank, the factor of peft's B A x, goes into B. Of
    paths in the header only the last part stays: what lies where on this machine is of no use elsewhere.
    """
    header, facts = read_header(file), read_facts(file)
    assert facts.known, "another project's LoRA is not ours to share"
    adapter = json.loads(header[ADAPTER_KEY])
    rank, alpha = adapter[f"{PREFIX}r"], adapter[f"{PREFIX}lora_alpha"]
    named = replace(
        facts, base=_public_name(facts.base), transformer=_public_name(facts.transformer),
        mask_parser=facts.mask_parser and _public_name(facts.mask_parser),
    )  # fmt: skip
    target.unlink(missing_ok=True)
    if alpha == rank and named == facts:
        try:
            os.link(file, target)
        except OSError:  # another disk, or one without links
            shutil.copyfile(file, target)
        return
    state = load_file(file)
    for key, tensor in state.items():
        if key.endswith(".lora_B.weight"):
            tensor *= alpha / rank
    metadata = {
        **header,
        ADAPTER_KEY: json.dumps({**adapter, f"{PREFIX}lora_alpha": rank}),
        FACTS_KEY: json.dumps(asdict(named)),
    }
    save_file(state, target, metadata)


def _public_name(name: str) -> str:
    """The name on the hub of what was downloaded from there; of another folder, the last part of its path."""
    if in_hub_cache := re.search(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/", name):
        return "/".join(in_hub_cache.groups())
    return Path(name).name if Path(name).is_absolute() else name


def listed(folder: Path) -> list[str]:
    """The files that are uploaded, with their sizes."""
    return [f"{folder / name} ({gigabytes((folder / name).stat().st_size)})" for name in SHARED]


def model_card(run: Path, checkpoint: Path, facts: LoraFacts, name: str | None) -> str:
    """The card, in Markdown with the hub's metadata before it, made of what the run's folder holds."""
    settings = json.loads((run / "config.json").read_text())
    settings["quantization"] = identity_of(checkpoint)["quantization"]  # what "auto" meant
    name = name or "<user>/<name>"
    sections = [
        ("", TOY_WARNING if settings["toy"] else ""),
        ("", _what_it_is(settings, facts)),
        ("Measured", _measured(run, settings)),
        ("In diffusers", _in_diffusers(settings, facts, name)),
        ("With the code that trained it", OWN_COMMAND.format(name=name)),
        ("In ComfyUI", "" if settings["toy"] else _in_comfy(facts)),
        ("How it was trained", _recipe(run, settings, facts)),
        ("Licences", f"{TOY_LICENCES if settings['toy'] else LICENCES} {_data_licence(settings)}".strip()),
        ("Limits", LIMITS),
    ]
    title = name.rpartition("/")[2] if name != "<user>/<name>" else "Try-on LoRA"
    body = "\n\n".join(f"{f'## {head}' + chr(10) * 2 if head else ''}{text}" for head, text in sections if text)
    return f"---\n{_metadata(settings, facts)}\n---\n\n# {title}\n\n{body}\n"


def _metadata(settings: dict[str, Any], facts: LoraFacts) -> str:
    """The card's metadata in YAML, by the hub's specification of model cards."""
    common: dict[str, Any] = {"library_name": "diffusers", "pipeline_tag": "image-to-image"}
    tags = ["lora", "diffusers", "virtual-try-on"]
    if settings["toy"]:
        return ModelCardData(license="apache-2.0", tags=[*tags, "toy"], **common).to_yaml()
    return ModelCardData(
        license="other",
        license_name="flux-1-dev-non-commercial-license",
        license_link=FLUX_LICENCE,
        base_model=[each for each in (facts.transformer, facts.base) if HUB_NAME.fullmatch(each)] or None,
        base_model_relation="adapter",
        datasets=[data] if HUB_NAME.fullmatch(data := settings.get("dataset_name") or "") else None,
        tags=[*tags, "flux", "catvton"],
        **common,
    ).to_yaml()


TOY_WARNING = """> **This is a toy.** It belongs to the embedded toy model, a few million parameters that know drawings.
> It shows that data, training and inference fit together. It dresses nobody in photographs, and fits no FLUX model."""


def _what_it_is(settings: dict[str, Any], facts: LoraFacts) -> str:
    model = "the toy's transformer" if settings["toy"] else f"the FLUX-Fill transformer {_link(facts.transformer)}"
    return (
        f"A LoRA for {model}, which dresses the person of one picture in the garment of another: upper-body, "
        "lower-body and full-body garments. Garment and person stand side by side in one picture; what is masked of "
        f"the person is painted anew. Trained for {facts.step:,} steps on {_data(settings)}, in panels of "
        f"{facts.height} x {facts.width} pixels (height x width)."
    )


def _measured(run: Path, settings: dict[str, Any]) -> str:
    parts = []
    if scores := read_scores(run):
        columns = list(scores[0][1])
        parts.append(
            f"Held-out pairs, at most {settings['num_evaluation_samples']} of each category, inside the mask: means of "
            f"PSNR in dB / SSIM. {COLUMNS_IN_WORDS}"
        )
        rows = [
            [label, *(f"{found[each]['psnr']:.2f} / {found[each]['ssim']:.3f}" for each in columns)]
            for label, found in scores
        ]
        parts.append(_table(["", *columns], rows))
        if (right := read_length(run)) is not None:
            parts.append(f"{LENGTH_IN_WORDS}: right in {right:.0%}.")
    losses = [row for row in read_metrics(run) if "validation/loss" in row]
    if len(losses) > 1:
        names = sorted(name for name in losses[-1] if name.startswith("validation/"))
        rows = [[name.removeprefix("validation/"), *(f"{row[name]:.4f}" for row in (losses[0], losses[-1]))]
                for name in names]  # fmt: skip
        parts.append("Loss on held-out pairs, at the same noise each time:")
        parts.append(_table(["", f"step {losses[0]['step']}", f"step {losses[-1]['step']}"], rows))
    return "\n\n".join(parts) or "Nothing was measured in this run."


def _in_diffusers(settings: dict[str, Any], facts: LoraFacts, name: str) -> str:
    if settings["toy"]:
        return "The toy's models are not on the hub: only the command below can use this file."
    inside = ', subfolder="transformer"' if facts.transformer.startswith("black-forest-labs/") else ""
    models = facts.transformer, facts.base
    return f"""The mask is white where the person is repainted; make it wider than the garment that is worn. The
weights take 34 GB of GPU memory; where that is too much, `pipeline.enable_sequential_cpu_offload()` in place of
`pipeline.to("cuda")` keeps them in the host's and is slow, and the command below quantises them.

```python
import torch
from diffusers import FluxFillPipeline, FluxTransformer2DModel
from PIL import Image, ImageOps

transformer, base = {", ".join(f'"{each if HUB_NAME.fullmatch(each) else f"<folder of {each}>"}"' for each in models)}
dtype = torch.bfloat16
transformer = FluxTransformer2DModel.from_pretrained(transformer{inside}, torch_dtype=dtype)
pipeline = FluxFillPipeline.from_pretrained(base, transformer=transformer, torch_dtype=dtype)
pipeline.load_lora_weights("{name}", weight_name="{LORA_FILE}")
pipeline.to("cuda")

height, width = {facts.height}, {facts.width}
garment, person = Image.open("garment.jpg").convert("RGB"), Image.open("person.jpg").convert("RGB")
mask = Image.open("mask.png").convert("L")
diptych, hidden = Image.new("RGB", (2 * width, height)), Image.new("L", (2 * width, height))
diptych.paste(ImageOps.pad(garment, (width, height), color="white"), (0, 0))
diptych.paste(ImageOps.pad(person, (width, height), color="white"), (width, 0))
hidden.paste(ImageOps.pad(mask, (width, height), color=0), (width, 0))
result = pipeline(
    prompt="{_prompts(facts)[0]}",
    image=diptych,
    mask_image=hidden,
    height=height,
    width=2 * width,
    num_inference_steps={facts.num_inference_steps},
    guidance_scale={facts.guidance_scale},
    max_sequence_length={facts.max_sequence_length},
    generator=torch.Generator("cpu").manual_seed(0),
).images[0]
result.crop((width, 0, 2 * width, height)).save("dressed.png")
```{_other_prompts(facts)}"""


def _prompts(facts: LoraFacts) -> list[str]:
    return list(dict.fromkeys(prompt_for(facts.prompt, category) for category in CATEGORIES))


def _other_prompts(facts: LoraFacts) -> str:
    others = _prompts(facts)[1:]
    if not others:
        return ""
    return "\n\nThat prompt is for upper-body garments. The others: " + "; ".join(f"`{each}`" for each in others) + "."


OWN_COMMAND = """```bash
python tryon_inference_lora.py --lora {name} --image person.jpg --mask mask.png --garment garment.jpg \\
    --category upper --output_tryon dressed.png
```

It reads models, prompt, panel size, steps and guidance from the file's header. Without `--mask` it makes one by the
rule of the training, from `--worn`, a picture in which what the person wears is white, or from what a human parser
finds."""


def _in_comfy(facts: LoraFacts) -> str:
    return (
        "Not tried. The file's keys are those that ComfyUI knows of FLUX LoRAs (`transformer.<module>.lora_A.weight` "
        "and `lora_B.weight`, scaled so that no alpha is needed). What should work is a FLUX Fill workflow: the "
        f"transformer {_link(facts.transformer)}, as one file, in `UNETLoader`, the text encoders in "
        "`DualCLIPLoader`, the VAE in `VAELoader`, and this file in `LoraLoaderModelOnly` at strength 1. The picture "
        "is the diptych, garment left and person right, made with `ImageStitch`; its mask is black on the garment and "
        "white where the person is repainted. Both go into `InpaintModelConditioning`, the prompt "
        f"`{_prompts(facts)[0]}` through `CLIPTextEncode` and `FluxGuidance` at "
        f"{facts.guidance_scale:g}; `KSampler` at cfg 1, `euler`, `simple`, "
        f"{facts.num_inference_steps} steps; the right half of the result is the answer."
    )


def _recipe(run: Path, settings: dict[str, Any], facts: LoraFacts) -> str:
    batch, parts, processes = (
        settings[name] for name in ("train_batch_size", "gradient_accumulation_steps", "num_processes")
    )
    rule = facts.mask_rule
    if any(facts.mask_offsets):
        rule += " with offsets (top, bottom, left, right) of " + ", ".join(f"{each:g}" for each in facts.mask_offsets)
    if facts.mask_parser:
        rule += f", parts of the person by {facts.mask_parser}"
    rows = {
        "base model": "the toy" if settings["toy"] else _link(facts.base),
        "transformer": "the toy" if settings["toy"] else _link(facts.transformer),
        "data": _data(settings),
        "pairs": "; ".join(
            f"{what}: {', '.join(f'{count:,} {category}' for category, count in found.items())}"
            for what, found in read_data(run).items()
        )
        or "not known",
        "LoRA": f"rank {settings['lora_rank']}, alpha {settings['lora_alpha']} (attention and feed-forward layers)",
        "steps": f"{facts.step:,} of {batch * parts * processes} samples: batch {batch}, {parts} accumulated, "
        f"{processes} {'process' if processes == 1 else 'processes'}",
        "learning rate": f"{settings['learning_rate']:g}, {settings['lr_scheduler']}, "
        f"{settings['lr_warmup_steps']} steps of warm-up; {settings['optimizer']}",
        "noise levels": settings["weighting_scheme"],
        "frozen weights": "as they are" if settings["quantization"] == "none" else settings["quantization"],
        "masks": rule,
        "balance of categories": settings["balance"],
        "prompt": "; ".join(f"`{each}`" for each in _prompts(facts)),
        "trained with": ", ".join(f"{key} {value}" for key, value in read_environment(run).items()) or "not known",
    }
    return _table(["", ""], [[key, str(value)] for key, value in rows.items()])


def _data(settings: dict[str, Any]) -> str:
    """The data set in words: a path of the machine that trained is nobody's business."""
    name = settings.get("dataset_name") or ""
    if settings["toy"] and Path(name).parent == Path(settings["data_cache_dir"]) / "toy":
        return "drawings of the toy's world"
    if HUB_NAME.fullmatch(name):
        return f"[{name}](https://huggingface.co/datasets/{name})"
    return "a folder of the trainer's own"


def _data_licence(settings: dict[str, Any]) -> str:
    if "deepfashion" in Path(settings.get("dataset_name") or "").name.lower():
        return "DeepFashion, which it was trained on, is for research only."
    return "" if settings["toy"] else "The terms of the data that it was trained on apply too."


LICENCES = (
    f"[FLUX.1-dev]({FLUX_LICENCE}) and what is derived from it, CatVTON-Flux and this LoRA included, are for "
    "non-commercial use."
)
TOY_LICENCES = "The toy's weights, made from drawings, are under the Apache License 2.0, as the code is."
LIMITS = """- What the mask leaves out keeps the old garment's outline; all that it covers, hands too, is painted anew.
- Writing, logos and fine patterns may change. The result is a picture, not a fitting: it knows nothing of sizes.
- It may do worse on people, poses and garments that its data show rarely; that was not measured.
- Scores inside the mask of few pairs say that it learnt, not how people would judge its pictures."""


def _link(name: str) -> str:
    return f"[{name}](https://huggingface.co/{name})" if HUB_NAME.fullmatch(name) else f"`{name}` (not from the hub)"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def problems_of(config: ShareConfig) -> Iterable[str]:
    """What is wrong with the flags beyond single values."""
    return mistaken_upload(config.push_to_hub, config.private)


def main(argv: list[str]) -> None:
    (config,) = parse(argv, "python -m tryon.share", "Shares a run's LoRA.", ShareConfig, problems=problems_of)
    set_up_logging(is_main_process=True)
    run = Path(config.run).expanduser()
    if config.push_to_hub:
        push(run, config.push_to_hub, config.private)
        return
    for line in listed(write_share(run, None)):
        logger.info("would be uploaded: %s", line)
    logger.info("look at them, then give --push_to_hub user/name")


if __name__ == "__main__":
    run_script(main)
