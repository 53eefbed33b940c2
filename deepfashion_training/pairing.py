"""Which rows of DeepFashion make pairs: categories, garment references, and the split by item."""

import hashlib
import io
import logging
import os
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset

from deepfashion_training.preflight import Reference
from deepfashion_training.references import SAME_COLOURS, SIGNATURE_VERSION, UNKNOWN, colour_distances, colour_signature
from tryon.console import progress_bar
from tryon.data.category import Category, plain
from tryon.data.sample import UNREADABLE, read_mask, read_picture
from tryon.tensor_files import drop_damaged, read_whole, write_whole
from tryon.units import plural

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 128  # that a process is given
LOG_EVERY = 60  # seconds between two plain lines while pictures are looked at

CLOTH_TYPES: dict[str, Category] = {
    "Blouses_Shirts": "upper", "Cardigans": "upper", "Dresses": "full", "Graphic_Tees": "upper",
    "Jackets_Coats": "upper", "Jackets_Vests": "upper", "Leggings": "lower", "Pants": "lower",
    "Rompers_Jumpsuits": "full", "Shirts_Polos": "upper", "Shorts": "lower", "Skirts": "lower", "Sweaters": "upper",
    "Sweatshirts_Hoodies": "upper", "Tees_Tanks": "upper",
    "1": "upper", "2": "lower", "3": "full", "upper": "upper", "lower": "lower", "full": "full", "upper_body": "upper",
    "lower_body": "lower",
}  # fmt: skip
# Where the word alone does not tell, or there is none, the caption decides: the first pattern found in it.
CAPTION_RULES: dict[str, list[tuple[str, Category]]] = {
    "Denim": [
        (r"(denim|jean) (jacket|vest|shirt|coat)s?", "upper"),
        (r"denim (dress|jumpsuit|romper)|overalls", "full"),
        (r"jeans|pants|trousers|shorts|skirt|jeggings", "lower"),
        (r"jacket|vest|shirt", "upper"),
        ("", "lower"),
    ],
    "Suiting": [(r"pants|trousers|skirt", "lower"), ("", "upper")],
    "": [
        (r"dress(?! (shirt|pants))|jumpsuit|romper|gown|overalls", "full"),
        (r"top|t-shirt|shirt|blouse|sweater|jacket|tee|hoodie|cardigan|coat|vest", "upper"),
        (r"pants|trousers|jeans|skirt|shorts|leggings", "lower"),
        ("", "upper"),
    ],
}
_SPELLINGS = {plain(word): word for word in (*CLOTH_TYPES, *CAPTION_RULES)}


@dataclass(frozen=True)
class Columns:
    """Which column of the table holds what; None where the data set has no such column."""

    person: str
    mask: str
    garment: str | None
    cloth_type: str | None
    pid: str | None
    pose: str | None
    caption: str | None
    held_back: str | None  # whether the row is for validation; without it a tenth of the items is


@dataclass(frozen=True)
class Pair:
    """A person's row and the row that shows its garment. Rows are indices into the table. other_view: the row of
    another view of the garment, in colours that agree, where one was looked for and found."""

    row: int
    reference_row: int
    reference: Reference
    category: Category
    pid: str
    other_view: int | None = None

    @property
    def name(self) -> str:
        """What messages call it: by its row, and by its item, which may be called after the row."""
        row = f"row {self.row}"
        return row if self.pid == row else f"{row} ({self.pid})"


