"""Inspects a data set before training: a summary, a page of pictures, and a verdict.

    python -m deepfashion_training.inspect_dataset <data set>

Columns, poses, categories, views, references and split are read without decoding a picture. Then every picture is
decoded once, and its mask measured. The exit code is 0 where training can begin.
"""

import argparse
import io
import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepfashion_training.inspection import (
    Findings,
    Inspected,
    Look,
    few_or_rare,
    in_words,
    judge_pictures,
    log_findings,
    measure,
    measure_stored,
    shaded,
    write_page,
)
from deepfashion_training.preflight import DATA_SET, REFERENCES, DataConfig, checked_data, from_settings
from folder_lists import FolderConfig, checked_folder, needs_parser, read_pairs, with_parser
from tryon.cli import checked, parse_flags, run_script
from tryon.config import MOST, MOST_SEED, PROJECT, MaskConfig, TrainConfig, base_categories, setting
from tryon.console import MODEL_LIBRARIES, load_libraries, set_up_logging
from tryon.data.layout import LAYOUTS, holds_pairs
from tryon.units import plural

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL import Image

    from deepfashion_training.deepfashion_dataset import DeepFashionData
    from deepfashion_training.pairing import Columns, Pair

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """What is inspected, and where the page is written. Seed, limits and categories have to be the training's."""

    data_set: str = setting(None, f"{DATA_SET}, or laid out as {LAYOUTS}", positional=True)
    dataset_name: str | None = setting(None, argparse.SUPPRESS)  # a training's flag, which is refused with a word
    page: str | None = setting(None, "where the page is written (default runs/inspection_<name>.html)")
    seed: int = setting(TrainConfig.seed, "seed of the split", 0, MOST_SEED)
    max_train_samples: int | None = setting(None, "train on the first N samples only", 1, MOST)
    max_validation_samples: int = setting(TrainConfig.max_validation_samples, "validate on at most N samples", 1, MOST)
    base_categories: str = setting(TrainConfig.base_categories, "leave pairs of these out, with commas between")
    data_cache_dir: str = setting(TrainConfig.data_cache_dir, "where the colours of garments are kept between runs")
    cache_dir: str | None = setting(None, "where the hub's files are kept; the hub's own default if not given")


def read_settings(argv: list[str]) -> tuple[InspectConfig, DataConfig | FolderConfig, MaskConfig]:
    """The flags, checked. Raises ValueError, in one sentence, for everything that is missing or wrong."""
    command = "python -m deepfashion_training.inspect_dataset <data set>"
    description = f"Reports what a data set, or a folder laid out as {LAYOUTS}, holds, and whether training can begin."
    shapes = DataConfig, MaskConfig, InspectConfig
    of_data, of_masks, _ = given = parse_flags(argv, command, description, *shapes)
    data, masks, config = checked(shapes, given, problems_of)
    if not holds_pairs(Path(config.data_set).expanduser()):
        return config, checked_data(replace(data, dataset_name=config.data_set), masks, toy=False), masks
    for name in ("min_reference", "worn_reference_share"):
        if name in of_data:
            raise ValueError(f"--{name} was given, but a folder has a picture of each garment: leave it out")
    folders = checked_folder(FolderConfig(dataroot=config.data_set, parser=data.parser), of_masks)
    if needs_parser(folders) and of_masks and not folders.parser:
        raise ValueError(f"--{next(iter(of_masks))} was given, but there are no masks without a --parser: name one")
    settings = training_settings(config)
    read_pairs(folders, settings)
    return config, with_parser(folders, settings) if folders.parser else folders, masks


def training_settings(config: InspectConfig) -> TrainConfig:
    return from_settings(TrainConfig, vars(config))


def problems_of(data: DataConfig, masks: MaskConfig, config: InspectConfig) -> Iterator[str]:
    """What is wrong with the flags beyond single values."""
    if config.dataset_name:
        yield f"--dataset_name {config.dataset_name} was given: name the data set without a flag"


