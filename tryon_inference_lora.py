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
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tryon.cli import parse, parse_flags, run_script
from tryon.config import MOST_DENOISING, MOST_GUIDANCE, MOST_SEED, TryOnConfig, setting
from tryon.console import MODEL_LIBRARIES, load_libraries, set_up_logging
from tryon.flux.lora_header import (
    LoraFacts,
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
    Recipe,
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

if TYPE_CHECKING:
    from PIL import Image

    from tryon.inference.dressing import Denoising, Pictures
    from tryon.inference.pipeline import TryOnModel

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
    given = [name for name in (*OF_ONE, "give_back", "pairs", "output_tryon", "output_grid") if getattr(pictures, name)]
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


def file_of(flag: str | None) -> Path | None:
    """The file or folder that a flag names; None where it is not given."""
    return Path(flag).expanduser() if flag else None


def seeds_of(pictures: PictureConfig) -> range:
    """The seeds of a try-on's results, in their order."""
    return range(pictures.seed, pictures.seed + pictures.num_results)


def request_of_flags(pictures: PictureConfig) -> Request:
    """The try-on that the flags ask for."""
    read = map(file_of, (pictures.image, pictures.garment, pictures.mask, pictures.worn))
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


@dataclass(frozen=True, kw_only=True)
class Work:
    """What the flags come to once the LoRAs' headers are read.

    config: with the panel's size. loras: their files, by the names given. facts, steps, guidance: the first LoRA's,
    which count for all where several are compared; others: the other ones' facts. recipe: what all results share.
    fingerprints: where a picture is made again, those of the files that it was made from.
    """

    config: TryOnConfig
    pictures: PictureConfig
    loras: dict[str, Path]
    facts: LoraFacts
    others: list[LoraFacts]
    steps: int
    guidance: float
    recipe: Recipe
    fingerprints: dict[str, str]

    @property
    def lora(self) -> Path:
        """The first one."""
        return next(iter(self.loras.values()))

    @property
    def seeds(self) -> range:
        return seeds_of(self.pictures)

    @property
    def panel(self) -> tuple[int, int]:
        """Height and width."""
        return self.config.height, self.config.width

    @property
    def grid(self) -> Path | None:
        return file_of(self.pictures.output_grid)

    @property
    def denoising_in_words(self) -> str:
        return f"{plural(self.steps, 'step')} at guidance {self.guidance:g}"

    def checked(self, recipe: Recipe) -> Recipe:
        """The recipe. Raises ValueError where a picture is made again and a file that the recipe names has changed."""
        check_unchanged(recipe, self.fingerprints, self.pictures.again)
        return recipe


def read_loras(config: TryOnConfig, pictures: PictureConfig, fingerprints: dict[str, str]) -> Work:
    """What the flags come to. Raises ValueError for a LoRA that is not there or cannot be used."""
    loras = {name: lora_on_disk(name, config.cache_dir) for name in pictures.lora if name != BASE}
    facts, *others = map(read_facts, loras.values())
    height, width = panel_size(config, facts)
    config = replace(config, height=height, width=width)
    steps, guidance = denoising(facts, pictures.steps, pictures.guidance_scale)
    flags = asdict(config) | asdict(pictures) | {"steps": steps, "guidance_scale": guidance}
    flags["toy"] = is_for_toy(config, facts)
    flags["give_back"] = pictures.give_back or None  # left out, as pictures that were made before it was there do
    return Work(
        config=config, pictures=pictures, loras=loras, facts=facts, others=others, steps=steps, guidance=guidance,
        recipe=recipe_of(loras, flags), fingerprints=fingerprints,
    )  # fmt: skip


def main(argv: list[str]) -> None:
    # What can be refused is refused before anything heavy is imported.
    config, pictures, fingerprints = read_settings(argv)
    pairs = file_of(pictures.pairs)
    lines = read_pairs(pairs, seeds_of(pictures), file_of(pictures.output_grid)) if pairs else []
    set_up_logging(is_main_process=True)
    work = read_loras(config, pictures, fingerprints)
    if pictures.take_off:
        take_off_one(work)
    elif pairs:
        dress_all(work, lines)
    else:
        dress_one(work)


def take_off_one(work: Work) -> None:
    """Paints the product picture of what a person wears."""
    picture, category = file_of(work.pictures.take_off), work.pictures.category
    check_takes_off(work.facts, category)
    recipe = work.checked(with_files(work.recipe, {"take_off": picture}))

    load_libraries(*MODEL_LIBRARIES)
    from tryon.inference.dressing import Denoising, open_picture, take_off_garment

    work = with_base_models(work)
    person = open_picture("person", picture)  # before the models, which take minutes to load
    how = Denoising(work.steps, work.guidance, work.seeds)
    model = load_model(work, "taking off")
    take_off_garment(model, person, category, how, file_of(work.pictures.output), recipe)


def dress_one(work: Work) -> None:
    """Dresses one person, with one LoRA or with several, which are compared."""
    pictures, request = work.pictures, request_of_flags(work.pictures)
    for facts in (work.facts, *work.others):
        prompt_category(facts, pictures.category)
    recipe = work.checked(with_request(work.recipe, request))

    load_libraries(*MODEL_LIBRARIES)
    from tryon.inference.dressing import compare, dress, grid_row

    work = with_base_models(work)
    how, open_request = prepare_dressing(work)
    opened = open_request(request)  # before the models, which take minutes to load
    if pictures.output_tryon:
        results = dress(load_model(work, "dressing"), opened, how, request, work.recipe)
    else:
        compared = [
            (work.loras.get(name, work.lora), 0 if name == BASE else work.config.lora_scale) for name in pictures.lora
        ]
        logger.info("comparing, %s: %s", work.denoising_in_words, "; ".join(work.recipe.loras))
        results = compare(work.config, compared, opened, how)
    write_grid(work, [grid_row(opened, results, work.panel)], recipe)


def dress_all(work: Work, lines: list[tuple[int, dict[str, str]]]) -> None:
    """Dresses the pairs of a file's lines whose results are not there yet. Raises ValueError in the end where there are
    lines that could not be dressed."""
    pairs = file_of(work.pictures.pairs)
    recipe = work.checked(with_files(work.recipe, {"pairs": pairs}))
    requests = requests_of(lines, pairs.parent, work.pictures.category)
    made = {
        line for line, each in requests.items() if is_made(with_request(work.recipe, each), each.output, work.seeds)
    }
    logger.info("%s, %d of them made already", plural(len(lines), "pair"), len(made))
    undressed = {number for number, _ in lines} - requests.keys()
    if len(made) < len(requests) or work.grid:
        load_libraries(*MODEL_LIBRARIES)
        from tryon.inference.dressing import possible

        dressed = possible(requests, work.facts)
        undressed |= requests.keys() - dressed.keys()
        if dressed.keys() - made or (dressed and work.grid):
            undressed |= dress_requests(work, dressed, made, recipe)
    check_all_dressed(undressed, len(lines))


def dress_requests(work: Work, requests: dict[int, Request], made: set[int], recipe: Recipe) -> set[int]:
    """Dresses what lines of a file ask for, but for those that are made, and writes the grid of all. Returns the lines
    that were not dressed. recipe: the grid's."""
    from tryon.inference.dressing import dress_pairs

    work = with_base_models(work)
    how, open_request = prepare_dressing(work)
    load, shown = cache(lambda: load_model(work, "dressing")), GRID_ROWS if work.grid else 0
    rows, failed = dress_pairs(load, open_request, requests, made, how, work.panel, shown, work.recipe)
    write_grid(work, rows, recipe)
    return failed


def with_base_models(work: Work) -> Work:
    """With the paths of the toy's models where the LoRA was trained on them, which are written where they are not there
    yet."""
    from tryon.toy.model import use_toy_model_for_try_on

    return replace(work, config=use_toy_model_for_try_on(work.config, work.facts))


def prepare_dressing(work: Work) -> tuple["Denoising", Callable[[Request], "Pictures"]]:
    """How results are drawn, and a function that opens what a try-on starts from, and makes its mask."""
    from tryon.inference.dressing import Denoising, mask_maker, open_pictures, part_finder, part_finder_at_hand
    from tryon.toy.model import parser_for_try_on

    pictures, cache_dir = work.pictures, work.config.cache_dir
    parser, give_back = pictures.parser or parser_for_try_on(work.config, work.facts), pictures.give_back
    find_parts = part_finder(parser, cache_dir, at_once=give_back)  # before the models, which take minutes to load
    at_hand = part_finder_at_hand(find_parts, parser, cache_dir)
    make_mask = mask_maker(work.facts, find_parts, needless=pictures.parser is not None and not give_back)
    how = Denoising(work.steps, work.guidance, work.seeds, find_parts if give_back else None)
    return how, lambda request: open_pictures(request, work.facts, make_mask, at_hand)


def load_model(work: Work, doing: str) -> "TryOnModel":
    """The models with the first LoRA on them."""
    from tryon.inference.pipeline import load_try_on

    model = load_try_on(work.config, work.lora, fold=True)
    logger.info("%s, %s", doing, work.denoising_in_words)
    return model


def write_grid(work: Work, rows: list[tuple[str, list["Image.Image"]]], recipe: Recipe) -> None:
    """Writes the grid where one is asked for and there is something to show."""
    if work.grid and rows:
        from tryon.data.grid import draw_grid

        headings = ["garment", "person", "masked", *columns_of(work.recipe.loras, work.seeds)]
        save_picture(draw_grid(headings, rows), work.grid, with_output(recipe, "output_grid", work.grid))
        logger.info("wrote %s", work.grid)


if __name__ == "__main__":
    run_script(main)
