"""Dresses the person of one picture in the garment of another, with a LoRA that was trained here; or many of them.

    python tryon_inference_lora.py --lora runs/<run> --image person.jpg --garment garment.jpg --category lower \
        --output_tryon out.png
    python tryon_inference_lora.py --lora runs/<run> --pairs pairs.csv

What is repainted: --mask, white there; or --worn, the region of what the person wears, from which the mask is made by
the rule that the LoRA was trained with; or, with --category alone, a human parser finds that region.
"""

import csv
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tryon.config import TryOnConfig, mistakes, setting
from tryon.console import MODEL_LIBRARIES, load_libraries, on_terminal, progress_bar, set_up_logging
from tryon.data.category import CATEGORIES, Category
from tryon.entry import run_script
from tryon.flags import parse_flags
from tryon.flux.lora_header import LoraFacts, denoising, lora_on_disk, prompt_category, read_facts

if TYPE_CHECKING:
    from PIL import Image

    from tryon.data.human_parser import Parser
    from tryon.inference.pipeline import TryOnModel

    MakeMask = Callable[[Image.Image, Image.Image | None, Category | None], Image.Image]

logger = logging.getLogger(__name__)

PICTURE_KINDS = (".png", ".jpg", ".jpeg", ".webp")
COLUMNS = {"person": True, "garment": True, "mask": False, "category": False, "output": True}  # whether each is needed
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
    num_results: int = setting(1, "results of each try-on, of which the seeds follow each other", 1, 16)
    seed: int = setting(0, "seed of the first result's noise", 0)
    steps: int | None = setting(None, "denoising steps; as the LoRA was trained for, else 30, if not given", 1)
    guidance_scale: float | None = setting(None, "guidance; as the LoRA was trained for, else 30, if not given", 0)


@dataclass(frozen=True)
class Request:
    """One try-on as it was asked for."""

    person: Path
    garment: Path
    mask: Path | None
    worn: Path | None
    category: Category | None
    output: Path


@dataclass(frozen=True)
class Pictures:
    """What a try-on starts from. mask: "L" of 0 and 255, of the person's size."""

    person: "Image.Image"
    garment: "Image.Image"
    mask: "Image.Image"
    category: Category


def read_settings(argv: list[str]) -> tuple[TryOnConfig, PictureConfig]:
    """The flags, checked. Raises ValueError, in one sentence, for everything that is missing or wrong."""
    description = "Dresses people in garments with a trained LoRA."
    given, of_pictures = parse_flags(argv, "python tryon_inference_lora.py", description, TryOnConfig, PictureConfig)
    config, pictures = TryOnConfig(**given), PictureConfig(**of_pictures)
    problems = ["--lora is missing"] if config.lora is None else []
    if pictures.pairs:
        alone = ("image", "garment", "mask", "worn", "output_tryon")
        problems += [f"--{name} has no place beside --pairs" for name in alone if getattr(pictures, name)]
    else:
        problems += mistakes_of_one(pictures)
    if pictures.output_grid:
        problems += unwritable("--output_grid", Path(pictures.output_grid))
    problems += [*mistakes(config), *mistakes(pictures)]
    if problems:
        raise ValueError("; ".join(problems))
    return config, pictures


def mistakes_of_one(pictures: PictureConfig) -> list[str]:
    """What is wrong with a try-on that is asked for by flags."""
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
        others = {name: getattr(pictures, name) for name in ("image", "garment", "mask", "worn", "output_grid")}
        written = {file.resolve() for file in results_of(output, pictures)}
        problems += [
            f"--output_tryon would overwrite --{name} {path}: name another file"
            for name, path in others.items()
            if path and Path(path).expanduser().resolve() in written
        ]
    return problems


def results_of(output: Path, pictures: PictureConfig) -> list[Path]:
    """The files of a try-on's results, in their order: several are named after their seeds."""
    seeds = range(pictures.seed, pictures.seed + pictures.num_results)
    return [output if len(seeds) == 1 else output.with_stem(f"{output.stem}-seed{seed}") for seed in seeds]


def unwritable(what: str, path: Path) -> list[str]:
    """Why no picture can be written there."""
    problems = []
    if not path.expanduser().absolute().parent.is_dir():
        problems.append(f"{what} {path} lies in a folder that does not exist")
    if path.suffix.lower() not in PICTURE_KINDS:
        problems.append(f"{what} {path} must end in one of {', '.join(PICTURE_KINDS)}")
    return problems


def request_of_flags(pictures: PictureConfig) -> Request:
    """The try-on that the flags ask for."""
    person, garment, output, mask, worn = (
        Path(path).expanduser() if path else None
        for path in (pictures.image, pictures.garment, pictures.output_tryon, pictures.mask, pictures.worn)
    )
    return Request(person, garment, mask, worn, pictures.category, output)


