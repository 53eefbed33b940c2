"""Dresses the person of one picture in the garment of another, with a LoRA that was trained here; or many of them.

    python tryon_inference_lora.py --lora runs/<run> --image person.jpg --garment garment.jpg --category lower \
        --output_tryon out.png
    python tryon_inference_lora.py --lora runs/<run> --pairs pairs.csv

What is repainted: --mask, white there; or --worn, the region of what the person wears, from which the mask is made by
the rule that the LoRA was trained with; or, with --category alone, a human parser finds that region.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tryon.cli import parse, run_script
from tryon.config import MOST_DENOISING, MOST_GUIDANCE, MOST_SEED, TryOnConfig, setting
from tryon.console import MODEL_LIBRARIES, load_libraries, on_terminal, set_up_logging
from tryon.flux.lora_header import denoising, lora_on_disk, panel_size, prompt_category, read_facts
from tryon.inference.pairs_file import Request, read_pairs, results_of, unwritable

logger = logging.getLogger(__name__)

GRID_ROWS = 20  # more would be a picture that few programs open


@dataclass(frozen=True, kw_only=True)
class PictureConfig:
    """Which pictures are read and written, and how the new ones are drawn."""

    image: str | None = setting(None, "picture of the person; needed, or --pairs")
    garment: str | None = setting(None, "picture of the garment; needed, or --pairs")
    mask: str | None = setting(None, "mask of the person's picture, white where it is repainted")
    worn: str | None = setting(
        None, "instead: region, in white, of what the person wears: the LoRA's rule makes the mask from it"
    )
    parser: str | None = setting(
        None, "SegFormer with ATR labels that finds what is worn where no --mask is given; as trained if not given"
    )
    category: Literal["upper", "lower", "full"] | None = setting(
        None, "the garment's category; needed without --mask, and by a LoRA that has one prompt per category"
    )
    output_tryon: str | None = setting(None, "where the dressed person is written; needed, or --pairs")
    pairs: str | None = setting(
        None,
        "CSV file with the columns person, garment and output, and perhaps mask and category: a try-on a line; paths "
        "are taken from the file's folder",
    )
    output_grid: str | None = setting(None, "where garment, person, masked person and results are written side by side")
    num_results: int = setting(1, "results of each try-on, with seeds that follow each other", 1, 16)
    seed: int = setting(0, "seed of the first result's noise", 0, MOST_SEED)
    steps: int | None = setting(
        None, "denoising steps; as the LoRA was trained for, else 30, if not given", 1, MOST_DENOISING
    )
    guidance_scale: float | None = setting(
        None, "guidance; as the LoRA was trained for, else 30, if not given", 0, MOST_GUIDANCE
    )


def problems_of(config: TryOnConfig, pictures: PictureConfig) -> list[str]:
    """What is wrong with the flags beyond single values."""
    if pictures.pairs:
        given = [name for name in ("image", "garment", "mask", "worn", "output_tryon") if getattr(pictures, name)]
        problems = [f"--{name} is for a single try-on: leave it out with --pairs" for name in given]
    else:
        problems = problems_of_one(pictures)
    if pictures.output_grid:
        problems += unwritable("--output_grid", Path(pictures.output_grid))
    return problems


def problems_of_one(pictures: PictureConfig) -> list[str]:
    """What is wrong with the flags of a single try-on."""
    problems = [f"--{name} is missing" for name in ("image", "garment", "output_tryon") if not getattr(pictures, name)]
    if pictures.mask and pictures.worn:
        problems.append("give either --mask or --worn")
    if pictures.mask and pictures.parser:
        problems.append("--parser has no use with --mask")
    if not pictures.mask and pictures.category is None:
        problems.append("give --mask, or say --category upper, lower or full, from which one is made")
    for name in ("image", "mask", "worn", "garment"):
        path = getattr(pictures, name)
        if path is not None and not Path(path).expanduser().is_file():
            problems.append(f"--{name} {path} is no file")
    if pictures.output_tryon:
        output = Path(pictures.output_tryon).expanduser()
        problems += unwritable("--output_tryon", output)
        written = {file.resolve() for file in results_of(output, seeds_of(pictures))}
        for name in ("image", "garment", "mask", "worn", "output_grid"):
            path = getattr(pictures, name)
            if path and Path(path).expanduser().resolve() in written:
                problems.append(f"--output_tryon would overwrite --{name} {path}: name another file")
    return problems


def seeds_of(pictures: PictureConfig) -> range:
    """The seeds of a try-on's results, in their order."""
    return range(pictures.seed, pictures.seed + pictures.num_results)


def request_of_flags(pictures: PictureConfig) -> Request:
    """The try-on that the flags ask for."""
    given = (pictures.image, pictures.garment, pictures.mask, pictures.worn, pictures.output_tryon)
    *read, output = (Path(path).expanduser() if path else None for path in given)
    return Request(*read, pictures.category, output)


def main(argv: list[str]) -> None:
    # What can be refused is refused before anything heavy is imported.
    description, shapes = "Dresses people in garments with a trained LoRA.", (TryOnConfig, PictureConfig)
    config, pictures = parse(argv, "python tryon_inference_lora.py", description, *shapes, problems=problems_of)
    pairs, grid = (Path(path).expanduser() if path else None for path in (pictures.pairs, pictures.output_grid))
    lines = read_pairs(pairs, seeds_of(pictures), grid) if pairs else []
    set_up_logging(is_main_process=True)
    lora = lora_on_disk(config.lora, config.cache_dir)
    facts = read_facts(lora)
    panel_size(config, facts)
    if not pairs:
        prompt_category(facts, pictures.category)

    load_libraries(*MODEL_LIBRARIES)
    from tryon.data.grid import draw_grid
    from tryon.inference.dressing import Denoising, dress, dress_pairs, grid_row, mask_maker, open_pictures
    from tryon.inference.pipeline import load_try_on
    from tryon.toy.model import parser_for_try_on, use_toy_model_for_try_on

    config = use_toy_model_for_try_on(config, facts)
    steps, guidance = denoising(facts, pictures.steps, pictures.guidance_scale)
    how = Denoising(steps, guidance, seeds_of(pictures))
    make_mask = mask_maker(facts, pictures.parser, parser_for_try_on(config, facts), config.cache_dir)
    if pairs:
        model = load_try_on(config, lora, fold=True)
        logger.info("%d pairs, %d steps at guidance %g", len(lines), steps, guidance)
        shown = GRID_ROWS if grid else 0
        rows, failed = dress_pairs(model, lines, pairs.parent, pictures.category, how, make_mask, shown)
    else:
        request, failed = request_of_flags(pictures), []
        opened = open_pictures(request, facts, make_mask)  # before the models, which take minutes to load
        model = load_try_on(config, lora, fold=True)
        logger.info("dressing, %d steps at guidance %g", steps, guidance)
        if on_terminal():
            model.pipeline.set_progress_bar_config(disable=False, desc="dressing", leave=False, ncols=110)
        rows = [grid_row(opened, dress(model, opened, how, request.output), model.size)]

    if grid and rows:
        headings = ["garment", "person", "masked", *(f"seed {seed}" for seed in seeds_of(pictures))]
        draw_grid(headings, rows).save(grid)
        logger.info("wrote %s", grid)
    if failed:
        raise ValueError(f"{len(failed)} of {len(lines)} pairs were not dressed: {'; '.join(failed)}")


if __name__ == "__main__":
    run_script(main)
