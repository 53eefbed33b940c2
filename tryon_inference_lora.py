"""Dresses the person of one picture in the garment of another, with a LoRA that was trained here.

    python tryon_inference_lora.py --lora runs/<run> --image person.jpg --mask mask.png --garment garment.jpg \
        --output_tryon out.png

The mask is white where the person is to be repainted.
"""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from tryon.config import PROJECT, mistakes, parse_flags, setting
from tryon.entry import run_script

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """The flags of this script. What is not given comes from the LoRA's header."""

    lora: str | None = setting(None, "a run, a checkpoint, a folder, a .safetensors file or a hub name; needed")
    image: str | None = setting(None, "picture of the person; needed")
    mask: str | None = setting(None, "mask of the person's picture, white where it is repainted; needed")
    garment: str | None = setting(None, "picture of the garment; needed")
    output_tryon: str | None = setting(None, "where the dressed person is written; needed")
    output_diptych: str | None = setting(None, "where garment and dressed person, side by side, are written")
    category: Literal["upper", "lower", "full"] | None = setting(
        None, "the garment's category; needed by a LoRA that was trained with one prompt per category"
    )
    seed: int = setting(0, "seed of the noise", 0)
    steps: int = setting(30, "denoising steps", 1)
    guidance_scale: float = setting(30.0, "guidance", 0)
    height: int | None = setting(None, "height of the panel in pixels, a multiple of 16; as trained if not given", 16)
    width: int | None = setting(None, "width of the panel in pixels, a multiple of 16; as trained if not given", 16)
    lora_scale: float = setting(1.0, "strength of the LoRA; 0 is the model without it", 0)
    base: str | None = setting(None, "hub name or folder of FLUX.1-dev; as trained if not given")
    transformer: str | None = setting(None, "hub name or folder of the Fill transformer; as trained if not given")
    toy: bool = setting(False, "use the embedded toy model")
    cache_dir: str | None = setting(None, "where the hub's files are kept; the hub's own default if not given")
    data_cache_dir: str = setting(str(PROJECT / "cache"), "where prompt embeddings and the toy's files are kept")


def read_settings(argv: list[str]) -> InferenceConfig:
    """The flags, checked. Raises ValueError, in one sentence, for everything that is missing or wrong."""
    (given,) = parse_flags(argv, "Dresses a person in a garment with a trained LoRA.", InferenceConfig)
    config = InferenceConfig(**given)
    needed = ("lora", "image", "mask", "garment", "output_tryon")
    problems = [f"--{name} is missing" for name in needed if getattr(config, name) is None]
    for name in ("image", "mask", "garment"):
        path = getattr(config, name)
        if path is not None and not Path(path).expanduser().is_file():
            problems.append(f"--{name} {path} is no file")
    for name in ("output_tryon", "output_diptych"):
        path = getattr(config, name)
        if path is not None and not Path(path).expanduser().absolute().parent.is_dir():
            problems.append(f"--{name} {path} lies in a folder that does not exist")
    problems += mistakes(config)
    if problems:
        raise ValueError("; ".join(problems))
    return config


def main(argv: list[str]) -> None:
    config = read_settings(argv)

    # Heavy imports after the cheap checks: --help and a wrong flag answer at once.
    from PIL import Image

    from tryon.lora import read_facts
    from tryon.pipeline import load_try_on, lora_on_disk, prompt_category, trained_size, try_on
    from tryon.sample import UNREADABLE, read_picture, sample_of_pictures, to_picture
    from tryon.tracking import set_up_logging

    set_up_logging(is_main_process=True)
    pictures = []
    for name in ("garment", "image", "mask"):
        path = Path(getattr(config, name)).expanduser()
        try:
            pictures.append(read_picture(path))
        except UNREADABLE as error:
            raise ValueError(f"--{name} {path} cannot be read as a picture ({error}): give another file") from error
    lora = lora_on_disk(config.lora, config.cache_dir)
    facts = read_facts(lora)
    height, width = trained_size(facts)
    sample = sample_of_pictures(
        *pictures, prompt_category(facts, config.category), config.height or height, config.width or width
    )

    if config.toy:
        from tryon.toy.model import toy_model

        folders = toy_model(Path(config.data_cache_dir).expanduser().absolute())
        config = replace(config, base=str(folders.base), transformer=str(folders.transformer))
    model = load_try_on(
        lora,
        base=config.base,
        transformer=config.transformer,
        lora_scale=config.lora_scale,
        hub_cache=config.cache_dir,
        data_cache=config.data_cache_dir,
    )
    picture = try_on(
        model.pipeline,
        sample,
        model.prompts[sample.category],
        steps=config.steps,
        guidance=config.guidance_scale,
        seed=config.seed,
    )
    picture.save(Path(config.output_tryon).expanduser())
    logger.info("wrote %s (seed %d, %d x %d)", config.output_tryon, config.seed, *picture.size)
    if config.output_diptych:
        diptych = Image.new("RGB", (2 * picture.width, picture.height))
        diptych.paste(to_picture(sample.garment), (0, 0))
        diptych.paste(picture, (picture.width, 0))
        diptych.save(Path(config.output_diptych).expanduser())
        logger.info("wrote %s", config.output_diptych)


if __name__ == "__main__":
    run_script(main)
