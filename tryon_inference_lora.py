"""Dresses the person of one picture in the garment of another, with a LoRA that was trained here; or many of them.

    python tryon_inference_lora.py --lora runs/<run> --image person.jpg --garment garment.jpg --category lower \
        --output_tryon out.png
    python tryon_inference_lora.py --lora base runs/<run> runs/<other> --image ... --output_grid compared.png
    python tryon_inference_lora.py --lora runs/<run> --pairs pairs.csv
    python tryon_inference_lora.py --lora runs/<run> --take_off person.jpg --category lower --output garment.png
    python tryon_inference_lora.py --again out.png

--take_off goes the other way: it paints the product picture of what the person wears, with a LoRA that was trained for
both.

What is repainted: --mask, white there; or --worn, the region of what the person wears, from which the mask is made by
the rule that the LoRA was trained with; or, with --category alone, a human parser finds that region.
"""

import logging
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from tryon.cli import parse, parse_flags, run_script
from tryon.config import MOST_DENOISING, MOST_GUIDANCE, MOST_SEED, TryOnConfig, setting
from tryon.console import MODEL_LIBRARIES, load_libraries, set_up_logging
from tryon.flux.lora_header import (
    check_takes_off,
    denoising,
    is_for_toy,
    lora_on_disk,
    panel_size,
    prompt_category,
    read_facts,
)
from tryon.inference.pairs_file import Request, read_pairs, requests_of, results_of, unwritable
from tryon.inference.recipe import (
    BASE,
    OF_ONE,
    OUTPUTS,
    as_arguments,
    check_unchanged,
    is_made,
    read_recipe,
    recipe_of,
    save_picture,
    with_files,
    with_output,
    with_request,
    without,
)
from tryon.units import plural

logger = logging.getLogger(__name__)

COMMAND = "python tryon_inference_lora.py", "Dresses people in garments with trained LoRAs."
GRID_ROWS = 20  # more would be a picture that few programs open


@dataclass(frozen=True, kw_only=True)
class PictureConfig:
    """Which LoRAs are used, which pictures are read and written, and how the new ones are drawn."""

    lora: tuple[str, ...] = setting(
        (),
        "a run, a folder of runs (its newest), a checkpoint, a .safetensors file or a hub name; several are compared "
        f"in --output_grid, and {BASE} among them is the model without a LoRA",
        needed=True,
    )
    again: str | None = setting(
        None, "picture that was written here: the flags that it was made with count where no others are given"
    )
    image: str | None = setting(None, "picture of the person; needed, or --pairs")
    garment: str | None = setting(
        None,
        "picture of the garment, alone, or worn by somebody where the LoRA was trained with --worn_reference_share; "
        "needed, or --pairs",
    )
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
    give_back: bool = setting(
        False, "give back what the mask hid for nothing: background, limbs and other garments that a human parser sees "
        "in the same place before and after",
    )  # fmt: skip
    output_tryon: str | None = setting(
        None, "where the dressed person is written; needed, or --output_grid, or --pairs"
    )
    pairs: str | None = setting(
        None,
        "CSV file with the columns person, garment and output, and perhaps mask and category: a try-on a line; paths "
        "are taken from the file's folder; results that are there already are not made again",
    )
    take_off: str | None = setting(
        None,
        "picture of a person, of which the garment of the --category is painted as a shop shows it, in place of a "
        "try-on; the LoRA has to be trained for it",
    )
    output: str | None = setting(None, "where the picture of --take_off is written; needed beside it")
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
    if set(pictures.lora) == {BASE}:
        return [f"--lora {BASE} is the model of another LoRA: name that one too"]
    if pictures.take_off:
        return problems_of_try_off(pictures)
    if pictures.pairs:
        given = [name for name in ("image", "garment", "mask", "worn", "output_tryon") if getattr(pictures, name)]
        problems = [f"--{name} is for a single try-on: leave it out with --pairs" for name in given]
        if len(pictures.lora) > 1:
            problems.append("--pairs are dressed with one LoRA: name one, or compare several on a single try-on")
    else:
        problems = problems_of_one(pictures)
    if pictures.output:
        problems.append("--output is for --take_off: name the file with --output_tryon or --output_grid")
    if pictures.output_grid:
        problems += unwritable("--output_grid", Path(pictures.output_grid))
    return problems


