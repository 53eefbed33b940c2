"""Agnostic masks: what of the person is hidden from the model and repainted. Pure.

The mask must hide what the garment was, its length and outline included, without taking face and background where it
need not. Training and inference must use the same rule; its name travels with the LoRA.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tryon.sample import Category

MASK_RULE = "rectangle"


@dataclass(frozen=True)
class Rectangle:
    """A rectangle that hangs from the neckline or the waistline, measured in widths of the body there."""

    depth: float  # below the garment's upper edge, where the body's width is taken
    least: float  # the body is taken to be at least so wide, as a share of what is left down to the lower edge
    width: float
    height: float | None  # None: down to the picture's lower edge


# The depths are those of shoulders and hips, where the width says nothing of sleeves, hems and flares. The least widths
# are those of a whole figure: they make up for the shoulders that a sleeveless garment does not cover.
RECTANGLES: dict[Category, Rectangle] = {
    "upper": Rectangle(depth=0.25, least=0.38, width=1.5, height=1.15),
    "lower": Rectangle(depth=0.15, least=0.42, width=2.0, height=None),
    "full": Rectangle(depth=0.25, least=0.38, width=1.5, height=None),
}


def agnostic_mask(garment_mask: Tensor, category: Category) -> Tensor:
    """[1, H, W] bool region of the worn garment -> [1, H, W] bool region to repaint, at any resolution.

    A rectangle that depends on the garment's upper edge, the width a little below it, the category and the picture's
    lower edge, so that it is the same for short and long sleeves, for shorts, trousers and skirts. It begins at the
    garment's upper edge. Only a garment that it does not cover makes it larger.

    Raises ValueError where the garment's region is empty.
    """
    worn = garment_mask[0]
    rows = worn.any(dim=1).nonzero().flatten()
    if len(rows) == 0:
        raise ValueError("the garment's mask is empty: give a mask with the garment in white on black")
    height, width = worn.shape
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = worn.any(dim=0).nonzero().flatten()

    rule = RECTANGLES[category]
    middle, unit = _body(worn[top:], rule)
    start = min(round(middle - rule.width * unit / 2), int(columns[0]))
    end = max(round(middle + rule.width * unit / 2), int(columns[-1]) + 1)
    bottom = height if rule.height is None else max(bottom, round(top + rule.height * unit))

    mask = torch.zeros_like(garment_mask)
    mask[:, top:bottom, max(0, start) : end] = True
    return mask


def _body(worn: Tensor, rule: Rectangle) -> tuple[float, float]:
    """Middle and width of the body under a region, [H, W] bool from its first row down to the picture's lower edge."""
    for row, line in enumerate(worn):
        columns = line.nonzero().flatten()
        if len(columns) == 0:
            continue
        left, right = int(columns[0]), int(columns[-1]) + 1
        middle, unit = (left + right) / 2, max(right - left, rule.least * len(worn))
        if row >= rule.depth * unit:
            break
    return middle, unit
