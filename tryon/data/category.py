"""The categories of garments, and the rule that hides what a person wears. Imports nothing heavy."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from tryon.config import Category, MaskConfig, MaskRuleName

CATEGORIES: tuple[Category, ...] = get_args(Category)


def plain(word: str) -> str:
    """A name of a category or a kind of garment as it is compared: without case, spaces, slashes, hyphens and
    underscores."""
    return re.sub(r"[\s/_-]", "", word).casefold()


@dataclass(frozen=True)
class MaskRule:
    """A rule and how much further than it the mask reaches, in shares of the picture's height (top, bottom) and width
    (left, right). parser: hub name or folder of the model that tells the rule the person's parts, where one does."""

    name: MaskRuleName = "rectangle"
    top: float = 0.0
    bottom: float = 0.0
    left: float = 0.0
    right: float = 0.0
    parser: str | None = None

    @property
    def offsets(self) -> tuple[float, float, float, float]:
        return self.top, self.bottom, self.left, self.right


@dataclass(frozen=True)
class MaskVariation:
    """How masks of training differ from their rule at random, 0..1 both. growth: by how much of the picture each side
    reaches further, at most. share: of the masks that follow a larger rule, or an outline as if drawn by hand."""

    growth: float = 0.0
    share: float = 0.0

    @property
    def is_random(self) -> bool:
        return self.growth > 0 or self.share > 0


def mask_rule_of(masks: MaskConfig, parser: str | None = None) -> MaskRule:
    """The rule that the settings ask for."""
    return MaskRule(masks.mask_rule, masks.mask_top, masks.mask_bottom, masks.mask_left, masks.mask_right, parser)


def mask_variation_of(masks: MaskConfig) -> MaskVariation:
    """How the settings let masks vary."""
    return MaskVariation(masks.mask_growth, masks.mask_variation)


def category_order(name: str) -> int:
    """A key that sorts names of losses: those of all garments first, then those that end in a category, as in
    CATEGORIES."""
    return next((place for place, category in enumerate(CATEGORIES, 1) if name.endswith(f"_{category}")), 0)


def left_to_base(categories: Sequence[str]) -> str:
    """Which garments are dressed without the LoRA, in a sentence; empty where none are. categories: of
    --base_categories."""
    garments = " and ".join(f"{category}-body" for category in categories)
    return f"{garments} garments are dressed without the LoRA, which was not trained on them" if garments else ""
