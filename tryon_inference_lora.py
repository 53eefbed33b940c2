"""Dresses the person of one picture in the garment of another, with a LoRA that was trained here.

    python tryon_inference_lora.py --lora runs/<run> --image person.jpg --mask mask.png --garment garment.jpg \
        --output_tryon out.png

The mask is white where the person is to be repainted. Instead, --worn may give the region of what the person wears: the
mask is then made from it by the rule that the LoRA was trained with.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tryon.config import TryOnConfig, mistakes, parse_flags, setting
from tryon.entry import run_script

logger = logging.getLogger(__name__)

PICTURE_KINDS = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True, kw_only=True)
class PictureConfig:
    """Which pictures are read and written, and how the new one is drawn."""

    image: str | None = setting(None, "picture of the person; needed")
    mask: str | None = setting(None, "mask of the person's picture, white where it is repainted; needed, or --worn")
    worn: str | None = setting(
        None, "region, in white, of what the person wears: the LoRA's rule makes the mask from it"
    )
    parser: str | None = setting(
        None, "SegFormer that labels people's parts, where the LoRA's rule follows the body; as trained if not given"
    )
    garment: str | None = setting(None, "picture of the garment; needed")
    output_tryon: str | None = setting(None, "where the dressed person is written; needed")
    output_diptych: str | None = setting(None, "where garment and dressed person, side by side, are written")
    category: Literal["upper", "lower", "full"] | None = setting(
        None, "the garment's category; needed by a LoRA that was trained with one prompt per category"
    )
    seed: int = setting(0, "seed of the noise", 0)
    steps: int = setting(30, "denoising steps", 1)
    guidance_scale: float = setting(30.0, "guidance", 0)


def read_settings(argv: list[str]) -> tuple[TryOnConfig, PictureConfig]:
    """The flags, checked. Raises ValueError, in one sentence, for everything that is missing or wrong."""
    description = "Dresses a person in a garment with a trained LoRA."
    given, of_pictures = parse_flags(argv, "python tryon_inference_lora.py", description, TryOnConfig, PictureConfig)
    config, pictures = TryOnConfig(**given), PictureConfig(**of_pictures)
    problems = ["--lora is missing"] if config.lora is None else []
    needed = ("image", "garment", "output_tryon")
    problems += [f"--{name} is missing" for name in needed if getattr(pictures, name) is None]
    if (pictures.mask is None) == (pictures.worn is None):
        problems.append("give either --mask or --worn")
    if pictures.parser and not pictures.worn:
        problems.append("--parser has no use without --worn")
    if pictures.worn and pictures.category is None:
        problems.append("--worn needs to know what it is: say --category upper, lower or full")
    for name in ("image", "mask", "worn", "garment"):
        path = getattr(pictures, name)
        if path is not None and not Path(path).expanduser().is_file():
            problems.append(f"--{name} {path} is no file")
    for name in ("output_tryon", "output_diptych"):
        path = getattr(pictures, name)
        if path is not None and not Path(path).expanduser().absolute().parent.is_dir():
            problems.append(f"--{name} {path} lies in a folder that does not exist")
        if path is not None and Path(path).suffix.lower() not in PICTURE_KINDS:
            problems.append(f"--{name} {path} must end in one of {', '.join(PICTURE_KINDS)}")
    if pictures.output_diptych and pictures.output_diptych == pictures.output_tryon:
        problems.append("--output_tryon and --output_diptych name the same file")
    problems += [*mistakes(config), *mistakes(pictures)]
    if problems:
        raise ValueError("; ".join(problems))
    return config, pictures


def main(argv: list[str]) -> None:
    config, pictures = read_settings(argv)

    # Heavy imports after the cheap checks: --help and a wrong flag answer at once.
    import torch
    from PIL import Image

    from tryon.lora import read_facts
    from tryon.parsing import hide_worn, load_parser
    from tryon.pipeline import load_try_on, lora_on_disk, panel_size, prompt_category, trained_rule, try_on
    from tryon.sample import UNREADABLE, read_mask, read_picture, sample_of_pictures, to_picture
    from tryon.toy.model import use_toy_model_for_try_on
    from tryon.tracking import on_terminal, set_up_logging

    set_up_logging(is_main_process=True)
    opened = {}
    for name in filter(lambda name: getattr(pictures, name), ("garment", "image", "mask", "worn")):
        path = Path(getattr(pictures, name)).expanduser()
        try:
            is_mask = name in ("mask", "worn")
            opened[name] = read_mask(path, opened["image"].size) if is_mask else read_picture(path)
        except UNREADABLE as error:
            raise ValueError(f"--{name} {path} cannot be used ({error}): give another file") from error
    lora = lora_on_disk(config.lora, config.cache_dir)
    facts = read_facts(lora)
    category = prompt_category(facts, pictures.category)
    if pictures.worn:
        rule = trained_rule(facts)
        if pictures.parser and rule.name == "rectangle":
            raise ValueError("--parser has no use: this LoRA was trained with rectangles, which need none")
        name = pictures.parser or rule.parser
        parser = load_parser(name, config.cache_dir, torch.device("cpu")) if name else None
        opened["mask"] = hide_worn(opened["image"], opened["worn"], category, rule, parser)
    sample = sample_of_pictures(
        opened["garment"], opened["image"], opened["mask"], category, *panel_size(config, facts)
    )

    if sample.mask.all():
        logger.warning("the mask is white all over: the whole picture is repainted, the face too")

    model = load_try_on(use_toy_model_for_try_on(config, facts), lora)
    logger.info("dressing, %d steps at guidance %g", pictures.steps, pictures.guidance_scale)
    if on_terminal():
        model.pipeline.set_progress_bar_config(disable=False, desc="dressing", leave=False, ncols=110)
    picture = try_on(
        model.pipeline,
        sample,
        model.prompts[sample.category],
        steps=pictures.steps,
        guidance=pictures.guidance_scale,
        seed=pictures.seed,
    )
    picture.save(Path(pictures.output_tryon).expanduser())
    size = f"{picture.height} x {picture.width} pixels, height x width"
    logger.info("wrote %s (seed %d; %s)", pictures.output_tryon, pictures.seed, size)
    if pictures.output_diptych:
        diptych = Image.new("RGB", (2 * picture.width, picture.height))
        diptych.paste(to_picture(sample.garment), (0, 0))
        diptych.paste(picture, (picture.width, 0))
        diptych.save(Path(pictures.output_diptych).expanduser())
        logger.info("wrote %s", pictures.output_diptych)


if __name__ == "__main__":
    run_script(main)
