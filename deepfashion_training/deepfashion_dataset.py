"""DeepFashion-with-masks, or any data set of its layout or with garment pictures of its own, as TryOnSamples.

The hub's data set has persons and garment masks but no garment pictures, so the garment reference comes from pairing:
a `flat` view of the same item where there is one, else the garment cut out of the person's own picture.
"""

import glob
import hashlib
import io
import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import torch
from datasets import Dataset
from PIL import Image

from tryon.config import TrainConfig
from tryon.hub import hub_or_folder
from tryon.masks import MASK_RULE, agnostic_mask
from tryon.sample import (
    CATEGORIES,
    UNREADABLE,
    Category,
    TryOnSample,
    UnreadablePicture,
    fit_mask,
    fit_picture,
    read_mask,
    read_picture,
)

logger = logging.getLogger(__name__)

# Bump when the way from a row to its sample changes, its mask included: the cached latents are made anew.
SAMPLE_VERSION = 2
CUT_OUT_MARGIN = 0.08  # white around a cut-out garment, as a share of its longer side

# The names that a column may have, in the hub's data set and in those with garment pictures.
PERSON_COLUMNS = ("images", "image")
GARMENT_COLUMNS = ("cloth", "garment")
Reference = Literal["column", "flat", "cut-out"]

CLOTH_TYPES: dict[str, Category] = {
    "Blouses_Shirts": "upper",
    "Cardigans": "upper",
    "Dresses": "full",
    "Graphic_Tees": "upper",
    "Jackets_Coats": "upper",
    "Jackets_Vests": "upper",
    "Leggings": "lower",
    "Pants": "lower",
    "Rompers_Jumpsuits": "full",
    "Shirts_Polos": "upper",
    "Shorts": "lower",
    "Skirts": "lower",
    "Sweaters": "upper",
    "Sweatshirts_Hoodies": "upper",
    "Tees_Tanks": "upper",
    "1": "upper",
    "2": "lower",
    "3": "full",
    "upper": "upper",
    "lower": "lower",
    "full": "full",
}
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


@dataclass(frozen=True)
class Pair:
    """A person's row and the row that shows its garment. Rows are indices into the table."""

    row: int
    reference_row: int
    reference: Reference
    category: Category
    pid: str


@dataclass(frozen=True)
class DeepFashionData:
    """Pairs of one data set as samples of one panel size: the SampleSource that `train()` takes."""

    table: Dataset
    columns: Columns
    pairs: list[Pair]
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.pairs)

    def files(self, index: int) -> tuple[bytes, bytes, bytes | None]:
        """The undecoded pictures of pair `index`: person, mask of what it wears, garment (None: cut out of the person).

        One that is missing is empty.
        """
        pair = self.pairs[index]
        row = self.table[pair.row]
        garment = None
        if pair.reference == "column":
            garment = content(row[self.columns.garment])
        elif pair.reference == "flat":
            garment = content(self.table[pair.reference_row][self.columns.person])
        return content(row[self.columns.person]), content(row[self.columns.mask]), garment

    def key(self, index: int) -> str:
        """A hash of the pictures' undecoded bytes and of every setting that shapes the sample."""
        pair = self.pairs[index]
        digest = hashlib.sha256(
            repr((SAMPLE_VERSION, pair.reference, pair.category, self.height, self.width, MASK_RULE)).encode()
        )
        for file in self.files(index):
            if file is not None:
                digest.update(hashlib.sha256(file).digest())
        return digest.hexdigest()

    def pictures(self, index: int) -> tuple[Image.Image, Image.Image, Image.Image]:
        """Garment and person as RGB, and what is hidden of the person as "L" of 0 and 255, in their own sizes.

        Raises UnreadablePicture where one cannot be used.
        """
        pair = self.pairs[index]
        person_file, mask_file, garment_file = self.files(index)
        try:
            person = read_picture(io.BytesIO(person_file))
            worn = read_mask(io.BytesIO(mask_file), person.size)
            garment = cut_out(person, worn) if garment_file is None else read_picture(io.BytesIO(garment_file))
            hidden = agnostic_mask(torch.from_numpy(np.array(worn) > 0)[None], pair.category)
        except UNREADABLE as error:
            raise UnreadablePicture(f"row {pair.row} ({pair.pid}): {error}") from error
        return garment, person, Image.fromarray(hidden[0].numpy().astype(np.uint8) * 255)

    def __getitem__(self, index: int) -> TryOnSample:
        garment, person, hidden = self.pictures(index)
        return TryOnSample(
            key=self.key(index),
            garment=fit_picture(garment, self.height, self.width),
            person=fit_picture(person, self.height, self.width),
            mask=fit_mask(hidden, self.height, self.width),
            category=self.pairs[index].category,
        )