def make_pairs(table: Dataset, columns: Columns, data_cache: Path, *, find_other_views: bool = False) -> list[Pair]:
    """A pair for every row that shows a person. A `flat` row is a reference and never a person.

    data_cache: where the colours of garments are kept. find_other_views: even where the garment is shown better. Raises
    ValueError for a `cloth_type` that is not known, and where no row shows a person.
    """
    count = len(table)

    def column(name: str | None, missing: Any) -> list[Any]:
        return column_of(table, name) if name else [missing] * count

    pids, captions, poses = column(columns.pid, None), column(columns.caption, ""), column(columns.pose, "")
    kinds = cloth_types(table, columns)
    # Without an item id a row is an item of its own.
    items = [f"row {row}" if pid in (None, "") else str(pid) for row, pid in enumerate(pids)]
    views = [(item, colourway(pose)) for item, pose in zip(items, poses, strict=True)]
    garments = [False] * count
    if columns.garment:  # in batches: all its pictures at once would fill the memory
        batches = table.select_columns(columns.garment).iter(batch_size=256)
        garments = [content(picture) != b"" for batch in batches for picture in batch[columns.garment]]
    persons = [row for row in range(count) if not is_flat(poses[row])]
    flats: dict[tuple[str, str], int] = {}
    for row in range(count):
        if is_flat(poses[row]):
            flats.setdefault(views[row], row)
    without = [row for row in persons if not garments[row] and views[row] not in flats]
    others = found = other_views(table, columns, {row: views[row] for row in without}, data_cache)
    if find_other_views:
        found = other_views(table, columns, {row: views[row] for row in persons}, data_cache)
    pairs = []
    for row in persons:
        shown: tuple[int, Reference] = row, "same_picture"
        if garments[row]:
            shown = row, "column"
        elif views[row] in flats:
            shown = flats[views[row]], "flat"
        elif row in others:
            shown = others[row], "other_view"
        pairs.append(Pair(row, *shown, category_of(kinds[row], captions[row]), items[row], found.get(row)))
    if not pairs:
        raise ValueError("the data set has no row that shows a person: give one with rows that are not flat views")
    return pairs


def shown_worn(pairs: list[Pair], share: float, seed: int) -> list[Pair]:
    """The pairs; about this share of those with another view show the garment by its whole photograph.

    What is drawn for a pair depends on the seed and its row alone: a larger share changes more pairs and none back.
    Raises ValueError where a share is asked for and no pair has another view.
    """
    if share and all(pair.other_view is None for pair in pairs):
        raise ValueError(
            "no training pair has another view of its garment that could show it worn: leave --worn_reference_share "
            "out, or name data with several views of an item (pid)"
        )
    return [
        replace(pair, reference="other_view_photo", reference_row=pair.other_view)
        if pair.other_view is not None and np.random.default_rng([seed, pair.row]).random() < share
        else pair
        for pair in pairs
    ]


def column_of(table: Dataset, name: str) -> list[Any]:
    """All values of a column, and nothing of others: rows may read the files of their pictures."""
    return table.select_columns(name)[name][:]


def cloth_types(table: Dataset, columns: Columns) -> list[str | int | None]:
    """Each row's `cloth_type`, the names of numbered labels."""
    if not columns.cloth_type:
        return [None] * len(table)
    kinds = column_of(table, columns.cloth_type)
    if isinstance(names := table.features[columns.cloth_type], datasets.ClassLabel):
        kinds = [None if kind is None else names.int2str(kind) for kind in kinds]
    return kinds


def other_views(
    table: Dataset, columns: Columns, views: dict[int, tuple[str, str]], data_cache: Path
) -> dict[int, int]:
    """For each row that has one, the row of another view of the same item and colourway whose colours agree; of several
    the nearest. views: of each row that is considered, its item and colourway."""
    by_view: dict[tuple[str, str], list[int]] = {}
    for row, view in views.items():
        by_view.setdefault(view, []).append(row)
    groups = [rows for rows in by_view.values() if len(rows) > 1]
    several = [row for rows in groups for row in rows]
    if not several:
        return {}
    found = dict(zip(several, cached_colours(table, columns, several, data_cache), strict=True))
    nearest = {}
    for rows in groups:
        known = [row for row in rows if not np.isnan(found[row]).any()]
        colours = np.array([found[row] for row in known])
        for place, row in enumerate(known):
            distances = colour_distances(colours[place], colours)
            distances[place] = np.inf
            if distances.min() <= SAME_COLOURS:
                nearest[row] = known[int(distances.argmin())]
    return nearest


def cached_colours(table: Dataset, columns: Columns, rows: list[int], data_cache: Path) -> np.ndarray:
    """[N, 3, Q] colour signatures of the rows' garments; NaN where a picture cannot be read, which encoding says.

    They are kept in the data cache, in a file named after the pictures' bytes: a second start decodes nothing.
    """
    digest = hashlib.sha256(str(SIGNATURE_VERSION).encode())
    for row in rows:
        values = table[row]
        for name in (columns.person, columns.mask):
            digest.update(hashlib.sha256(content(values[name])).digest())
    file = data_cache / "colours" / f"{digest.hexdigest()}.safetensors"
    drop_damaged([file], "colours")
    if not file.is_file():
        logger.info("comparing the colours of %s", plural(len(rows), "picture"))
        found = np.stack(in_processes(partial(colours_of_rows, table, columns), rows, "comparing colours"))
        write_whole(file, {"colours": torch.from_numpy(found).contiguous()})
    return read_whole(file)[0]["colours"].numpy()


