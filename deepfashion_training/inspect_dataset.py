"""Inspects a data set before training: a summary, a page of pictures, and a verdict.

    python -m deepfashion_training.inspect_dataset <data set>

Columns, poses, categories, views, references and split are read without decoding a picture. Then every picture is
decoded once, and its mask measured. The exit code is 0 where training can begin.
"""

import io
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepfashion_training.preflight import DATA_SET, REFERENCES, DataConfig, checked_data, from_settings
from tryon.cli import parse, run_script
from tryon.config import MOST, MOST_SEED, PROJECT, MaskConfig, TrainConfig, setting
from tryon.console import load_libraries, set_up_logging
from tryon.pages import jpeg_url, render
from tryon.units import plural

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL import Image

    from deepfashion_training.deepfashion_dataset import DeepFashionData
    from deepfashion_training.pairing import Columns, Pair

logger = logging.getLogger(__name__)

SMALL = 100  # pairs; with fewer a training learns little
RARE = 0.05  # of all pairs; a category with fewer is rare
GREY = (8, 247)  # values of a mask between these are noise or soft edges
NOISY = 0.01  # a mask with a larger share of grey pixels counts as noisy
CENTRES = {"upper": (0.0, 0.7), "lower": (0.3, 1.0), "full": (0.2, 0.8)}  # heights in which a garment's middle may be
TOO_LARGE = 0.25  # a mask with a larger share of its outline in even colour is larger than its garment
PAIRS_SHOWN = 8  # of each category, on the page
MOST_SHOWN = 8  # rows or values that a line names
THUMBNAIL = 240  # pixels of height


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """What is inspected, and where the page is written. Seed and limits have to be those of the training."""

    data_set: str = setting(None, DATA_SET, positional=True)
    page: str | None = setting(None, "where the page is written (default runs/inspection_<name>.html)")
    seed: int = setting(TrainConfig.seed, "seed of the split", 0, MOST_SEED)
    max_train_samples: int | None = setting(None, "train on the first N samples only", 1, MOST)
    max_validation_samples: int = setting(TrainConfig.max_validation_samples, "validate on at most N samples", 1, MOST)
    data_cache_dir: str = setting(TrainConfig.data_cache_dir, "where the colours of garments are kept between runs")
    cache_dir: str | None = setting(None, "where the hub's files are kept; the hub's own default if not given")


@dataclass(frozen=True)
class Findings:
    """lines: what the data hold. warnings: what may harm the training. faults: why it cannot begin."""

    lines: list[str]
    warnings: list[str]
    faults: list[str]


def read_settings(argv: list[str]) -> tuple[InspectConfig, DataConfig, MaskConfig]:
    """The flags, checked. Raises ValueError, in one sentence, for everything that is missing or wrong."""
    command = "python -m deepfashion_training.inspect_dataset <data set>"
    description = "Reports what a data set holds, and whether training can begin."
    config, data, masks = parse(argv, command, description, InspectConfig, DataConfig, MaskConfig, problems=problems_of)
    return config, checked_data(replace(data, dataset_name=config.data_set), masks, toy=False), masks


def problems_of(config: InspectConfig, data: DataConfig, masks: MaskConfig) -> Iterator[str]:
    """What is wrong with the flags beyond single values."""
    if data.dataset_name:
        yield f"--dataset_name {data.dataset_name} was given: name the data set without a flag"


