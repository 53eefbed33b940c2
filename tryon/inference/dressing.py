"""Try-ons and try-offs from files to files: pictures opened, the mask made where there is none, results written; many
try-ons; and LoRAs compared on one."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from diffusers.training_utils import free_memory
from PIL import Image
from torch import Tensor

from tryon.config import TryOnConfig
from tryon.console import progress_bar
from tryon.data.category import CATEGORIES, Category
from tryon.data.human_parser import Parser, labels_at_hand, mask_by_rule, parse, parser_for_masks
from tryon.data.mask_doubts import doubts_about_mask
from tryon.data.sample import (
    UNREADABLE,
    check_shape,
    fit_picture,
    read_photograph,
    read_usable_mask,
    to_picture,
    upright_size,
)
from tryon.flux.lora_header import LoraFacts, prompt_category, read_facts
from tryon.inference.pairs_file import Request, results_of
from tryon.inference.photograph import given_back
from tryon.inference.pipeline import TryOnModel, load_try_on, same_models, swap_lora, take_off, trained_rule, try_on
from tryon.inference.recipe import Recipe, of_result, save_picture, with_request

logger = logging.getLogger(__name__)

FindParts = Callable[[Image.Image], Tensor]  # [H, W] of places in PARTS, of an RGB picture of a person
FindPartsAtHand = Callable[[Image.Image], Tensor | None]
MakeMask = Callable[[Image.Image, Image.Image | None, Category], Image.Image]


@dataclass(frozen=True)
class Pictures:
    """What a try-on starts from. mask: "L" of 0 and 255, of the person's size."""

    person: Image.Image
    garment: Image.Image
    mask: Image.Image
    category: Category


@dataclass(frozen=True)
class Denoising:
    """How results are drawn: see try_on. find_parts: by which what was hidden for nothing is given back; None: it is
    not."""

    steps: int
    guidance: float
    seeds: range
    find_parts: FindParts | None = None


def part_finder(parser: str | None, cache_dir: str | None, *, at_once: bool) -> FindParts:
    """A function that finds a person's parts by a human parser (see parser_for_masks), which is loaded at once, or when
    it is first needed. The labels of the last person are kept. Raises ValueError, or the function does, where it cannot
    be had."""
    last: tuple[Image.Image, Tensor] | None = None

    @cache
    def loaded() -> Parser:
        return parser_for_masks(parser, cache_dir)

    if at_once:
        loaded()

    def find_parts(person: Image.Image) -> Tensor:
        nonlocal last
        if last is None or last[0] is not person:
            last = person, parse(loaded(), person)
        return last[1]

    return find_parts


def part_finder_at_hand(find_parts: FindParts, parser: str | None, cache_dir: str | None) -> FindPartsAtHand:
    """The part_finder of a parser, for what is worth no download: see labels_at_hand."""
    return lambda person: labels_at_hand(lambda: find_parts(person), parser, cache_dir)


def mask_maker(facts: LoraFacts, find_parts: FindParts, *, needless: bool) -> MakeMask:
    """A function of the person, the region of what they wear, or None, and the category: the mask by the LoRA's rule.

    needless: whether a parser was asked for that has no use where a rectangle is made around a region. The function
    raises ValueError where no mask can be made.
    """

    def make_mask(person: Image.Image, worn: Image.Image | None, category: Category) -> Image.Image:
        rule = trained_rule(facts)
        if worn and rule.name == "rectangle" and needless:
            raise ValueError("--parser is not needed for the rectangles that this LoRA was trained with: leave it out")
        return mask_by_rule(worn, category, rule, lambda: find_parts(person))

    return make_mask


@contextmanager
def named(what: str, path: Path) -> Iterator[None]:
    """Raises ValueError, which names the file, where it cannot be used. what: it is, in the message."""
    try:
        if not path.is_file():
            raise ValueError("there is no such file")
        yield
    except UNREADABLE as error:
        raise ValueError(f"the {what} {path} cannot be used ({error}): give another file") from error