def colours_of_rows(table: Dataset, columns: Columns, rows: list[int]) -> list[np.ndarray]:
    """The rows' colour signatures; NaN where a picture cannot be read."""
    found = []
    for row in rows:
        values = table[row]
        try:
            person = read_picture(io.BytesIO(content(values[columns.person])))
            worn = read_mask(io.BytesIO(content(values[columns.mask])), person.size)
            found.append(colour_signature(person, worn))
        except UNREADABLE:
            found.append(UNKNOWN)
    return found


def in_processes(function: Callable[[list[int]], list[Any]], rows: list[int], what: str) -> list[Any]:
    """What the function finds for all rows, in their order: on every core, a share of the rows at a time.

    Raises ValueError where a process was killed.
    """
    shares = [rows[start : start + ROWS_AT_ONCE] for start in range(0, len(rows), ROWS_AT_ONCE)]
    cores = min(len(os.sched_getaffinity(0)), len(shares))
    started = said = time.monotonic()
    found: list[Any] = []
    bar = progress_bar(len(rows), what, visible=True)
    # Forked: they use nothing but pictures and arrays, and start at once.
    with ProcessPoolExecutor(cores, mp_context=get_context("fork")) as pool:
        try:
            for part in pool.map(function, shares):
                found += part
                bar.update(len(part))
                if time.monotonic() - said > LOG_EVERY:
                    said = time.monotonic()
                    rate = len(found) / (said - started)
                    logger.info("%s: %d of %d, %.0f per second", what, len(found), len(rows), rate)
        except BrokenProcessPool as error:
            raise ValueError(
                f"a process was killed while {what}, most likely for want of memory: start again"
            ) from error
    bar.close()
    return found


def is_flat(pose: str | None) -> bool:
    """Whether the view shows the garment alone. The spelling is not documented (perhaps "04_1_flat"): match a word."""
    return "flat" in re.split(r"[^a-z]+", (pose or "").lower())


def colourway(pose: str | None) -> str:
    """The number of the item's variant, which DeepFashion's file names start with: "02" for "02_1_front", else none."""
    numbered = re.match(r"(\d+)_\d+_", pose or "")
    return numbered[1] if numbered else ""


def known_type(cloth_type: str | int | None) -> str:
    """A `cloth_type` as CLOTH_TYPES or CAPTION_RULES spell it. Raises ValueError for one that is not known."""
    word = "" if cloth_type is None else str(cloth_type)
    if plain(word) not in _SPELLINGS:
        known = ", ".join(filter(None, _SPELLINGS.values()))
        raise ValueError(f"cloth_type {word} is not known: rename it to one of {known}")
    return _SPELLINGS[plain(word)]


def category_of(cloth_type: str | int | None, caption: str | None) -> Category:
    """The garment category of a `cloth_type`; the caption decides for an ambiguous or a missing one.

    Raises ValueError for a `cloth_type` that is not known.
    """
    word = known_type(cloth_type)
    if word in CLOTH_TYPES:
        return CLOTH_TYPES[word]
    text, rules = (caption or "").lower(), CAPTION_RULES[word]
    return next(category for pattern, category in rules if not pattern or re.search(rf"\b({pattern})\b", text))


def split_as_given(pairs: list[Pair], held_back: list[bool]) -> tuple[list[Pair], list[Pair]]:
    """Training and validation pairs, as the data set itself holds rows back, in its order. held_back: of each row.

    Raises ValueError where nothing is left of one of them, and where they share an item.
    """
    validation = [pair for pair in pairs if held_back[pair.row]]
    train = [pair for pair in pairs if not held_back[pair.row]]
    if not (train and validation):
        what = "validate" if train else "train"
        raise ValueError(f"the data set has no pair to {what} on: see docs/data.md for its folders")
    if both := {pair.pid for pair in train} & {pair.pid for pair in validation}:
        example = f"such as {min(both)}" if len(both) > 1 else min(both)
        raise ValueError(
            f"{plural(len(both), 'item')} (pid) both in training and validation, {example}: move all rows of "
            "an item into one of the folders"
        )
    return train, validation


def content(picture: dict[str, Any] | None) -> bytes:
    """The undecoded file of an image column's value; empty where there is none. Paths in a row are not followed: they
    might lead anywhere on the machine."""
    return (picture and picture["bytes"]) or b""
