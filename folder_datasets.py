"""Try-on data sets that lie in folders, as TryOnSamples.

VITON-HD:

    <dataroot>/train/image/00001_00.jpg               the person
    <dataroot>/train/cloth/00001_00.jpg               the garment it wears
    <dataroot>/train/agnostic-mask/00001_00_mask.png  white: to be repainted
    <dataroot>/train_pairs.txt                        lines of `person.jpg garment.jpg`

and the same below `test`. The second name of a line is the garment of the unpaired test: training and validation pair a
person with the garment of its own name. VITON-HD has upper-body garments only; folders with others say so in

    <dataroot>/train/categories.txt                   lines of `person.jpg upper`, or lower, or full

A person's own folder needs image and cloth only, which may lie in <dataroot> itself: without a list every picture is
taken, without a test a tenth of the garments is held back, and without masks a human parser labels the people, for
masks as inference makes them.

DressCode, where upper_body may also be lower_body or dresses:

    <dataroot>/upper_body/images/048392_0.jpg         the person, and 048392_1.jpg the garment it wears
    <dataroot>/upper_body/label_maps/048392_4.png     the person's parts, from which the mask is made
    <dataroot>/upper_body/train_pairs.txt             lines of `048392_0.jpg 048392_1.jpg`
    <dataroot>/upper_body/test_pairs_paired.txt
"""

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

from folder_lists import FolderConfig, FolderPair, garment_of, has_masks, has_validation, needs_parser, read_pairs
from tryon.config import DEFAULT_PARSER, MaskConfig, TrainConfig, TryOnConfig
from tryon.data.category import CATEGORIES, Category, MaskRule, MaskVariation, mask_rule_of, mask_variation_of
from tryon.data.human_parser import UNSURE, cached_label_maps, find_worn, read_label_map
from tryon.data.layout import is_dresscode
from tryon.data.masks import MASK_VERSION, VARIATION_VERSION, among, mask_picture, varied_mask
from tryon.data.sample import UNREADABLE, TryOnSample, UnreadablePicture, fitted_sample, read_mask, read_picture
from tryon.toy.model import toy_parser
from tryon.units import plural

logger = logging.getLogger(__name__)

# What of a label map is the garment. Jumpsuits and two-piece dresses are labelled as the pieces they look like.
WORN = {"upper": ("upper",), "lower": ("lower",), "full": ("full", "upper", "lower")}


@dataclass(frozen=True)
class FolderData:
    """The pairs of a folder as samples of one panel size: a SampleSource. mask_rule: how masks are made from label
    maps; None for VITON-HD, which has masks of its own. parsed: the label maps are a parser's, not DressCode's."""

    worn_reference_share: ClassVar[float] = 0.0
    pairs: list[FolderPair]
    height: int
    width: int
    mask_rule: MaskRule | None = None
    mask_variation: MaskVariation = MaskVariation()
    variants: int = 1
    parsed: bool = False

    def __len__(self) -> int:
        return self.variants * len(self.pairs)

    def pair(self, index: int) -> FolderPair:
        """The pair of sample `index`."""
        return self.pairs[index % len(self.pairs)]

    def category(self, index: int) -> Category:
        return self.pair(index).category

    def name(self, index: int) -> str:
        return self.pair(index).name

    def shows_garment_alone(self, index: int) -> bool:
        return True

    def key(self, index: int) -> str:
        """A hash of the files' bytes and of every setting that shapes the sample. A missing file counts as empty."""
        pair, size = self.pair(index), (self.height, self.width)
        facts = ("viton-hd", pair.category, *size)
        if self.mask_rule:
            variation = self.mask_variation
            variant = index // len(self.pairs) if variation.is_random else 0
            rule, kind = replace(self.mask_rule, parser=None), "parsed" if self.parsed else "dresscode"
            facts = (kind, MASK_VERSION, pair.category, *size, rule, variation.growth, variant)
            if variation.is_random:
                facts += (VARIATION_VERSION, variation.share)
        digest = hashlib.sha256(repr(facts).encode())
        for file in (pair.person, pair.garment, pair.mask):
            digest.update(hashlib.sha256(file.read_bytes() if file.is_file() else b"").digest())
        return digest.hexdigest()

    def person(self, index: int) -> Image.Image:
        return read_picture(self.pair(index).person)

    def pictures(self, index: int) -> tuple[Image.Image, Image.Image, Image.Image]:
        """Garment and person as RGB, and what is hidden of the person as "L" of 0 and 255, in their own sizes.

        Raises UnreadablePicture where one cannot be used.
        """
        pair = self.pair(index)
        try:
            person, garment = self.person(index), read_picture(pair.garment)
            if self.mask_rule:
                labels = read_label_map(pair.mask, person.size)
                if self.parsed:
                    worn, unsure = find_worn(labels, pair.category), UNSURE
                else:
                    worn, unsure = among(labels, WORN[pair.category]), 0.0
                rng = np.random.default_rng(list(bytes.fromhex(self.key(index))[:16]))  # the same whenever it is built
                region = varied_mask(worn, pair.category, self.mask_rule, labels, self.mask_variation, rng, unsure)
                mask = mask_picture(region)
            else:
                mask = read_mask(pair.mask, person.size)
        except UNREADABLE as error:
            raise UnreadablePicture(f"{pair.name}: {error}") from error
        return garment, person, mask

    def __getitem__(self, index: int) -> TryOnSample:
        pictures, size = self.pictures(index), (self.height, self.width)
        return fitted_sample(self.key(index), pictures, self.category(index), size, self.pair(index).mask)