def load_deepfashion(name: str, config: TrainConfig) -> tuple[DeepFashionData, DeepFashionData]:
    """Training and validation data of a hub data set, a folder of parquet files or a saved data set.

    The split is by item; it depends on the data, the seed and the limit of validation samples. Raises ValueError for
    columns that are not there, a `cloth_type` nobody knows, and too few items to hold one back.
    """
    table = load_table(name, config.cache_dir)
    columns = find_columns(table.column_names, name)
    table = table.select_columns([column for column in vars(columns).values() if column])
    pairs = make_pairs(table, columns)
    train, validation = split_by_item(pairs, config.seed, config.max_train_samples, config.max_validation_samples)
    for what, part in (("training", train), ("validation", validation)):
        categories, references = Counter(pair.category for pair in part), Counter(pair.reference for pair in part)
        logger.info("%s pairs: %d  (%s; garment from %s)", what, len(part), _counts(categories), _counts(references))
    sizes = (config.height, config.width)
    return DeepFashionData(table, columns, train, *sizes), DeepFashionData(table, columns, validation, *sizes)


def load_table(name: str, cache_dir: str | None) -> Dataset:
    """The rows, pictures undecoded. `name`: a hub name, a folder of parquet files, or a saved data set's folder.

    Raises ValueError where they cannot be had or read.
    """
    folder = hub_or_folder(name, ["*.parquet"], cache_dir, kind="dataset")
    files = sorted(glob.escape(str(path)) for path in folder.rglob("*.parquet"))
    try:
        if (folder / "state.json").is_file():
            table = datasets.load_from_disk(str(folder))
        elif (folder / "dataset_dict.json").is_file():
            splits = datasets.load_from_disk(str(folder))
            table = datasets.concatenate_datasets(list(splits.values()))
        elif files:
            table = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache_dir)
        else:
            raise ValueError("it has no parquet files")
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"the data set {name} cannot be read ({_last_line(error)}): check name and files") from error
    for column, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
    return table


def find_columns(names: list[str], where: str) -> Columns:
    """Maps the columns found. Raises ValueError, naming what was found and what is needed, where one is missing."""

    def first(*candidates: str) -> str | None:
        return next((name for name in candidates if name in names), None)

    person, mask = first(*PERSON_COLUMNS), first("mask")
    if person is None or mask is None:
        raise ValueError(
            f"{where} has the columns {', '.join(names)}: needed are the person as images or image, and the garment's "
            "region as mask; used if there: cloth, cloth_type, pid, pose, caption"
        )
    return Columns(
        person, mask, first(*GARMENT_COLUMNS), first("cloth_type"), first("pid"), first("pose"), first("caption")
    )


def make_pairs(table: Dataset, columns: Columns) -> list[Pair]:
    """A pair for every row that shows a person. A `flat` row is a reference and never a person."""
    count = len(table)

    def column(name: str | None, missing: Any) -> list[Any]:
        return table[name][:] if name else [missing] * count

    pids = column(columns.pid, None)
    captions, poses = column(columns.caption, ""), column(columns.pose, "")
    kinds = column(columns.cloth_type, "")
    if columns.cloth_type and isinstance(names := table.features[columns.cloth_type], datasets.ClassLabel):
        kinds = [None if kind is None else names.int2str(kind) for kind in kinds]
    garments = [False] * count
    if columns.garment:  # in batches: all its pictures at once would fill the memory
        batches = table.select_columns(columns.garment).iter(batch_size=256)
        garments = [content_is_there(picture) for batch in batches for picture in batch[columns.garment]]
    flats: dict[tuple[str, str], int] = {}
    for row, (pid, pose) in enumerate(zip(pids, poses, strict=True)):
        if pid is not None and is_flat(pose):
            flats.setdefault((pid, colourway(pose)), row)
    pairs = []
    for row in range(count):
        if is_flat(poses[row]):
            continue
        # Without item ids every row is an item of its own.
        pid = f"row {row}" if pids[row] is None else str(pids[row])
        category = category_of(kinds[row], captions[row])
        flat = flats.get((pids[row], colourway(poses[row])))
        if garments[row]:
            pairs.append(Pair(row, row, "column", category, pid))
        elif flat is not None:
            pairs.append(Pair(row, flat, "flat", category, pid))
        else:
            pairs.append(Pair(row, row, "cut-out", category, pid))
    return pairs