def describe(train: "DeepFashionData", validation: "DeepFashionData") -> Findings:
    """The findings that need no picture decoded."""
    from deepfashion_training.deepfashion_dataset import counts
    from deepfashion_training.pairing import CAPTION_RULES, cloth_types, column_of, is_flat, known_type
    from tryon.data.category import CATEGORIES

    table, columns, pairs = train.table, train.columns, [*train.pairs, *validation.pairs]
    poses = column_of(table, columns.pose) if columns.pose else [None] * len(table)
    kinds = cloth_types(table, columns)
    uses = ", ".join(f"{name} as {use}" for use, name in vars(columns).items() if name)
    lines = [f"rows: {len(table)}, columns: {uses}"]
    if columns.pose:
        lines.append("poses: " + _in_words(Counter(poses)))
    settled: dict[Any, Counter] = defaultdict(Counter)
    for pair in pairs:
        settled[kinds[pair.row]][pair.category] += 1
    for kind, found in sorted(settled.items(), key=lambda item: -item[1].total()):
        how = "; the captions decided" if known_type(kind) in CAPTION_RULES else ""
        lines.append(f"cloth_type {kind}: {counts(found)}{how}")
    views = Counter(Counter(pair.pid for pair in pairs).values())
    sizes = ", ".join(f"{count} with {plural(size, 'view')}" for size, count in sorted(views.items()))
    lines.append(f"items: {views.total()} ({sizes})")
    lines.append(f"flat views, used as garments only: {sum(map(is_flat, poses))}")
    shown = {name: Counter(pair.category for pair in pairs if pair.reference == name) for name in REFERENCES}
    lines += [f"garment shown by {name}: {counts(found)}" for name, found in shown.items() if found]
    for what, data in (("training", train), ("validation", validation)):
        found = Counter(pair.category for pair in data.pairs)
        lines.append(f"{what}: {plural(len(data.pairs), 'pair')} ({counts(found)})")

    warnings = [f"only {plural(len(train.pairs), 'pair')} to train on"] if len(train.pairs) < SMALL else []
    found = Counter(pair.category for pair in train.pairs)
    rare = [category for category in CATEGORIES if found[category] < RARE * len(train.pairs)]
    warnings += [f"{found[category]} of {len(train.pairs)} training pairs are {category}" for category in rare]
    faults = [] if validation.pairs else ["there is nothing to validate on"]
    return Findings(lines, warnings, faults)


def look_at_rows(table: "Dataset", columns: "Columns", rows: list[int]) -> list[dict[str, Any]]:
    """For each row what is wrong with its picture, mask and garment, by name, empty where nothing is; and, where
    picture and mask can be read, what `measure` returns, a digest, and whether the mask has to be resized."""
    from deepfashion_training.pairing import content
    from tryon.data.sample import UNREADABLE, open_picture, read_mask, read_picture, upright_size

    found = []
    for values in (table[row] for row in rows):
        files = {name: content(values[column]) for name, column in vars(columns).items()
                 if column and name in ("person", "mask", "garment")}  # fmt: skip
        row: dict[str, Any] = dict.fromkeys(files, "")
        person = None
        for name, file in files.items():
            try:
                if name != "mask":
                    picture = read_picture(io.BytesIO(file))
                    person = picture if name == "person" else person
                elif person:
                    worn = read_mask(io.BytesIO(file), person.size)
                    if worn.getbbox() is None:
                        raise ValueError("the garment's mask is empty")
            except UNREADABLE as error:
                row[name] = str(error)
        if not row["person"] and not row["mask"]:
            row["digest"] = sha256(files["person"]).hexdigest()
            row["resized"] = upright_size(io.BytesIO(files["mask"])) != person.size
            row |= measure(person, worn, open_picture(io.BytesIO(files["mask"])))
        found.append(row)
    return found


def measure(person: "Image.Image", worn: "Image.Image", raw: "Image.Image") -> dict[str, Any]:
    """Measures a picture and its mask. worn: the mask as it is used, "L" of 0 and 255; raw: as it is stored.

    noise: share of grey pixels. area, middle: the garment's share of the picture, and height of its middle, 0..1.
    still: share of the mask's outline around which no colour changes.
    """
    import numpy as np

    from tryon.data.outline import outline_on_edges

    values, inside = np.asarray(raw.convert("L")), np.asarray(worn) > 0
    rows = np.flatnonzero(inside.any(1))
    on_edges = outline_on_edges(person, worn)
    return {
        "size": person.size,
        "mask_mode": raw.mode,
        "noise": float(((values > GREY[0]) & (values < GREY[1])).mean()),
        "area": float(inside.mean()),
        "middle": float((rows[0] + rows[-1] + 1) / 2 / len(inside)),
        "still": 0.0 if on_edges is None else 1 - on_edges,
    }


