"""A try-on from files to files: pictures opened, the mask made where there is none, results written."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from tryon.console import progress_bar
from tryon.data.category import CATEGORIES, Category
from tryon.data.human_parser import Parser, mask_by_rule, parse, parser_for_masks
from tryon.data.sample import (
    UNREADABLE,
    doubt_about_mask,
    fit_picture,
    read_photograph,
    read_usable_mask,
    to_picture,
)
from tryon.flux.lora_header import LoraFacts, prompt_category
from tryon.inference.pairs_file import Request, request_of_line, results_of
from tryon.inference.pipeline import TryOnModel, trained_rule, try_on

logger = logging.getLogger(__name__)

MakeMask = Callable[[Image.Image, Image.Image | None, Category | None], Image.Image]


@dataclass(frozen=True)
class Pictures:
    """What a try-on starts from. mask: "L" of 0 and 255, of the person's size."""

    person: Image.Image
    garment: Image.Image
    mask: Image.Image
    category: Category


@dataclass(frozen=True)
class Denoising:
    """How results are drawn: see try_on."""

    steps: int
    guidance: float
    seeds: range


def mask_maker(facts: LoraFacts, asked: str | None, usual: str | None, cache_dir: str | None) -> MakeMask:
    """A function of the person, the region of what they wear, or None, and the category: the mask by the LoRA's rule.

    asked: the human parser that was asked for; usual: the one used otherwise (see parser_for_masks). It is loaded when
    it is first needed. The function raises ValueError where no mask can be made.
    """

    @cache
    def parser() -> Parser:
        return parser_for_masks(asked or usual, cache_dir)

    def make_mask(person: Image.Image, worn: Image.Image | None, category: Category | None) -> Image.Image:
        rule = trained_rule(facts)
        if category is None:
            raise ValueError("to make a mask the garment's category must be known: give it, or a mask")
        if worn and rule.name == "rectangle" and asked:
            raise ValueError("--parser is not needed for the rectangles that this LoRA was trained with: leave it out")
        return mask_by_rule(worn, category, rule, lambda: parse(parser(), person))

    return make_mask


def open_pictures(request: Request, facts: LoraFacts, make_mask: MakeMask) -> Pictures:
    """What the try-on starts from. Raises ValueError for what cannot be used."""

    def opened(what: str, path: Path | None, size: tuple[int, int] | None = None) -> Image.Image | None:
        try:
            if path is None:
                return None
            if not path.is_file():
                raise ValueError("there is no such file")
            return read_usable_mask(path, size) if size else read_photograph(path)
        except UNREADABLE as error:
            raise ValueError(f"the {what} {path} cannot be used ({error}): give another file") from error

    if request.category not in (None, *CATEGORIES):
        raise ValueError(f"the category {request.category} is none of {', '.join(CATEGORIES)}: give one of them")
    person, garment = opened("person", request.person), opened("garment", request.garment)
    mask, worn = opened("mask", request.mask, person.size), opened("region", request.worn, person.size)
    category = prompt_category(facts, request.category)
    if mask is None:
        mask = make_mask(person, worn, request.category)
        left, top, right, bottom = mask.getbbox()
        logger.info(
            "made a mask: rows %d to %d of %d, columns %d to %d of %d",
            top + 1, bottom, mask.height, left + 1, right, mask.width,
        )  # fmt: skip
    if doubt := doubt_about_mask(mask):
        logger.warning("%s: %s", request.mask or request.person, doubt)
    return Pictures(person, garment, mask, category)


def dress(model: TryOnModel, opened: Pictures, denoising: Denoising, output: Path) -> list[Image.Image]:
    """Writes the try-on's results, one per seed, and returns them. Raises ValueError for what cannot be dressed or
    written."""
    pictures = opened.person, opened.garment, opened.mask
    results = try_on(model, *pictures, opened.category, **vars(denoising))
    for seed, result, file in zip(denoising.seeds, results, results_of(output, denoising.seeds), strict=True):
        try:
            result.save(file, quality=95)  # PNG knows none
        except OSError as error:
            raise ValueError(f"{file} cannot be written ({error}): make room, or name another place") from error
        logger.info("wrote %s (seed %d; %d x %d pixels, height x width)", file, seed, result.height, result.width)
    return results


def grid_row(opened: Pictures, results: list[Image.Image], size: tuple[int, int]) -> tuple[str, list[Image.Image]]:
    """A try-on as a row of the grid, everything fitted into panels of a size, height and width."""
    masked = Image.composite(Image.new("RGB", opened.mask.size, "grey"), opened.person, opened.mask)
    shown = (opened.garment, opened.person, masked, *results)
    return opened.category, [to_picture(fit_picture(picture, *size)) for picture in shown]


def dress_pairs(
    model: TryOnModel, lines: list[tuple[int, dict[str, str]]], folder: Path, category: Category | None,
    denoising: Denoising, make_mask: MakeMask, shown: int,
) -> tuple[list[tuple[str, list[Image.Image]]], list[str]]:  # fmt: skip
    """Dresses line by line of read_pairs; returns the grid's rows, of the first `shown` that were dressed, and what is
    wrong with the lines that were not. folder, category: see request_of_line."""
    rows, failed = [], []
    with progress_bar(len(lines), "dressing", visible=True) as bar:
        for number, line in lines:
            try:
                request = request_of_line(line, folder, category)
                opened = open_pictures(request, model.facts, make_mask)
                results = dress(model, opened, denoising, request.output)
                if len(rows) < shown:
                    rows.append(grid_row(opened, results, model.size))
            except ValueError as error:
                failed.append(f"line {number}: {error}")
                logger.warning("%s", failed[-1])
            bar.update()
    return rows, failed
