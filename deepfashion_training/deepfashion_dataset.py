"""DeepFashion-with-masks, or any data set of its layout or with garment pictures of its own, as TryOnSamples.

The hub's data set has persons and garment masks but no garment pictures, so the garment reference comes from pairing,
best first: a `flat` view of the same item; the garment cut out of another view, if its colours agree; the garment cut
out of the person's own picture, moved about. Where it is asked for, a share is shown by the whole photograph of another
view.
"""

import glob
import hashlib
import io
import logging
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from datasets import Dataset
from PIL import Image
from pyarrow.parquet import read_metadata

from deepfashion_training.pairing import Columns, Pair, column_of, content, make_pairs, shown_worn, split_as_given
from deepfashion_training.picture_folder import check_metadata, is_held_back
from deepfashion_training.preflight import REFERENCES, DataConfig
from deepfashion_training.references import cut_out, moved
from tryon.config import MaskConfig, TrainConfig
from tryon.data.category import CATEGORIES, Category, MaskRule, MaskVariation, mask_rule_of, mask_variation_of
from tryon.data.human_parser import Parser, load_parser, parse
from tryon.data.layout import METADATA, is_saved, metadata_files
from tryon.data.masks import MASK_VERSION, VARIATION_VERSION, mask_picture, varied_mask
from tryon.data.sample import UNREADABLE, TryOnSample, UnreadablePicture, fitted_sample, read_mask, read_picture
from tryon.data.split import split_by_item, used_parts
from tryon.hub import hub_or_folder
from tryon.units import plural

logger = logging.getLogger(__name__)

# Bump when the way from a row to its sample changes, its mask aside: the cached latents are made again.
SAMPLE_VERSION = 3

# The names that a column may have, in the hub's data set and in those with garment pictures.
PERSON_COLUMNS = ("images", "image")
GARMENT_COLUMNS = ("cloth", "garment")


@dataclass(frozen=True)
class DeepFashionData:
    """Pairs of one data set as samples of one panel size: the SampleSource that `train()` takes."""

    table: Dataset
    columns: Columns
    pairs: list[Pair]
    height: int
    width: int
    mask_rule: MaskRule = MaskRule()
    mask_variation: MaskVariation = MaskVariation()
    variants: int = 1
    parser: Parser | None = None  # what rules that follow the body know it from
    worn_reference_share: float = 0.0

    def __len__(self) -> int:
        return self.variants * len(self.pairs)

    def pair(self, index: int) -> Pair:
        """The pair of sample `index`."""
        return self.pairs[index % len(self.pairs)]

    def category(self, index: int) -> Category:
        return self.pair(index).category

    def name(self, index: int) -> str:
        return self.pair(index).name

    def shows_garment_alone(self, index: int) -> bool:
        return self.pair(index).reference in ("flat", "column")

    def files(self, index: int) -> list[bytes]:
        """The undecoded pictures of sample `index`: person and its mask; then the garment, or a person wearing it, and
        the mask of that where it is cut out; nothing more where it is cut out of the first. One that is missing is
        empty."""
        pair, columns = self.pair(index), self.columns
        row = self.table[pair.row]
        files = [content(row[columns.person]), content(row[columns.mask])]
        if pair.reference == "column":
            return [*files, content(row[columns.garment])]
        if pair.reference == "same_picture":
            return files
        shown = self.table[pair.reference_row]
        files.append(content(shown[columns.person]))
        return [*files, content(shown[columns.mask])] if pair.reference == "other_view" else files

    def key(self, index: int) -> str:
        """A hash of the pictures' undecoded bytes and of every setting that shapes the sample."""
        facts = (
            SAMPLE_VERSION, MASK_VERSION, self.pair(index).reference, self.category(index), self.height, self.width,
            replace(self.mask_rule, parser=self.parser and self.parser.fingerprint), self.mask_variation.growth,
        )  # fmt: skip
        if self.mask_variation.is_random:
            facts += (VARIATION_VERSION, self.mask_variation.share)
        return hashlib.sha256(repr((facts, *self._content(index))).encode()).hexdigest()

    def _content(self, index: int) -> tuple[str, int]:
        """A hash of the pictures' bytes, and the variant, 0 where nothing is random: what random draws follow from, so
        that they are the same at every panel size."""
        random = self.mask_variation.is_random or self.pair(index).reference == "same_picture"
        digests = [hashlib.sha256(file).digest() for file in self.files(index)]
        return hashlib.sha256(b"".join(digests)).hexdigest(), index // len(self.pairs) if random else 0

    def person(self, index: int) -> Image.Image:
        return read_picture(io.BytesIO(content(self.table[self.pair(index).row][self.columns.person])))

    def pictures(self, index: int) -> tuple[Image.Image, Image.Image, Image.Image]:
        """Garment and person as RGB, and what is hidden of the person as "L" of 0 and 255, in their own sizes.

        Raises UnreadablePicture where one cannot be used.
        """
        pair = self.pair(index)
        digest, variant = self._content(index)
        rng = np.random.default_rng([variant, *bytes.fromhex(digest)])
        person_file, mask_file, *garment_files = self.files(index)
        try:
            person = read_picture(io.BytesIO(person_file))
            worn = read_mask(io.BytesIO(mask_file), person.size)
            if pair.reference == "same_picture":
                garment = moved(cut_out(person, worn), rng)
            else:
                garment = read_picture(io.BytesIO(garment_files[0]))
                if pair.reference == "other_view":
                    garment = cut_out(garment, read_mask(io.BytesIO(garment_files[1]), garment.size))
            labels = parse(self.parser, person) if self.parser else None
            region = torch.from_numpy(np.array(worn) > 0)[None]
            hidden = varied_mask(region, pair.category, self.mask_rule, labels, self.mask_variation, rng)
        except UNREADABLE as error:
            raise UnreadablePicture(f"{self.name(index)}: {error}") from error
        return garment, person, mask_picture(hidden)

    def __getitem__(self, index: int) -> TryOnSample:
        pictures = self.pictures(index)
        return fitted_sample(
            self.key(index), pictures, self.category(index), (self.height, self.width), io.BytesIO(self.files(index)[1])
        )