def problems_of_one(pictures: PictureConfig) -> list[str]:
    """What is wrong with the flags of a single try-on."""
    problems = [f"--{name} is missing" for name in ("image", "garment") if not getattr(pictures, name)]
    if len(pictures.lora) > 1:
        if pictures.output_tryon:
            problems.append("several LoRAs are compared in --output_grid: leave --output_tryon out")
        elif not pictures.output_grid:
            problems.append("--output_grid is missing")
    elif not (pictures.output_tryon or pictures.output_grid):
        problems.append("--output_tryon is missing")
    if pictures.mask and pictures.worn:
        problems.append("give either --mask or --worn")
    if pictures.give_back and pictures.category is None:
        problems.append("--give_back is without --category, which says what had to change: upper, lower or full")
    if pictures.mask and pictures.parser and not pictures.give_back:
        problems.append("--parser has no use with --mask")
    if not pictures.mask and pictures.category is None:
        problems.append("give --mask, or say --category upper, lower or full, from which one is made")
    for name in ("image", "mask", "worn", "garment"):
        path = getattr(pictures, name)
        if path is not None and not Path(path).expanduser().is_file():
            problems.append(f"--{name} {path} is no file")
    written = {"output_grid": [Path(pictures.output_grid).expanduser()]} if pictures.output_grid else {}
    if pictures.output_tryon:
        output = Path(pictures.output_tryon).expanduser()
        problems += unwritable("--output_tryon", output)
        written["output_tryon"] = results_of(output, seeds_of(pictures))
    return [*problems, *overwritten(pictures, written)]


def problems_of_try_off(pictures: PictureConfig) -> list[str]:
    """What is wrong with the flags of a try-off."""
    given = [name for name in (*OF_ONE, "pairs", "output_tryon", "output_grid") if getattr(pictures, name)]
    problems = [f"--{name} has no use with --take_off: leave it out" for name in given]
    problems += [f"--{name} is missing" for name in ("category", "output") if not getattr(pictures, name)]
    if len(pictures.lora) > 1:
        problems.append("--take_off works with one LoRA: name one")
    if not Path(pictures.take_off).expanduser().is_file():
        problems.append(f"--take_off {pictures.take_off} is no file")
    if pictures.output:
        output = Path(pictures.output).expanduser()
        problems += unwritable("--output", output)
        problems += overwritten(pictures, {"output": results_of(output, seeds_of(pictures))})
    return problems


def overwritten(pictures: PictureConfig, written: dict[str, list[Path]]) -> list[str]:
    """What is wrong where a file that is written is one that another flag names. written: files, by their flags."""
    problems = []
    for output, files in written.items():
        resolved = {file.resolve() for file in files}
        for name in ("image", "garment", "mask", "worn", "take_off", "output_grid"):
            path = getattr(pictures, name)
            if name != output and path and Path(path).expanduser().resolve() in resolved:
                problems.append(f"--{output} would overwrite --{name} {path}: name another file")
    return problems


def seeds_of(pictures: PictureConfig) -> range:
    """The seeds of a try-on's results, in their order."""
    return range(pictures.seed, pictures.seed + pictures.num_results)


def request_of_flags(pictures: PictureConfig) -> Request:
    """The try-on that the flags ask for."""
    given = (pictures.image, pictures.garment, pictures.mask, pictures.worn)
    read = (Path(path).expanduser() if path else None for path in given)
    return Request(*read, pictures.category, Path(pictures.output_tryon or "").expanduser())


def read_settings(argv: list[str]) -> tuple[TryOnConfig, PictureConfig, dict[str, str]]:
    """The flags, checked, among them those of --again, where no others are given, its output beside the picture; and
    what the fingerprints of the files that these name have to be. Raises ValueError, in one sentence, for everything
    that is missing or wrong, and where the output beside the picture is there already."""
    command = *COMMAND, TryOnConfig, PictureConfig
    given = {name: value for flags in parse_flags(argv, *command) for name, value in flags.items()}
    if not given.get("again"):
        return *parse(argv, *command, problems=problems_of), {}
    again = Path(given["again"]).expanduser()
    if not again.is_file():
        raise ValueError(f"--again {again} is no file")
    if (recipe := read_recipe(again)) is None:
        raise ValueError(f"--again {again} does not say how it was made: give a picture that was written here")
    compares = len(given.get("lora", ())) > 1
    output = "output_grid" if compares else next((name for name in OUTPUTS if name in recipe.flags), "output_tryon")
    beside = again.with_stem(f"{again.stem}-{'compared' if compares else 'again'}")
    recipe = without(replace(recipe, flags=without(recipe, OUTPUTS).flags | {output: str(beside)}), given)
    config, pictures = parse([*as_arguments(recipe.flags), *argv], *command, problems=problems_of)
    if output in recipe.flags:  # its name was not given
        files = [beside] if output == "output_grid" else results_of(beside, seeds_of(pictures))
        if there := [file for file in files if file.exists()]:
            raise ValueError(f"{there[0]} is there already: name another file with --{output}")
    return config, pictures, recipe.fingerprints


def columns_of(loras: Sequence[str], seeds: range) -> list[str]:
    """The headings of the grid's results."""
    if len(loras) == 1:
        return [f"seed {seed}" for seed in seeds]
    return [f"{lora}, seed {seed}" if len(seeds) > 1 else lora for lora in loras for seed in seeds]


def check_all_dressed(failed: Collection[int], lines: int) -> None:
    """Raises ValueError, which names them, where some of the lines of --pairs, each warned of, were not dressed."""
    if failed:
        were, numbers = "was" if len(failed) == 1 else "were", ", ".join(map(str, sorted(failed)))
        raise ValueError(
            f"{len(failed)} of {plural(lines, 'pair')} {were} not dressed, as is said above: line {numbers}"
        )