def read_pairs(pictures: PictureConfig) -> list[tuple[int, dict[str, str]]]:
    """The lines of a CSV file of try-ons below its first, which names COLUMNS, with their numbers. Raises ValueError
    for what is wrong with the file as a whole."""
    path = Path(pictures.pairs).expanduser()
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # as spreadsheets write it
            reader = csv.DictReader(file)
            lines = [(reader.line_num, line) for line in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"--pairs {path} cannot be read ({error}): give a CSV file in UTF-8") from error
    columns = set(reader.fieldnames or [])
    if missing := [name for name, needed in COLUMNS.items() if needed and name not in columns]:
        raise ValueError(f"--pairs {path} has no column {', '.join(missing)}: its first line names the columns")
    if unknown := sorted(columns - COLUMNS.keys()):
        raise ValueError(f"--pairs {path} has the column {unknown[0]}: there may be {', '.join(COLUMNS)}")
    if not lines:
        raise ValueError(f"--pairs {path} has no line below its first: give a try-on a line")
    read, written = {path.resolve()}, Counter()
    if pictures.output_grid:
        written[Path(pictures.output_grid).expanduser().resolve()] += 1
    for _, line in lines:
        for name in ("person", "garment", "mask", "output"):
            if cell := (line.get(name) or "").strip():
                file = path.parent / Path(cell).expanduser()
                if name != "output":
                    read.add(file.resolve())
                elif file.name:
                    written.update(each.resolve() for each in results_of(file, pictures))
    if twice := [file for file, count in written.items() if count > 1 or file in read]:
        raise ValueError(f"--pairs {path} reads or writes {twice[0]} too: give each line an output of its own")
    return lines


def request_of_line(line: dict[str, str], folder: Path, category: Category | None) -> Request:
    """The try-on that a line asks for, with paths from the file's folder; category: where the line names none.

    Makes the folder of its output. Raises ValueError for what is missing or wrong.
    """
    if None in line or None in line.values():  # as DictReader tells of a line that is longer or shorter
        raise ValueError("it has not as many cells as the first line: a path with a comma wants quotation marks")
    cells = {name: text.strip() for name, text in line.items()}
    if empty := [name for name, needed in COLUMNS.items() if needed and not cells[name]]:
        raise ValueError(f"its {empty[0]} is empty: name a file")
    paths = {
        name: folder / Path(cells[name]).expanduser() if cells.get(name) else None
        for name in ("person", "garment", "mask", "output")
    }
    try:
        paths["output"].parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the folder of its output {paths['output']} cannot be made ({error.strerror})") from error
    if problems := unwritable("its output", paths["output"]):
        raise ValueError(problems[0])
    return Request(**paths, worn=None, category=cells.get("category") or category)


def mask_maker(config: TryOnConfig, pictures: PictureConfig, facts: LoraFacts | None) -> "MakeMask":
    """A function of the person, the region of what it wears, or None, and the category: the mask by the LoRA's rule.

    The parser is loaded when it is first needed. The function raises ValueError where no mask can be made.
    """
    from tryon.data.human_parser import mask_by_rule, parse, parser_for_masks
    from tryon.inference.pipeline import trained_rule
    from tryon.toy.model import parser_for_try_on

    @cache
    def parser() -> "Parser":
        return parser_for_masks(pictures.parser or parser_for_try_on(config, facts), config.cache_dir)

    def make_mask(person: "Image.Image", worn: "Image.Image | None", category: Category | None) -> "Image.Image":
        rule = trained_rule(facts)
        if category is None:
            raise ValueError("to make a mask the garment's category must be known: give it, or a mask")
        if worn and rule.name == "rectangle" and pictures.parser:
            raise ValueError("--parser is not needed for the rectangles that this LoRA was trained with: leave it out")
        return mask_by_rule(worn, category, rule, lambda: parse(parser(), person))

    return make_mask


def open_pictures(request: Request, facts: LoraFacts | None, make_mask: "MakeMask") -> Pictures:
    """What the try-on starts from. Raises ValueError for what cannot be used."""
    from tryon.data.sample import EMPTY_MASK, UNREADABLE, read_mask, read_picture

    def opened(what: str, path: Path | None, size: tuple[int, int] | None = None) -> "Image.Image | None":
        try:
            if path is None:
                return None
            if not path.is_file():
                raise ValueError("there is no such file")
            return read_mask(path, size) if size else read_picture(path)
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
    if mask.getbbox() is None:
        raise ValueError(EMPTY_MASK)
    if mask.getextrema() == (255, 255):
        logger.warning("the mask is white all over: the whole picture is repainted, the face too")
    return Pictures(person, garment, mask, category)