def open_picture(what: str, path: Path | None, size: tuple[int, int] | None = None) -> Image.Image | None:
    """A photograph, or a mask of a photograph of this size, width and height; None where none is named. what: it is, in
    a message. Raises ValueError where it cannot be used."""
    if path is None:
        return None
    with named(what, path):
        return read_usable_mask(path, size) if size else read_photograph(path)


@contextmanager
def warned_of(number: int, failed: set[int]) -> Iterator[None]:
    """Warns of a ValueError, as one of this line of a file, and adds the line to those that failed."""
    try:
        yield
    except ValueError as error:
        failed.add(number)
        logger.warning("line %d: %s", number, error)


def possible(requests: dict[int, Request], facts: LoraFacts) -> dict[int, Request]:
    """Those try-ons of lines of a file with which nothing is wrong that is seen without decoding a picture. Warns of
    each other line."""
    failed: set[int] = set()
    for number, request in requests.items():
        with warned_of(number, failed):
            check_request(request, facts)
    return {number: request for number, request in requests.items() if number not in failed}


def check_request(request: Request, facts: LoraFacts) -> None:
    """Raises ValueError for what cannot be dressed, as far as that is seen without decoding a picture."""
    if request.category not in (None, *CATEGORIES):
        raise ValueError(f"the category {request.category} is none of {', '.join(CATEGORIES)}: give one of them")
    with named("person", request.person):
        size = upright_size(request.person)
    with named("garment", request.garment):
        upright_size(request.garment)
    if request.mask:
        with named("mask", request.mask):
            check_shape(upright_size(request.mask), size)
    prompt_category(facts, request.category)
    if request.mask is None:
        trained_rule(facts)
        if request.category is None:
            raise ValueError("to make a mask the garment's category must be known: give it, or a mask")


def open_pictures(
    request: Request, facts: LoraFacts, make_mask: MakeMask, find_parts_at_hand: FindPartsAtHand
) -> Pictures:
    """What the try-on starts from. Raises ValueError for what cannot be used; a mask that is hardly meant is warned
    of."""
    person, garment = open_picture("person", request.person), open_picture("garment", request.garment)
    mask, worn = open_picture("mask", request.mask, person.size), open_picture("region", request.worn, person.size)
    category = prompt_category(facts, request.category)
    if mask is None:
        mask = make_mask(person, worn, request.category)
        left, top, right, bottom = mask.getbbox()
        logger.info(
            "made a mask: rows %d to %d of %d, columns %d to %d of %d",
            top + 1, bottom, mask.height, left + 1, right, mask.width,
        )  # fmt: skip
    known = find_parts_at_hand(person) if request.mask else None
    for doubt in doubts_about_mask(mask, known, request.category):
        logger.warning("%s: %s", request.mask or request.person, doubt)
    return Pictures(person, garment, mask, category)


def draw(model: TryOnModel, opened: Pictures, denoising: Denoising) -> list[Image.Image]:
    """The try-on's results, one per seed. Raises ValueError for what cannot be dressed."""
    pictures = opened.person, opened.garment, opened.mask
    with progress_bar(denoising.steps, "denoising", visible=True) as bar:
        results = try_on(
            model, *pictures, opened.category, steps=denoising.steps, guidance=denoising.guidance,
            seeds=denoising.seeds, each_step=lambda step: bar.update(),
        )  # fmt: skip
    find_parts = denoising.find_parts
    if find_parts is None:
        return results
    before = find_parts(opened.person)
    return [
        given_back(opened.person, result, opened.mask, opened.category, before, find_parts(result))
        for result in results
    ]


def dress(
    model: TryOnModel, opened: Pictures, denoising: Denoising, request: Request, recipe: Recipe
) -> list[Image.Image]:
    """Writes the results of the try-on that was asked for, with their recipes, and returns them. recipe: what all
    try-ons share. Raises ValueError for what cannot be dressed or written."""
    if denoising.find_parts and request.category is None:
        raise ValueError("to give back what was hidden for nothing the garment's category must be known: give it")
    results = draw(model, opened, denoising)
    save_results(results, denoising.seeds, request.output, with_request(recipe, request), "output_tryon")
    return results


