"""Agnostic masks: what of the person is hidden from the model and repainted. Pure.

The mask must hide what the garment was, its length and outline included, without taking face and background where it
need not. Training and inference must use the same rule; its name travels with the LoRA.
"""

import torch
from torch import Tensor

from tryon.sample import Category

MASK_RULE = "rectangle"

# How far the rectangle outgrows the garment's bounding box, as a share of the box's width and height. The room beside
# and below an upper garment is where a longer sleeve or hem would be.
SIDE_GROWTH = 0.15
UPPER_HEM_GROWTH = 0.15


def agnostic_mask(garment_mask: Tensor, category: Category) -> Tensor:
    """[1, H, W] bool region of the worn garment -> [1, H, W] bool region to repaint, at any resolution.

    A rectangle around the garment. Lower- and full-body garments reach down to the picture's lower edge, so that
    neither a skirt's length nor a trouser leg can be read from it.

    Raises ValueError where the garment's region is empty.
    """
    rows = garment_mask[0].any(dim=1).nonzero().flatten()
    columns = garment_mask[0].any(dim=0).nonzero().flatten()
    if len(rows) == 0:
        raise ValueError("the garment's mask is empty: give a mask with the garment in white on black")
    height, width = garment_mask.shape[-2:]
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1

    margin = round(SIDE_GROWTH * (right - left))
    left, right = max(0, left - margin), min(width, right + margin)
    bottom = min(height, bottom + round(UPPER_HEM_GROWTH * (bottom - top))) if category == "upper" else height

    mask = torch.zeros_like(garment_mask)
    mask[:, top:bottom, left:right] = True
    return mask