def dress(model: "TryOnModel", opened: Pictures, pictures: PictureConfig, output: Path) -> "list[Image.Image]":
    """Writes the try-on's results and returns them. Raises ValueError for what cannot be dressed or written."""
    from tryon.inference.pipeline import try_on

    seeds = range(pictures.seed, pictures.seed + pictures.num_results)
    results = try_on(
        model,
        opened.person,
        opened.garment,
        opened.mask,
        opened.category,
        steps=pictures.steps,
        guidance=pictures.guidance_scale,
        seeds=seeds,
    )
    for seed, result, file in zip(seeds, results, results_of(output, pictures), strict=True):
        try:
            result.save(file, quality=95)  # PNG knows none
        except OSError as error:
            raise ValueError(f"{file} cannot be written ({error}): make room, or name another place") from error
        logger.info("wrote %s (seed %d; %d x %d pixels, height x width)", file, seed, result.height, result.width)
    return results


def grid_row(opened: Pictures, results: "list[Image.Image]", size: tuple[int, int]) -> "tuple[str, list[Image.Image]]":
    """A try-on as a row of the grid, everything fitted into panels of a size, height and width."""
    from PIL import Image

    from tryon.data.sample import fit_picture, to_picture

    masked = Image.composite(Image.new("RGB", opened.mask.size, "grey"), opened.person, opened.mask)
    shown = (opened.garment, opened.person, masked, *results)
    return opened.category, [to_picture(fit_picture(picture, *size)) for picture in shown]


def dress_pairs(
    model: "TryOnModel", lines: list[tuple[int, dict[str, str]]], pictures: PictureConfig, make_mask: "MakeMask"
) -> "tuple[list[tuple[str, list[Image.Image]]], list[str]]":
    """Dresses line by line; returns the grid's rows, and what is wrong with the lines that could not be."""
    folder, rows, failed = Path(pictures.pairs).expanduser().parent, [], []
    bar = progress_bar(len(lines), "dressing", visible=True)
    for number, line in lines:
        try:
            request = request_of_line(line, folder, pictures.category)
            opened = open_pictures(request, model.facts, make_mask)
            results = dress(model, opened, pictures, request.output)
        except ValueError as error:
            logger.warning("line %d: %s", number, error)
            failed.append(f"line {number}: {error}")
        else:
            if pictures.output_grid and len(rows) < GRID_ROWS:
                rows.append(grid_row(opened, results, model.size))
        bar.update()
    bar.close()
    return rows, failed


def main(argv: list[str]) -> None:
    config, pictures = read_settings(argv)
    lines = read_pairs(pictures) if pictures.pairs else []
    set_up_logging(is_main_process=True)
    lora = lora_on_disk(config.lora, config.cache_dir)
    facts = read_facts(lora)
    if not pictures.pairs:
        prompt_category(facts, pictures.category)  # refused before anything is loaded

    load_libraries(*MODEL_LIBRARIES)
    from tryon.data.grid import draw_grid
    from tryon.inference.pipeline import load_try_on
    from tryon.toy.model import use_toy_model_for_try_on

    config = use_toy_model_for_try_on(config, facts)
    steps, guidance = denoising(facts, pictures.steps, pictures.guidance_scale)
    pictures = replace(pictures, steps=steps, guidance_scale=guidance)
    make_mask = mask_maker(config, pictures, facts)
    if pictures.pairs:
        model = load_try_on(config, lora, fold=True)
        logger.info("%d pairs, %d steps at guidance %g", len(lines), steps, guidance)
        rows, failed = dress_pairs(model, lines, pictures, make_mask)
    else:
        request, failed = request_of_flags(pictures), []
        opened = open_pictures(request, facts, make_mask)  # before the models, which take minutes to load
        model = load_try_on(config, lora, fold=True)
        logger.info("dressing, %d steps at guidance %g", steps, guidance)
        if on_terminal():
            model.pipeline.set_progress_bar_config(disable=False, desc="dressing", leave=False, ncols=110)
        rows = [grid_row(opened, dress(model, opened, pictures, request.output), model.size)]

    if pictures.output_grid and rows:
        seeds = [f"seed {pictures.seed + index}" for index in range(pictures.num_results)]
        draw_grid(["garment", "person", "masked", *seeds], rows).save(Path(pictures.output_grid).expanduser())
        logger.info("wrote %s", pictures.output_grid)
    if failed:
        raise ValueError(f"{len(failed)} of {len(lines)} pairs were not dressed: {'; '.join(failed)}")


if __name__ == "__main__":
    run_script(main)
