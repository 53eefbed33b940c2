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

import numpy as np

from folder_lists import FolderPair, dresscode_pairs, viton_hd_pairs
from tryon.config import MaskConfig
from tryon.data.category import CATEGORIES, Category, MaskRule, mask_rule_of
from tryon.data.human_parser import read_label_map
from tryon.data.masks import MASK_VERSION, agnostic_mask, among, grown, mask_picture
from tryon.data.sample import UNREADABLE, TryOnSample, UnreadablePicture, fitted_sample, read_mask, read_picture

logger = logging.getLogger(__name__)

# What of a label map is the garment. Jumpsuits and two-piece dresses are labelled as the pieces they look like.
WORN = {"upper": ("upper",), "lower": ("lower",), "full": ("full", "upper", "lower")}


@dataclass(frozen=True)
class FolderData:
    """The pairs of a folder's lists as samples of one panel size: a SampleSource. mask_rule: how masks are made from
    DressCode's label maps; None for VITON-HD, which has masks of its own."""

    pairs: list[FolderPair]
    height: int
    width: int
    mask_rule: MaskRule | None = None
    mask_growth: float = 0.0
    variants: int = 1

    def __len__(self) -> int:
        return self.variants * len(self.pairs)

    def pair(self, index: int) -> FolderPair:
        """The pair of sample `index`."""
        return self.pairs[index % len(self.pairs)]

    def category(self, index: int) -> Category:
        return self.pair(index).category

    def name(self, index: int) -> str:
        return self.pair(index).name

    def key(self, index: int) -> str:
        """A hash of the files' bytes and of every setting that shapes the sample. A missing file counts as empty."""
        pair, size = self.pair(index), (self.height, self.width)
        facts = ("viton-hd", pair.category, *size)
        if self.mask_rule:
            variant = index // len(self.pairs) if self.mask_growth else 0
            facts = ("dresscode", MASK_VERSION, pair.category, *size, self.mask_rule, self.mask_growth, variant)
        digest = hashlib.sha256(repr(facts).encode())
        for file in (pair.person, pair.garment, pair.mask):
            digest.update(hashlib.sha256(file.read_bytes() if file.is_file() else b"").digest())
        return digest.hexdigest()

    def __getitem__(self, index: int) -> TryOnSample:
        pair, key = self.pair(index), self.key(index)
        try:
            person, garment = read_picture(pair.person), read_picture(pair.garment)
            if self.mask_rule:
                labels = read_label_map(pair.mask, person.size)
                rng = np.random.default_rng(list(bytes.fromhex(key)[:16]))  # the same whenever it is built
                rule = grown(self.mask_rule, self.mask_growth, rng)
                mask = mask_picture(agnostic_mask(among(labels, WORN[pair.category]), pair.category, rule, labels))
            else:
                mask = read_mask(pair.mask, person.size)
        except UNREADABLE as error:
            raise UnreadablePicture(f"{pair.name}: {error}") from error
        return fitted_sample(key, (garment, person, mask), pair.category, (self.height, self.width), pair.mask)


def load_viton_hd(dataroot: str, split: str, list_name: str, height: int, width: int, limit: int | None) -> FolderData:
    """The first `limit` pairs of <dataroot>/<list_name>, whose pictures lie in <dataroot>/<split>.

    Raises ValueError as viton_hd_pairs does.
    """
    pairs = viton_hd_pairs(dataroot, split, list_name, limit)
    known = (Path(dataroot).expanduser() / split / "categories.txt").is_file()
    why = "" if known else "; all upper, because there is no categories.txt"
    logger.info("%s pairs: %d  (%s%s)", split, len(pairs), _counts(pairs), why)
    return FolderData(pairs, height, width)


def load_dresscode(
    dataroot: str, list_name: str, masks: MaskConfig, height: int, width: int, limit: int | None
) -> FolderData:
    """The first `limit` pairs of <dataroot>/<upper_body, lower_body, dresses>/<list_name>, the folders by turns.

    Raises ValueError as dresscode_pairs does.
    """
    pairs = dresscode_pairs(dataroot, list_name, limit)
    logger.info("%s: %d pairs  (%s)", list_name, len(pairs), _counts(pairs))
    variants = masks.variants if masks.mask_growth else 1
    return FolderData(pairs, height, width, mask_rule_of(masks), masks.mask_growth, variants)


def _counts(pairs: list[FolderPair]) -> str:
    counts = Counter(pair.category for pair in pairs)
    return ", ".join(f"{counts[category]} {category}" for category in CATEGORIES if counts[category])