def load_folder(
    folders: FolderConfig, masks: MaskConfig, config: TrainConfig, device: torch.device
) -> tuple[FolderData, FolderData]:
    """Training and validation data of the folder. Raises ValueError as read_pairs and cached_label_maps do."""
    train, validation = read_pairs(folders, config)
    for line in describe_pairs(folders, train, validation):
        logger.info("%s", line)
    train_data = folder_samples(train, folders, masks, config, device)
    fixed = replace(masks, mask_growth=0.0, mask_variation=0.0)
    return train_data, folder_samples(validation, folders, fixed, config, device)


def describe_pairs(folders: FolderConfig, train: list[FolderPair], validation: list[FolderPair]) -> list[str]:
    """How many pairs of each category there are, and why, in lines."""
    root = Path(folders.dataroot)
    categories = [folder / "categories.txt" for folder in (root, root / "train", root / "test")]
    known = is_dresscode(folders.dataroot) or any(file.is_file() for file in categories)
    why = "" if known else "; all upper, because there is no categories.txt"
    both = (("training", train), ("validation", validation))
    lines = [f"{what} pairs: {len(pairs)}  ({_counts(pairs)}{why})" for what, pairs in both]
    if not folders.train_data_list:
        lines.append("no list of training pairs: every picture is taken")
    if not has_validation(folders):
        garments = plural(len(set(map(garment_of, validation))), "garment")
        lines.append(f"no list of pairs to validate on: {garments} held back from the training")
    return lines


def folder_samples(
    pairs: list[FolderPair], folders: FolderConfig, masks: MaskConfig, config: TrainConfig | TryOnConfig,
    device: torch.device,
) -> FolderData:  # fmt: skip
    """Pairs of the folder as samples. config: with the panel's size. Raises ValueError as cached_label_maps does."""
    size = config.height, config.width
    if has_masks(Path(folders.dataroot).expanduser()):
        return FolderData(pairs, *size)
    rule, parsed = mask_rule_of(masks, folders.parser), needs_parser(folders)
    if parsed:
        cache = Path(config.data_cache_dir).expanduser()
        parser = folders.parser or (str(toy_parser(cache)) if config.toy else DEFAULT_PARSER)
        maps = cached_label_maps([pair.person for pair in pairs], parser, config.cache_dir, cache, device)
        pairs = [replace(pair, mask=file) for pair, file in zip(pairs, maps, strict=True)]
    variation = mask_variation_of(masks)
    return FolderData(pairs, *size, rule, variation, masks.variants if variation.is_random else 1, parsed)


def _counts(pairs: list[FolderPair]) -> str:
    counts = Counter(pair.category for pair in pairs)
    return ", ".join(f"{counts[category]} {category}" for category in CATEGORIES if counts[category])
