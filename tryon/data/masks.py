"""Agnostic masks: the region of the person that is hidden from the model and repainted. Pure functions.

A mask must hide which garment was worn, its length and outline included, and should leave face and background alone.
Training and inference must use the same rule, so the LoRA's header names it.
"""

from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
import torch
from PIL import Image, ImageDraw
from scipy.ndimage import binary_opening, distance_transform_edt, label, maximum_filter
from scipy.spatial import ConvexHull
from torch import Tensor

from tryon.config import MaskRuleName
from tryon.data.category import Category, MaskRule, MaskVariation

RULES: tuple[MaskRuleName, ...] = get_args(MaskRuleName)  # the largest masks first
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
# The garments that one of each category takes the place of.
REPLACED_GARMENTS: dict[Category, tuple[str, ...]] = {
    "upper": ("upper", "full"),
    "lower": ("lower", "full"),
    "full": ("full", "upper", "lower"),
}
# Raise it when a mask changes: the names of cached latents depend on it.
MASK_VERSION = 2
VARIATION_VERSION = 1  # as MASK_VERSION, for masks that vary only
SMOOTHING = 0.03  # of the picture's height: the mask grows by this and shrinks by half of it
SPECK = 0.001  # of the picture's area: smaller regions are mistakes of the parser
BY_HAND = 0.03, 0.1  # of the picture's height: how far around its region an outline drawn by hand lies, at most
SLIVER = 0.02  # of the picture's height: where labels differ over less than this, each way, nothing has moved
WAVES = 6, 4  # random distances of such an outline, down and across the picture; smooth in between


@dataclass(frozen=True)
class Rectangle:
    """A rectangle that hangs from the neckline or the waistline. Its unit is the width of the body there."""

    depth: float  # units below the garment's upper edge at which the body's width is measured
    least: float  # the unit is at least this share of the height from the garment's upper edge to the picture's lower
    width: float  # units
    height: float | None  # units; None: down to the picture's lower edge
    headroom: float  # units above the garment's upper edge in which there is no face


# The depths are those of shoulders and hips, where the width does not depend on sleeves, hems and flares. The least
# widths are those of a whole figure: they make up for the shoulders that a sleeveless garment does not cover. A collar
# may touch the chin. From waist to chin it is 0.76 units or more on 60 drawn people.
RECTANGLES: dict[Category, Rectangle] = {
    "upper": Rectangle(depth=0.25, least=0.38, width=1.5, height=1.15, headroom=0),
    "lower": Rectangle(depth=0.15, least=0.5, width=1.75, height=None, headroom=0.5),
    "full": Rectangle(depth=0.25, least=0.38, width=1.5, height=None, headroom=0),
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


def varied_mask(
    garment_mask: Tensor, category: Category, rule: MaskRule, labels: Tensor | None, variation: MaskVariation,
    rng: np.random.Generator, unsure: float = 0.0,
) -> Tensor:  # fmt: skip
    """The mask of agnostic_mask, larger at random, as the masks are that people give: never smaller, and no further
    over the head. Without labels it grows no higher than where a face may begin. Each side grows by itself."""
    own = agnostic_mask(garment_mask, category, rule, labels, unsure)
    if not variation.is_random:
        return own
    sides = (offset + variation.growth * drawn for offset, drawn in zip(rule.offsets, rng.random(4), strict=True))
    grown = MaskRule(rule.name, *sides)
    larger = agnostic_mask(garment_mask, category, grown, labels, unsure)
    if rng.random() < variation.share:
        kinds = [*RULES[: RULES.index(rule.name)], "by hand"]
        if (kind := kinds[rng.integers(len(kinds))]) == "by hand":
            larger = _drawn_by_hand(larger, rng)
        else:
            larger = agnostic_mask(garment_mask, category, replace(grown, name=kind), labels, unsure)
    return own | (larger & ~_around_face(garment_mask, category, labels))


def needed_mask(mask: Tensor, category: Category, before: Tensor, after: Tensor, margin: float) -> Tensor:
    """What of a mask, [1, H, W] bool, had to be repainted: the old garment, the new one, and whatever else is not where
    it was. Never larger than the mask.

    before, after: [H, W] of indices into PARTS, of the person and of the result. margin: how far around it the needed
    reaches, as a share of the height.
    """
    height = mask.shape[1]
    cloth = among(before, REPLACED_GARMENTS[category]) | among(after, REPLACED_GARMENTS[category])
    side = max(1, round(SLIVER * height))
    moved = binary_opening(((before != after) & ~cloth[0]).numpy(), np.ones((side, side)))
    needed = without_specks((cloth | torch.from_numpy(moved)) & mask)
    return _dilated(needed, *[round(margin * height)] * 4) & mask


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


def _around_face(garment_mask: Tensor, category: Category, labels: Tensor | None) -> Tensor:
    """[1, H, W] bool, where the head is; without labels everything that is so high that it may be."""
    if labels is not None:
        return among(labels, ("head",))
    top = int(garment_mask[0].any(1).nonzero()[0])
    _, unit = _body(garment_mask[0, top:], RECTANGLES[category])
    face = torch.zeros_like(garment_mask)
    face[:, : max(0, top - round(RECTANGLES[category].headroom * unit))] = True
    return face


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


def _drawn_by_hand(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """The mask [1, H, W] bool with a rounded, wavy outline around it, at a distance that changes smoothly."""
    height, width = mask.shape[1:]
    waves = Image.fromarray(rng.uniform(0.3, 1, WAVES).astype(np.float32))
    reach = rng.uniform(*BY_HAND) * height * np.asarray(waves.resize((width, height), Image.Resampling.BICUBIC))
    distance = distance_transform_edt(~mask[0].numpy())  # pixels; 0 in the mask
    return torch.from_numpy(distance <= reach.clip(min=0))[None]


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