def load_deepfashion(
    data: DataConfig, masks: MaskConfig, config: TrainConfig, device: torch.device
) -> tuple[DeepFashionData, DeepFashionData]:
    """Training and validation data of a data set that load_table reads.

    The split is by item, unless the data set brings one; it depends on the pairs that are kept, the seed and the limit
    of validation samples. Raises ValueError for columns that are not there, an unknown `cloth_type`, no pair that is
    left by `min_reference`, too few items to hold one back, and as shown_worn.
    """
    parser = load_parser(data.parser, config.cache_dir, device) if data.parser else None
    table, columns = open_table(data.dataset_name, config.cache_dir)
    share = data.worn_reference_share
    pairs = make_pairs(table, columns, Path(config.data_cache_dir), find_other_views=share > 0)
    kept = [pair for pair in pairs if REFERENCES.index(pair.reference) <= REFERENCES.index(data.min_reference)]
    if not kept:
        raise ValueError(f"no pair is left with --min_reference {data.min_reference}: give a weaker one")
    if len(kept) < len(pairs):
        logger.info("%d of %s dropped: their garment is shown worse than by %s", len(pairs) - len(kept),
                    plural(len(pairs), "pair"), data.min_reference)  # fmt: skip
    if columns.held_back:
        parts = split_as_given(kept, column_of(table, columns.held_back))
    else:
        parts = split_by_item(kept, lambda pair: pair.pid, config)
    train, validation = used_parts(*parts, config)
    train = shown_worn(train, share, config.seed)
    for what, part in (("training", train), ("validation", validation)):
        categories, references = Counter(pair.category for pair in part), Counter(pair.reference for pair in part)
        logger.info("%s pairs: %d  (%s; garment from %s)", what, len(part), counts(categories), counts(references))
    rule, size = mask_rule_of(masks, data.parser), (config.height, config.width)
    held_back = DeepFashionData(table, columns, validation, *size, mask_rule=rule, parser=parser)
    variation = mask_variation_of(masks)
    random = variation.is_random or any(pair.reference == "same_picture" for pair in train)
    variants = masks.variants if random else 1
    changed = {"mask_variation": variation, "variants": variants, "worn_reference_share": share}
    return replace(held_back, pairs=train, **changed), held_back


