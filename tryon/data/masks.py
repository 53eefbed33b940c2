"""Agnostic masks: the region of the person that is hidden from the model and repainted. Pure functions.

A mask must hide which garment was worn, its length and outline included, and should leave face and background alone.
Training and inference must use the same rule, so the LoRA's header names it.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import label, maximum_filter
from scipy.spatial import ConvexHull
from torch import Tensor

from tryon.data.category import Category, MaskRule

# The parts in a label map of a person; its values are indices into this tuple. ATR labels, which most human parsers and
# DressCode's label maps use, have no hands: there they belong to the arms.
PARTS = ("background", "head", "arms", "hands", "legs", "shoes", "upper", "lower", "full", "other")
# The parts that each category repaints besides the garment itself, and those that it must leave alone.
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
# Raise it when a mask changes: the names of cached latents depend on it.
MASK_VERSION = 2
SMOOTHING = 0.03  # of the picture's height: the mask grows by this and shrinks by half of it
SPECK = 0.001  # of the picture's area: smaller regions are mistakes of the parser


def grown(rule: MaskRule, growth: float, rng: np.random.Generator) -> MaskRule:
    """The rule with random offsets of up to `growth` of the picture added below, left and right. Not above: neckline
    and face are there."""
    bottom, left, right = growth * rng.random(3)
    return replace(rule, bottom=rule.bottom + bottom, left=rule.left + left, right=rule.right + right)


@dataclass(frozen=True)
class Rectangle:
    """A rectangle that hangs from the neckline or the waistline. Its unit is the width of the body there."""

    depth: float  # units below the garment's upper edge at which the body's width is measured
    least: float  # the unit is at least this share of the height from the garment's upper edge to the picture's lower
    width: float  # units
    height: float | None  # units; None: down to the picture's lower edge


# The depths are those of shoulders and hips, where the width does not depend on sleeves, hems and flares. The least
# widths are those of a whole figure: they make up for the shoulders that a sleeveless garment does not cover.
RECTANGLES: dict[Category, Rectangle] = {
    "upper": Rectangle(depth=0.25, least=0.38, width=1.5, height=1.15),
    "lower": Rectangle(depth=0.15, least=0.5, width=1.75, height=None),
    "full": Rectangle(depth=0.25, least=0.38, width=1.5, height=None),
}


def agnostic_mask(
    garment_mask: Tensor, category: Category, rule: MaskRule = MaskRule(), labels: Tensor | None = None,
    unsure: float = 0.0,
) -> Tensor:  # fmt: skip
    """[1, H, W] bool region of the worn garment -> [1, H, W] bool region to repaint, at any resolution.

    labels: [H, W] of indices into PARTS, which all rules but the rectangle need. unsure: by how much the garment may
    begin higher, as a share of the picture's height; the mask begins higher by that, except on the head. Raises
    ValueError where the garment's region is empty, and where labels are needed and not given.
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
    region = _closed(garment_mask | without_specks(among(labels, REPAINTED[category])), reach)
    if rule.name == "hull":
        region = _hulls(region)
    higher = _extended(garment_mask, MaskRule(top=unsure)) & ~among(labels, ("head",))
    return (_extended(region, rule) | higher) & ~(among(labels, PROTECTED[category]) & ~(garment_mask | higher))


def mask_picture(mask: Tensor) -> Image.Image:
    """[1, H, W] bool -> "L" of 0 and 255."""
    return Image.fromarray(mask[0].numpy().astype(np.uint8) * 255)


def _rectangle(garment_mask: Tensor, category: Category) -> Tensor:
    """A rectangle that begins at the garment's upper edge. It depends on that edge, on the width a little below it, on
    the category and on the picture's lower edge, so it does not tell short sleeves from long ones, or shorts from
    trousers and skirts. It is larger only where it would not cover the garment."""
    worn, rule = garment_mask[0], RECTANGLES[category]
    rows, columns = (worn.any(dim=axis).nonzero().flatten() for axis in (1, 0))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    middle, unit = _body(worn[top:], rule)
    start = min(round(middle - rule.width * unit / 2), int(columns[0]))
    end = max(round(middle + rule.width * unit / 2), int(columns[-1]) + 1)
    bottom = len(worn) if rule.height is None else max(bottom, round(top + rule.height * unit))

    mask = torch.zeros_like(garment_mask)
    mask[:, top:bottom, max(0, start) : end] = True
    return mask


def _body(worn: Tensor, rule: Rectangle) -> tuple[float, float]:
    """Middle and width in pixels of the body at a garment, [H, W] bool from its first row to the picture's last."""
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
    """Labels [H, W] -> [1, H, W] bool: where they are one of the parts."""
    return torch.isin(labels, torch.tensor([PARTS.index(part) for part in parts]))[None]


def _extended(mask: Tensor, rule: MaskRule) -> Tensor:
    """The mask [1, H, W], larger by the rule's offsets."""
    height, width = mask.shape[1:]
    pixels = (rule.top * height, rule.bottom * height, rule.left * width, rule.right * width)
    return _dilated(mask, *map(round, pixels))


def _dilated(mask: Tensor, up: int, down: int, left: int, right: int) -> Tensor:
    """The mask [1, H, W] bool, larger by a number of pixels on each side; the picture's size stays."""
    size = up + down + 1, left + right + 1
    origin = down - size[0] // 2, right - size[1] // 2  # scipy centres a window of this size at 0
    return torch.from_numpy(maximum_filter(mask[0].numpy(), size, mode="constant", origin=origin))[None]


def _closed(mask: Tensor, reach: int) -> Tensor:
    """The mask [1, H, W] bool, dilated by twice the reach, in pixels, and eroded by it: closes gaps, rounds the outline
    and leaves it a little larger."""
    larger = _dilated(mask, *[2 * reach] * 4)
    return ~_dilated(~larger, *[reach] * 4)


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
