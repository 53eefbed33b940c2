"""Try-on data sets that lie in folders, as TryOnSamples.

VITON-HD:

    <dataroot>/train/image/00001_00.jpg               the person
    <dataroot>/train/cloth/00001_00.jpg               the garment it wears
    <dataroot>/train/agnostic-mask/00001_00_mask.png  white: to be repainted
    <dataroot>/train_pairs.txt                        lines of `person.jpg garment.jpg`

and the same below `test`. The second name of a line is the garment of the unpaired test: training and validation pair a
person with the garment of its own name. VITON-HD has upper-body garments only; folders with others say so in

    <dataroot>/train/categories.txt                   lines of `person.jpg upper`, or lower, or full

DressCode, where upper_body may also be lower_body or dresses:

    <dataroot>/upper_body/images/048392_0.jpg         the person, and 048392_1.jpg the garment it wears
    <dataroot>/upper_body/label_maps/048392_4.png     the person's parts, from which the mask is made
    <dataroot>/upper_body/train_pairs.txt             lines of `048392_0.jpg 048392_1.jpg`
    <dataroot>/upper_body/test_pairs_paired.txt
"""

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from folder_lists import dresscode_pairs, viton_hd_pairs
from tryon.config import MaskConfig
from tryon.data.category import CATEGORIES, Category, MaskRule, mask_rule_of
from tryon.data.human_parser import read_label_map
from tryon.data.masks import MASK_VERSION, agnostic_mask, among, grown
from tryon.data.sample import (
    UNREADABLE,
    TryOnSample,
    UnreadablePicture,
    fit_mask,
    fit_picture,
    read_mask,
    read_picture,
    upright_size,
)

logger = logging.getLogger(__name__)

# What of a label map is the garment. Jumpsuits and two-piece dresses are labelled as the pieces they look like.
WORN = {"upper": ("upper",), "lower": ("lower",), "full": ("full", "upper", "lower")}


@dataclass(frozen=True)
class VitonHdData:
    """The pairs of one list as samples of one panel size: a SampleSource."""

    variants: ClassVar[int] = 1
    mask_rule: ClassVar[None] = None  # the folder has masks of its own
    folder: Path
    names: list[str]
    categories: list[Category]
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.names)

    def files(self, index: int) -> tuple[Path, Path, Path]:
        """Person, garment and mask of pair `index`."""
        name = self.names[index]
        mask = self.folder / "agnostic-mask" / f"{Path(name).stem}_mask.png"
        return self.folder / "image" / name, self.folder / "cloth" / name, mask

    def category(self, index: int) -> Category:
        return self.categories[index]

    def name(self, index: int) -> str:
        return self.names[index]

    def key(self, index: int) -> str:
        """A hash of the files' bytes, of the category and of the panel size. A missing file counts as an empty one."""
        digest = hashlib.sha256(repr(("viton-hd", self.categories[index], self.height, self.width)).encode())
        for file in self.files(index):
            digest.update(hashlib.sha256(file.read_bytes() if file.is_file() else b"").digest())
        return digest.hexdigest()

    def __getitem__(self, index: int) -> TryOnSample:
        try:
            person_file, garment_file, mask_file = self.files(index)
            person, garment = read_picture(person_file), read_picture(garment_file)
            mask = read_mask(mask_file, person.size)
        except UNREADABLE as error:
            raise UnreadablePicture(f"{self.name(index)}: {error}") from error
        return TryOnSample(
            key=self.key(index),
            garment=fit_picture(garment, self.height, self.width),
            person=fit_picture(person, self.height, self.width),
            mask=fit_mask(mask, self.height, self.width),
            category=self.categories[index],
            mask_was_resized=upright_size(mask_file) != person.size,
        )