def main(argv: list[str]) -> None:
    # What can be refused is refused before anything heavy is imported.
    config, pictures, fingerprints = read_settings(argv)
    paths = pictures.pairs, pictures.output_grid, pictures.take_off
    pairs, grid, taken_off = (Path(path).expanduser() if path else None for path in paths)
    seeds, undressed = seeds_of(pictures), set()
    lines = read_pairs(pairs, seeds, grid) if pairs else []
    set_up_logging(is_main_process=True)
    loras = {name: lora_on_disk(name, config.cache_dir) for name in pictures.lora if name != BASE}
    facts, *others = map(read_facts, loras.values())
    size = panel_size(config, facts)
    steps, guidance = denoising(facts, pictures.steps, pictures.guidance_scale)
    config = replace(config, height=size[0], width=size[1])  # where LoRAs are compared, the first one's for all
    flags = asdict(config) | asdict(pictures) | {"steps": steps, "guidance_scale": guidance}
    flags["toy"] = is_for_toy(config, facts)
    flags["give_back"] = pictures.give_back or None  # left out, as pictures that were made before it was there do
    shared = recipe_of(loras, flags)
    if pairs:
        recipe = with_files(shared, {"pairs": pairs})
    elif taken_off:
        check_takes_off(facts, pictures.category)
        recipe = with_files(shared, {"take_off": taken_off})
    else:
        for each in (facts, *others):
            prompt_category(each, pictures.category)
        request = request_of_flags(pictures)
        recipe = with_request(shared, request)
    check_unchanged(recipe, fingerprints, pictures.again)
    if pairs:
        requests = requests_of(lines, pairs.parent, pictures.category)
        made = {line for line, each in requests.items() if is_made(with_request(shared, each), each.output, seeds)}
        logger.info("%s, %d of them made already", plural(len(lines), "pair"), len(made))
        undressed = {number for number, _ in lines} - requests.keys()
        if len(made) == len(requests) and not grid:
            check_all_dressed(undressed, len(lines))
            return

    load_libraries(*MODEL_LIBRARIES)
    from tryon.data.grid import draw_grid
    from tryon.inference.dressing import (
        Denoising,
        Pictures,
        compare,
        dress,
        dress_pairs,
        grid_row,
        mask_maker,
        open_picture,
        open_pictures,
        part_finder,
        part_finder_at_hand,
        possible,
        take_off_garment,
    )
    from tryon.inference.pipeline import TryOnModel, load_try_on
    from tryon.toy.model import parser_for_try_on, use_toy_model_for_try_on

    if pairs:
        requests = possible(requests, facts)
        undressed = {number for number, _ in lines} - requests.keys()
        if not requests or (requests.keys() <= made and not grid):
            check_all_dressed(undressed, len(lines))
    config = use_toy_model_for_try_on(config, facts)
    parser, give_back = pictures.parser or parser_for_try_on(config, facts), pictures.give_back
    find_parts = part_finder(parser, config.cache_dir, at_once=give_back)  # before the models, which take minutes
    at_hand = part_finder_at_hand(find_parts, parser, config.cache_dir)
    how, first = Denoising(steps, guidance, seeds, find_parts if give_back else None), next(iter(loras.values()))
    make_mask = mask_maker(facts, find_parts, needless=pictures.parser is not None and not give_back)
    words = f"{plural(steps, 'step')} at guidance {guidance:g}"

    def open_request(request: Request) -> Pictures:
        return open_pictures(request, facts, make_mask, at_hand)

    @cache
    def load_to_dress() -> TryOnModel:
        model = load_try_on(config, first, fold=True)
        logger.info("dressing, %s", words)
        return model

    if taken_off:
        person = open_picture("person", taken_off)
        model = load_try_on(config, first, fold=True)
        logger.info("taking off, %s", words)
        output = Path(pictures.output).expanduser()
        take_off_garment(model, person, pictures.category, how, output, recipe)
        return
    if pairs:
        shown = GRID_ROWS if grid else 0
        rows, failed = dress_pairs(load_to_dress, open_request, requests, made, how, size, shown, shared)
        undressed |= failed
    else:
        opened = open_request(request)  # before the models, which take minutes to load
        if pictures.output_tryon:
            results = dress(load_to_dress(), opened, how, request, shared)
        else:
            compared = [(loras.get(name, first), 0 if name == BASE else config.lora_scale) for name in pictures.lora]
            logger.info("comparing, %s: %s", words, "; ".join(shared.loras))
            results = compare(config, compared, opened, how)
        rows = [grid_row(opened, results, size)]
    if grid and rows:
        headings = ["garment", "person", "masked", *columns_of(shared.loras, seeds)]
        save_picture(draw_grid(headings, rows), grid, with_output(recipe, "output_grid", grid))
        logger.info("wrote %s", grid)
    check_all_dressed(undressed, len(lines))


if __name__ == "__main__":
    run_script(main)