def is_flat(pose: str | None) -> bool:
    """Whether the view shows the garment alone. The spelling is not documented (perhaps "04_1_flat"): match a word."""
    return "flat" in re.split(r"[^a-z]+", (pose or "").lower())


def colourway(pose: str | None) -> str:
    """The number of the item's variant, which DeepFashion's file names start with: "02" for "02_1_front", else none."""
    numbered = re.match(r"(\d+)_\d+_", pose or "")
    return numbered[1] if numbered else ""


def category_of(cloth_type: str | int | None, caption: str | None) -> Category:
    """The garment category of a `cloth_type`; the caption decides for an ambiguous or a missing one.

    Raises ValueError for a `cloth_type` that is not known.
    """
    word = "" if cloth_type is None else str(cloth_type)
    if word in CLOTH_TYPES:
        return CLOTH_TYPES[word]
    if word not in CAPTION_RULES:
        known = ", ".join([*CLOTH_TYPES, *(name for name in CAPTION_RULES if name)])
        raise ValueError(f"cloth_type {word} is not known: rename it to one of {known}")
    text = (caption or "").lower()
    rules = CAPTION_RULES[word]
    return next(category for pattern, category in rules if not pattern or re.search(rf"\b({pattern})\b", text))


def split_by_item(
    pairs: list[Pair], seed: int, max_train: int | None, max_validation: int
) -> tuple[list[Pair], list[Pair]]:
    """Training and validation pairs that share no item: a tenth of the items is held back, but no more of them than
    validation samples are wanted, and at least one.

    Items are ordered by a hash of their name and the seed; from this order the limits take the first. One view of each
    held-back item comes before the second of any, so that a small validation set still has many items.
    """
    if not pairs:
        raise ValueError("the data set has no row that shows a person: give one with rows that are not flat views")
    items: dict[str, list[Pair]] = {}
    for pair in pairs:
        items.setdefault(pair.pid, []).append(pair)
    order = sorted(items, key=lambda pid: hashlib.sha256(f"{seed} {pid}".encode()).digest())
    if len(order) < 2:
        raise ValueError("the data set has a single item (pid): give at least two, one is held back for validation")
    held_back = max(1, min(max_validation, len(order) // 10))
    validation = list(_by_turns([items[pid] for pid in order[:held_back]]))
    train = [pair for pid in order[held_back:] for pair in items[pid]]
    return train[:max_train], validation[:max_validation]


def _by_turns(groups: list[list[Pair]]) -> Iterator[Pair]:
    for turn in range(max(map(len, groups))):
        yield from (group[turn] for group in groups if turn < len(group))


def content(picture: dict[str, Any] | None) -> bytes:
    """The undecoded file of an image column's value; empty where there is none."""
    if picture is None:
        return b""
    if picture["bytes"] is not None:
        return picture["bytes"]
    path = Path(picture["path"] or "")
    return path.read_bytes() if path.is_file() else b""


def content_is_there(picture: dict[str, Any] | None) -> bool:
    """Whether an image column has a value in this row."""
    return picture is not None and bool(picture["bytes"] or picture["path"])


def cut_out(person: Image.Image, worn: Image.Image) -> Image.Image:
    """The garment on white, cropped to it with a margin. person: RGB; worn: its mask, "L", of the same size.

    Raises ValueError where the mask is empty.
    """
    box = worn.getbbox()
    if box is None:
        raise ValueError("the garment's mask is empty")
    picture = Image.composite(person, Image.new("RGB", worn.size, "white"), worn).crop(box)
    margin = round(CUT_OUT_MARGIN * max(picture.size))
    framed = Image.new("RGB", (picture.width + 2 * margin, picture.height + 2 * margin), "white")
    framed.paste(picture, (margin, margin))
    return framed


def _counts(counter: Counter[str]) -> str:
    order = [*CATEGORIES, "column", "flat", "cut-out"]
    return ", ".join(f"{counter[name]} {name}" for name in order if counter[name])


def _last_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[-1]
