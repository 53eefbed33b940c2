"""Garment where none should be: what is left of the old one, and cloth in the place of skin or background.

Of drawings the truth is known, and so is every such pixel. In photographs a human parser's labels, before and after,
show garments of another kind than the one that was asked for.
"""

import numpy as np
from torch import Tensor

from tryon.data.category import CATEGORIES, Category
from tryon.data.masks import among

SEEN = 48  # distance in RGB, 0..442, from which a pixel looks other than the true one
# What may be worn together: that a person's other garment is seen before and after is right.
WORN_WITH = {"upper": "lower", "lower": "upper"}


def share_by_truth(
    picture: np.ndarray, truth: np.ndarray, mask: np.ndarray, garment: np.ndarray, colours: np.ndarray
) -> float:
    """The share of the mask's pixels that look like garment where the truth has none: unlike the true colour, and
    nearer to one of `colours`, those of the old garment and the new one.

    picture, truth: [H, W, 3] of 0..255. mask, garment: [H, W] bool, the second is where the new garment truly is.
    colours: [N, 3].
    """
    bare = mask & ~garment
    pixels = picture[bare].astype(float)
    away = np.linalg.norm(pixels - truth[bare], axis=-1)
    unlike = away > SEEN
    nearest = np.linalg.norm(pixels[unlike, None] - colours, axis=-1).min(-1)
    return float((nearest < away[unlike]).sum() / mask.sum())


def share_by_labels(before: Tensor, after: Tensor, mask: Tensor, category: Category) -> float:
    """The share of the mask's pixels that are labelled, in the result, as a kind of garment that was not asked for; but
    for the person's other garment where it was seen before: trousers below a new top.

    before, after: [H, W] of places in PARTS, of the person and of the result. mask: [1, H, W] in {0, 1}. category: of
    the garment that was asked for.
    """
    wrong = among(after, tuple(each for each in CATEGORIES if each != category))
    if category in WORN_WITH:
        kept = (WORN_WITH[category],)
        wrong &= ~(among(before, kept) & among(after, kept))
    return wrong[mask.bool()].float().mean().item()
