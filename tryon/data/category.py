"""The categories of garments, and the rule that hides what a person wears. Imports nothing heavy."""

import re
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


def mask_rule_of(masks: MaskConfig, parser: str | None = None) -> MaskRule:
    """The rule that the settings ask for."""
    return MaskRule(masks.mask_rule, masks.mask_top, masks.mask_bottom, masks.mask_left, masks.mask_right, parser)