def take_off_garment(
    model: TryOnModel, person: Image.Image, category: Category, denoising: Denoising, output: Path, recipe: Recipe
) -> None:
    """Writes product pictures of the garment of a category that the person wears, with their recipes. recipe: what
    they share."""
    with progress_bar(denoising.steps, "denoising", visible=True) as bar:
        results = take_off(
            model, person, category, steps=denoising.steps, guidance=denoising.guidance, seeds=denoising.seeds,
            each_step=lambda step: bar.update(),
        )  # fmt: skip
    save_results(results, denoising.seeds, output, recipe, "output")


def save_results(results: list[Image.Image], seeds: range, output: Path, recipe: Recipe, flag: str) -> None:
    """Writes results, one per seed, with their recipes. flag: the one of OUTPUTS that names the file. Raises ValueError
    where one cannot be written."""
    for seed, result, file in zip(seeds, results, results_of(output, seeds), strict=True):
        save_picture(result, file, of_result(recipe, seed, file, flag))
        logger.info("wrote %s (seed %d; %d x %d pixels, height x width)", file, seed, result.height, result.width)


def grid_row(opened: Pictures, results: list[Image.Image], size: tuple[int, int]) -> tuple[str, list[Image.Image]]:
    """A try-on as a row of the grid, everything fitted into panels of a size, height and width."""
    masked = Image.composite(Image.new("RGB", opened.mask.size, "grey"), opened.person, opened.mask)
    shown = (opened.garment, opened.person, masked, *results)
    return opened.category, [to_picture(fit_picture(picture, *size)) for picture in shown]


def dress_pairs(
    load: Callable[[], TryOnModel], open_request: Callable[[Request], Pictures], requests: dict[int, Request],
    made: set[int], denoising: Denoising, size: tuple[int, int], shown: int, recipe: Recipe,
) -> tuple[list[tuple[str, list[Image.Image]]], set[int]]:  # fmt: skip
    """Dresses what is asked for by lines of a file, but for those that are made; returns the grid's rows, of the first
    `shown` that there are, and the lines that were not dressed, of which it warns.

    load: gives the model, and is called only where there is a line to dress; open_request: see open_pictures; size: of
    the grid's panels, height and width; recipe: see dress.
    """
    rows, failed = [], set()
    with progress_bar(len(requests), "dressing", visible=True, initial=len(made)) as bar:
        for number, request in requests.items():
            if number in made and len(rows) >= shown:
                continue
            with warned_of(number, failed):
                opened = open_request(request)
            model = None if number in failed | made else load()  # what is wrong with the model is no fault of the line
            if number not in failed:
                with warned_of(number, failed):
                    if model is None:
                        results = [read_photograph(file) for file in results_of(request.output, denoising.seeds)]
                    else:
                        person, garment = request.person.name, request.garment.name
                        logger.info("%d of %d: %s in %s", bar.n + 1, len(requests), person, garment)
                        results = dress(model, opened, denoising, request, recipe)
                    if len(rows) < shown:
                        rows.append(grid_row(opened, results, size))
            bar.update(number not in made)
    return rows, failed


def compare(
    config: TryOnConfig, loras: list[tuple[Path, float]], opened: Pictures, denoising: Denoising
) -> list[Image.Image]:
    """The results of one LoRA after the other, each at its strength, from the same noise. Models are loaded again only
    for a LoRA that needs others. Raises ValueError for a LoRA that cannot be used."""
    results, model = [], None
    for number, (lora, scale) in enumerate(loras, 1):
        scaled = replace(config, lora_scale=scale)
        if model and same_models(model, read_facts(lora)):
            model = swap_lora(model, scaled, lora)
        else:
            model = None  # two of them would not fit
            free_memory()
            model = load_try_on(scaled, lora, fold=True)
        logger.info("%d of %d: dressing at strength %g", number, len(loras), scale)
        results += draw(model, opened, denoising)
    return results