def problem_of(pair: "Pair", found: list[dict[str, Any]]) -> str:
    """Why a pair cannot be used; empty where it can."""
    needed = {"column": ["garment"], "flat": ["person"], "other_view": ["person", "mask"], "same_picture": []}
    row, shown = found[pair.row], found[pair.reference_row]  # a column's garment is in the person's row
    faults = [row["person"], row["mask"], *(shown[name] for name in needed[pair.reference])]
    return next(filter(None, faults), "")


def judge_pictures(
    findings: Findings, train: "DeepFashionData", validation: "DeepFashionData", found: list[dict[str, Any]]
) -> None:
    """Adds the findings that need the decoded pictures. found: what `look_at_rows` returns."""
    from tryon.data.sample import check_unreadable

    pairs = [*train.pairs, *validation.pairs]
    measured = [pair for pair in pairs if "area" in found[pair.row]]
    seen = [found[pair.row] for pair in measured]
    noisy = sum(row["noise"] > NOISY for row in seen)
    findings.lines.extend((
        "picture sizes: " + _in_words(Counter("{} x {}".format(*row["size"]) for row in seen)),
        "mask modes: " + _in_words(Counter(row["mask_mode"] for row in seen)),
        f"masks: {len(seen) - noisy} binary, {noisy} noisy or soft (thresholded)",
    ))  # fmt: skip

    def warn(what: str, rows: Iterable[int]) -> None:
        if rows := sorted(rows):
            shown = ", ".join(map(str, rows[:MOST_SHOWN])) + (", ..." if len(rows) > MOST_SHOWN else "")
            findings.warnings.append(f"{what}: {plural(len(rows), 'row')} ({shown})")

    resized = [pair.row for pair in measured if found[pair.row]["resized"]]
    warn("masks that do not have their picture's size, and are resized", resized)
    for category, (low, high) in CENTRES.items():
        of_category = [pair.row for pair in measured if pair.category == category]
        if areas := sorted(found[row]["area"] for row in of_category):
            findings.lines.append(f"area of {category} garments: {areas[0]:.0%} to {areas[-1]:.0%} of the picture, "
                                  f"median {areas[len(areas) // 2]:.0%}")  # fmt: skip
        warn(f"masks of {category} garments are too large: their outlines run through even colour",
             (row for row in of_category if found[row]["still"] > TOO_LARGE))  # fmt: skip
        warn(f"masks of {category} garments are where on a picture no such garment is",
             (row for row in of_category if not low <= found[row]["middle"] <= high))  # fmt: skip
    rows_of: dict[str, list[int]] = defaultdict(list)
    for pair in measured:
        rows_of[found[pair.row]["digest"]].append(pair.row)
    warn("pictures that are there more than once", (row for rows in rows_of.values() for row in sorted(rows)[1:]))
    held_back = {found[pair.row].get("digest") for pair in validation.pairs} - {None}
    warn("training pictures that are in the validation too",
         (pair.row for pair in train.pairs if found[pair.row].get("digest") in held_back))  # fmt: skip

    problems = {pair.row: problem for pair in pairs if (problem := problem_of(pair, found))}
    warn("cannot be used and are left out", problems)
    for why, count in Counter(problems.values()).most_common(5):
        findings.lines.append(f"{plural(count, 'row')} cannot be used: {why}")
    for what, data in (("training pairs", train), ("validation pairs", validation)):
        try:
            check_unreadable(sum(pair.row in problems for pair in data.pairs), len(data.pairs), what)
        except ValueError as error:
            findings.faults.append(str(error))


