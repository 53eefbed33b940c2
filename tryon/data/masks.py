"""Agnostic masks: what of the person is hidden from the model and repainted. Pure.

The mask must hide what the garment was, its length and outline included, without taking face and background where it
need not. Training and inference must use the same rule; it travels with the LoRA.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import label
from scipy.spatial import ConvexHull
from torch import Tensor
from torch.nn.functional import pad

from tryon.data.category import Category, MaskRule

# What a label map of a person tells apart; its values are places in this list. ATR labels, which most human parsers and
# DressCode's label maps have, know no hands: they are part of the arms.
PARTS = ("background", "head", "arms", "hands", "legs", "shoes", "upper", "lower", "full", "other")
# What of a label map each category repaints besides the garment itself, and what it must leave alone.
REPAINTED: dict[Category, tuple[str, ...]] = {
    "upper": ("upper", "arms"),
    "lower": ("lower", "legs"),
    "full": ("full", "upper", "lower", "arms", "legs"),
}
PROTECTED: dict[Category, tuple[str, ...]] = {
    "upper": ("head", "hands", "shoes", "legs", "lower", "other"),
    "lower": ("head", "hands", "shoes", "arms", "upper", "other"),
    "full": ("head", "hands", "shoes", "other"),
}
# Bump when a mask changes: cached latents are named after it.
MASK_VERSION = 2
SMOOTHING = 0.03  # of the picture's height: gaps up to this are closed, and outlines rounded by half of it
SPECK = 0.001  # of the picture's area: smaller regions are a parser's mistakes


def grown(rule: MaskRule, growth: float, rng: np.random.Generator) -> MaskRule:
    """The rule, reaching further down and sideways by up to `growth` of the picture. Not up: there are neckline and
    face."""
    bottom, left, right = growth * rng.random(3)
    return replace(rule, bottom=rule.bottom + bottom, left=rule.left + left, right=rule.right + right)


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
    "lower": Rectangle(depth=0.15, least=0.5, width=1.75, height=None),
    "full": Rectangle(depth=0.25, least=0.38, width=1.5, height=None),
}


def agnostic_mask(
    garment_mask: Tensor,
    category: Category,
    rule: MaskRule = MaskRule(),
    labels: Tensor | None = None,
    unsure: float = 0.0,
) -> Tensor:
    """[1, H, W] bool region of the worn garment -> [1, H, W] bool region to repaint, at any resolution.

    labels: [H, W] of places in PARTS, which all rules but the rectangle need. unsure: the garment may begin so much
    higher, as a share of the picture's height; the mask does, but for the head. Raises ValueError where the garment's
    region is empty, and where labels are needed and not given.
    """
    if not garment_mask.any():
        raise ValueError("the garment's mask is empty: give a mask with the garment in white on black")
    if rule.name == "rectangle":
        return _extended(_rectangle(garment_mask, category), replace(rule, top=rule.top + unsure))
    if labels is None:
        raise ValueError(
            f"the mask rule {rule.name} needs to know the person's parts: name a parser, or use the rule rectangle"
        )
    reach = max(1, round(SMOOTHING * garment_mask.shape[1] / 2))
    region = garment_mask | without_specks(among(labels, REPAINTED[category]))
    region = _shrunk(_grown(region, 2 * reach), reach)  # closes gaps, leaves the outline rounded and a little larger
    if rule.name == "hull":
        region = _hulls(region)
    higher = _extended(garment_mask, MaskRule(top=unsure)) & ~among(labels, ("head",))
    return (_extended(region, rule) | higher) & ~(among(labels, PROTECTED[category]) & ~(garment_mask | higher))


def _rectangle(garment_mask: Tensor, category: Category) -> Tensor:
    """A rectangle that depends on the garment's upper edge, the width a little below it, the category and the picture's
    lower edge, so that it is the same for short and long sleeves, for shorts, trousers and skirts. It begins at the
    garment's upper edge. Only a garment that it does not cover makes it larger.
    """
    worn = garment_mask[0]
    rows = worn.any(dim=1).nonzero().flatten()
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


def among(labels: Tensor, parts: tuple[str, ...]) -> Tensor:
    """[1, H, W] bool: where the labels [H, W] are one of the parts."""
    return torch.isin(labels, torch.tensor([PARTS.index(part) for part in parts]))[None]


def _extended(mask: Tensor, rule: MaskRule) -> Tensor:
    """The mask [1, H, W], as much larger as the rule's offsets say, within the picture."""
    height, width = mask.shape[1:]
    top, bottom = round(rule.top * height), round(rule.bottom * height)
    left, right = round(rule.left * width), round(rule.right * width)
    return _spread(pad(mask, (right, left, bottom, top)), top + bottom + 1, left + right + 1)


def _grown(mask: Tensor, reach: int) -> Tensor:
    """The mask [1, H, W] and all that is within so many pixels of it, in a square."""
    return _spread(pad(mask, (reach, reach, reach, reach)), 2 * reach + 1, 2 * reach + 1)


def _spread(padded: Tensor, rows: int, columns: int) -> Tensor:
    """Where a window of rows x columns has anything in it, by running sums, which cost the same for any window."""
    for axis, size in ((1, rows), (2, columns)):
        sums = pad(padded.cumsum(axis, dtype=torch.int32), (1, 0) if axis == 2 else (0, 0, 1, 0))
        places = padded.shape[axis] - size + 1
        padded = sums.narrow(axis, size, places) > sums.narrow(axis, 0, places)
    return padded


def _shrunk(mask: Tensor, reach: int) -> Tensor:
    return ~_grown(~mask, reach)


def without_specks(mask: Tensor) -> Tensor:
    """The mask [1, H, W] bool without connected regions that are smaller than SPECK."""
    numbers, _ = label(mask[0].numpy())
    large = np.bincount(numbers.ravel()) >= SPECK * numbers.size
    large[0] = False
    return torch.from_numpy(large[numbers])[None]


def _hulls(mask: Tensor) -> Tensor:
    """The convex hull of each connected region of the mask [1, H, W]."""
    numbers, count = label(mask[0].numpy())
    picture = Image.new("1", numbers.shape[::-1])
    pen = ImageDraw.Draw(picture)
    for number in range(1, count + 1):
        points = np.argwhere(numbers == number)[:, ::-1]
        pen.polygon(points[ConvexHull(points).vertices].ravel().tolist(), fill=1, outline=1)
    return mask | torch.from_numpy(np.array(picture))[None]