def load_viton_hd(dataroot: str, split: str, list_name: str, height: int, width: int, limit: int | None) -> VitonHdData:
    """The first `limit` pairs of <dataroot>/<list_name>, whose pictures lie in <dataroot>/<split>.

    Raises ValueError as viton_hd_pairs does.
    """
    names, categories = viton_hd_pairs(dataroot, split, list_name, limit)
    folder = Path(dataroot).expanduser() / split
    counts = Counter(categories)
    found = ", ".join(f"{counts[category]} {category}" for category in CATEGORIES if counts[category])
    why = "" if (folder / "categories.txt").is_file() else "; all upper, because there is no categories.txt"
    logger.info("%s pairs: %d  (%s%s)", split, len(names), found, why)
    return VitonHdData(folder, names, categories, height, width)


@dataclass(frozen=True)
class DressCodeData:
    """The pairs of one list of each garment folder as samples of one panel size: a SampleSource."""

    pairs: list[tuple[Path, Path, Category]]  # person and garment
    height: int
    width: int
    mask_rule: MaskRule
    mask_growth: float = 0.0
    variants: int = 1

    def __len__(self) -> int:
        return self.variants * len(self.pairs)

    def category(self, index: int) -> Category:
        return self.pairs[index % len(self.pairs)][2]

    def name(self, index: int) -> str:
        person = self.pairs[index % len(self.pairs)][0]
        return f"{person.parent.parent.name}/{person.name}"

    def files(self, index: int) -> tuple[Path, Path, Path]:
        """Person, garment and label map of sample `index`."""
        person, garment, _ = self.pairs[index % len(self.pairs)]
        return person, garment, person.parent.with_name("label_maps") / f"{person.stem.removesuffix('_0')}_4.png"

    def key(self, index: int) -> str:
        """A hash of the files' bytes and of every setting that shapes the sample. A missing file counts as empty."""
        variant = index // len(self.pairs) if self.mask_growth else 0
        facts = (self.category(index), self.height, self.width, self.mask_rule, self.mask_growth, variant)
        digest = hashlib.sha256(repr(("dresscode", MASK_VERSION, *facts)).encode())
        for file in self.files(index):
            digest.update(hashlib.sha256(file.read_bytes() if file.is_file() else b"").digest())
        return digest.hexdigest()

    def __getitem__(self, index: int) -> TryOnSample:
        key, category = self.key(index), self.category(index)
        rng = np.random.default_rng(list(bytes.fromhex(key)[:16]))  # the same whenever it is built
        person_file, garment_file, label_file = self.files(index)
        try:
            person, garment = read_picture(person_file), read_picture(garment_file)
            labels = read_label_map(label_file, person.size)
            worn = among(labels, WORN[category])
            hidden = agnostic_mask(worn, category, grown(self.mask_rule, self.mask_growth, rng), labels)
        except UNREADABLE as error:
            raise UnreadablePicture(f"{self.name(index)}: {error}") from error
        return TryOnSample(
            key=key,
            garment=fit_picture(garment, self.height, self.width),
            person=fit_picture(person, self.height, self.width),
            mask=fit_mask(Image.fromarray(hidden[0].numpy().astype(np.uint8) * 255), self.height, self.width),
            category=category,
            mask_was_resized=upright_size(label_file) != person.size,
        )


def load_dresscode(
    dataroot: str, list_name: str, masks: MaskConfig, height: int, width: int, limit: int | None
) -> DressCodeData:
    """The pairs of <dataroot>/<upper_body, lower_body, dresses>/<list_name>, the first `limit` of them, the folders by
    turns.

    Raises ValueError as dresscode_pairs does.
    """
    pairs = dresscode_pairs(dataroot, list_name, limit)
    counts = Counter(category for _, _, category in pairs)
    found = ", ".join(f"{counts[category]} {category}" for category in CATEGORIES if counts[category])
    logger.info("%s: %d pairs  (%s)", list_name, len(pairs), found)
    variants = masks.variants if masks.mask_growth else 1
    return DressCodeData(pairs, height, width, mask_rule_of(masks), masks.mask_growth, variants)