def log_findings(findings: Findings, indent: str = "") -> None:
    """Writes lines and warnings to the log."""
    for line in findings.lines:
        logger.info("%s%s", indent, line)
    for line in findings.warnings:
        logger.warning("warning: %s", line)


def write_page(
    file: Path, name: str, findings: Findings, verdict: str, train: "DeepFashionData", validation: "DeepFashionData"
) -> None:
    """Writes the findings and some pairs of each category, with garment, person, mask and hidden region, as one HTML
    file."""
    from tryon.data.category import CATEGORIES

    shown = {category: list(islice(_shown_pairs(category, validation, train), PAIRS_SHOWN)) for category in CATEGORIES}
    template = Path(__file__).with_name("inspection.html.j2")
    file.write_text(render(template, name=name, verdict=verdict, shown=shown, thumbnail=THUMBNAIL, **vars(findings)))


def _shown_pairs(category: str, *sources: "DeepFashionData") -> Iterator[tuple[str, list[str]]]:
    """For each pair of the category that can be read a caption and, as `data:` URLs, garment, person, mask and hidden
    region."""
    from tryon.data.sample import UnreadablePicture, read_mask

    for data in sources:
        for index, pair in enumerate(data.pairs):
            if pair.category != category:
                continue
            try:
                garment, person, hidden = data.pictures(index)
            except UnreadablePicture:
                continue
            worn = read_mask(io.BytesIO(data.files(index)[1]), person.size)
            pictures = (garment, person, _shaded(person, worn), _shaded(person, hidden))
            yield f"row {pair.row} ({pair.pid}), garment by {pair.reference}", list(map(_thumbnail, pictures))


def _shaded(person: "Image.Image", mask: "Image.Image") -> "Image.Image":
    """The person with the masked region in magenta."""
    shaded = person.copy()
    shaded.paste((255, 0, 200), mask=mask.point(lambda value: 150 if value else 0))
    return shaded


def _thumbnail(picture: "Image.Image") -> str:
    small = picture.copy()
    small.thumbnail((2 * THUMBNAIL, THUMBNAIL))
    return jpeg_url(small, quality=85)


def _in_words(counter: Counter) -> str:
    shown = ", ".join(f"{value} ({count})" for value, count in counter.most_common(MOST_SHOWN))
    return shown + (f", {len(counter) - MOST_SHOWN} more" if len(counter) > MOST_SHOWN else "")


def main(argv: list[str]) -> None:
    config, data, masks = read_settings(argv)
    set_up_logging(is_main_process=True)
    default_page = PROJECT / "runs" / f"inspection_{Path(config.data_set).name}.html"
    page = Path(config.page or default_page).expanduser().absolute()
    try:  # before minutes are spent
        page.parent.mkdir(parents=True, exist_ok=True)
        page.touch()
    except OSError as error:
        raise ValueError(f"the page {page} cannot be written ({error.strerror}): name another") from error

    load_libraries("torch", "datasets", *(["transformers"] if data.parser else []))
    import torch

    from deepfashion_training.deepfashion_dataset import load_deepfashion
    from deepfashion_training.pairing import in_processes

    settings = from_settings(TrainConfig, vars(config))
    train, validation = load_deepfashion(data, masks, settings, torch.device("cpu"))
    findings = describe(train, validation)
    logger.info("looking at the pictures of %s", plural(len(train.table), "row"))
    look, rows = partial(look_at_rows, train.table, train.columns), list(range(len(train.table)))
    judge_pictures(findings, train, validation, in_processes(look, rows, "looking at every picture"))
    log_findings(findings)
    verdict = "ready: all rows that are kept can be used"
    if findings.faults:
        verdict = f"not ready: {'; '.join(findings.faults)}"
    write_page(page, config.data_set, findings, verdict, train, validation)
    logger.info("pictures: %s", page)
    if findings.faults:
        raise ValueError(verdict)
    logger.info("%s", verdict)


if __name__ == "__main__":
    run_script(main)