def open_table(name: str, cache_dir: str | None) -> tuple[Dataset, Columns]:
    """The rows, with nothing but the columns that are used, pictures undecoded."""
    table = load_table(name, cache_dir)
    columns = find_columns(table.column_names, name)
    for column in filter(None, (columns.person, columns.mask, columns.garment)):
        feature = table.features[column]
        undecoded = isinstance(feature, dict) and {"bytes", "path"} <= set(feature)
        if not (undecoded or isinstance(feature, datasets.Image)):
            raise ValueError(f"the column {column} of {name} holds {feature}, not pictures: store pictures in it")
    if columns.held_back and table.features[columns.held_back] != datasets.Value("bool"):
        raise ValueError(f"the column {columns.held_back} of {name} holds no booleans: write true or false")
    return table.select_columns([column for column in vars(columns).values() if column]), columns


def load_table(name: str, cache_dir: str | None) -> Dataset:
    """The rows, pictures undecoded. `name`: a hub name, a folder of parquet files or of pictures, or a saved data set's
    folder.

    Raises ValueError where they cannot be had or read.
    """
    datasets.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    patterns = ["*.parquet", *(f"*{file}" for file in METADATA)]
    folder = hub_or_folder(name, patterns, cache_dir, kind="dataset")
    if tables := metadata_files(folder):
        hub_or_folder(name, ["*"], cache_dir, kind="dataset")  # the pictures
        for file in tables:
            check_metadata(file)
    files = sorted(map(str, folder.rglob("*.parquet")))
    try:
        if (folder / "state.json").is_file():
            table = datasets.load_from_disk(str(folder))
        elif (folder / "dataset_dict.json").is_file():
            table = datasets.concatenate_datasets([*datasets.load_from_disk(str(folder)).values()])
        elif tables:
            table = load_pictures(folder, tables, cache_dir)
        elif any(read_metadata(file).num_rows for file in files):
            patterns = list(map(glob.escape, files))
            table = datasets.load_dataset("parquet", data_files=patterns, split="train", cache_dir=cache_dir)
        else:
            raise ValueError("it has no rows" if files else "it has no parquet files and no metadata.jsonl or .csv")
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(f"the data set {name} cannot be read ({_last_line(error)}): check name and files") from error
    for column, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
    return table


def count_rows(folder: Path, cache_dir: str | None) -> int:
    """Rows of a data set's folder, without reading their pictures."""
    if is_saved(folder) or metadata_files(folder):
        return len(load_table(str(folder), cache_dir))
    return sum(read_metadata(file).num_rows for file in folder.rglob("*.parquet"))


def load_pictures(folder: Path, tables: list[Path], cache_dir: str | None) -> Dataset:
    """The rows of a folder of pictures, which are read when they are asked for. Where some tables are for validation
    and others are not, the column held_back says which rows are."""
    splits: dict[str, list[str]] = {}
    for file in tables:
        splits.setdefault("test" if is_held_back(file, folder) else "train", []).append(glob.escape(str(file)))
    loaded = datasets.load_dataset("imagefolder", data_files=splits, cache_dir=cache_dir)
    parts = [*loaded.values()]
    if len(parts) > 1:
        parts = [part.add_column("held_back", [name == "test"] * len(part)) for name, part in loaded.items()]
    table = datasets.concatenate_datasets(parts)
    names = {name for name, feature in table.features.items() if isinstance(feature, datasets.Image)}
    for name in names:
        table = table.cast_column(name, datasets.Image(decode=False))
    return table.with_transform(partial(_with_bytes, names))


def _with_bytes(names: set[str], batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """The batch with files in the place of paths in these columns. The library has refused paths that leave the
    folder."""
    return {
        name: [value and {"bytes": Path(value["path"]).read_bytes(), "path": None} for value in values]
        if name in names
        else values
        for name, values in batch.items()
    }


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
    others = ("cloth_type", "pid", "pose", "caption", "held_back")
    return Columns(person, mask, first(*GARMENT_COLUMNS), *map(first, others))


def pairs_by_reference(train: DeepFashionData, validation: DeepFashionData) -> dict[str, dict[Category, int]]:
    """How many pairs of each category there are, the training's apart by how their garments are shown: {what:
    {category: pairs}}."""
    found = {}
    for name in REFERENCES:
        of_kind = (pair.category for pair in train.pairs if pair.reference == name)
        found[f"training, garment from {name}"] = Counter(of_kind)
    found["validation"] = Counter(pair.category for pair in validation.pairs)
    return {what: dict(categories) for what, categories in found.items() if categories}


def counts(counter: Counter[str]) -> str:
    """In words: categories or kinds of reference."""
    order = [*CATEGORIES, *REFERENCES]
    return ", ".join(f"{counter[name]} {name}" for name in order if counter[name])


def _last_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[-1]