def describe(train: "DeepFashionData", validation: "DeepFashionData", of_base: Sequence[str]) -> Findings:
    """The findings that need no picture decoded."""
    from deepfashion_training.deepfashion_dataset import counts
    from deepfashion_training.pairing import CAPTION_RULES, cloth_types, column_of, is_flat, known_type

    table, columns, pairs = train.table, train.columns, [*train.pairs, *validation.pairs]
    poses = column_of(table, columns.pose) if columns.pose else [None] * len(table)
    kinds = cloth_types(table, columns)
    uses = ", ".join(f"{name} as {use}" for use, name in vars(columns).items() if name)
    lines = [f"rows: {len(table)}, columns: {uses}"]
    if columns.pose:
        lines.append("poses: " + in_words(Counter(poses)))
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

    warnings = few_or_rare([pair.category for pair in train.pairs], len(validation.pairs), of_base)
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
            row |= measure(person, worn) | measure_stored(open_picture(io.BytesIO(files["mask"])))
        found.append(row)
    return found


def problem_of(pair: "Pair", found: list[dict[str, Any]]) -> str:
    """Why a pair cannot be used; empty where it can."""
    needed = {
        "column": ["garment"], "flat": ["person"], "other_view": ["person", "mask"], "same_picture": [],
        "other_view_photo": ["person"],
    }  # fmt: skip
    row, shown = found[pair.row], found[pair.reference_row]  # a column's garment is in the person's row
    faults = [row["person"], row["mask"], *(shown[name] for name in needed[pair.reference])]
    return next(filter(None, faults), "")


def looks_at(data: "DeepFashionData", found: list[dict[str, Any]]) -> list[Look]:
    """What was seen of the data's pairs. found: what `look_at_rows` returns."""
    return [Look(pair.row, pair.category, problem_of(pair, found), found[pair.row]) for pair in data.pairs]


def pictures_of(category: str, *sources: "DeepFashionData") -> Iterator[tuple[str, list["Image.Image"]]]:
    """For each pair of the category that can be read a caption, garment, person, mask and hidden region."""
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
            pictures = [garment, person, shaded(person, worn), shaded(person, hidden)]
            yield f"{pair.name}, garment by {pair.reference}", pictures


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

    settings = training_settings(config)
    if isinstance(data, FolderConfig):
        load_libraries(*MODEL_LIBRARIES)
        from deepfashion_training.inspect_folder import inspect

        what, (findings, columns, pictures) = "pairs", inspect(data, masks, settings)
    else:
        load_libraries("torch", "datasets", *(["transformers"] if data.parser else []))
        what, (findings, columns, pictures) = "rows", inspect_rows(data, masks, settings)
    log_findings(findings)
    noted = len(findings.warnings)
    see = f", but see the {plural(noted, 'warning') if noted > 1 else 'warning'}" if noted else ""
    verdict = f"ready{see}: all {what} that are kept can be used"
    if findings.faults:
        verdict = f"not ready: {'; '.join(findings.faults)}"
    write_page(page, config.data_set, findings, verdict, columns, pictures)
    logger.info("pictures: %s", page)
    if findings.faults:
        raise ValueError(verdict)
    logger.info("%s", verdict)


def inspect_rows(data: DataConfig, masks: MaskConfig, settings: TrainConfig) -> Inspected:
    """What there is to say of a data set of rows, and to see."""
    import torch

    from deepfashion_training.deepfashion_dataset import load_deepfashion
    from deepfashion_training.pairing import in_processes

    train, validation = load_deepfashion(data, masks, settings, torch.device("cpu"))
    findings = describe(train, validation, base_categories(settings))
    logger.info("looking at the pictures of %d rows", len(train.table))
    look, rows = partial(look_at_rows, train.table, train.columns), list(range(len(train.table)))
    found = in_processes(look, rows, "looking at every picture")
    judge_pictures(findings, "row", looks_at(train, found), looks_at(validation, found))
    columns = ["garment", "person", "mask", "hidden from the model"]
    return findings, columns, lambda category: pictures_of(category, validation, train)


if __name__ == "__main__":
    run_script(main)
