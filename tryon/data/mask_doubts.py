"""Why a mask that somebody gave is hardly one that was meant: by its shape, and by what of the person it hides."""

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import binary_opening
from torch import Tensor

from tryon.data.category import Category
from tryon.data.human_parser import worn_garments
from tryon.data.masks import SLIVER, among, without_specks

# A mask that covers more of the picture, or more of its border and less of its middle, is hardly one that was meant.
# No mask of 360 drawn people was doubted, by any rule, and each of them that was inverted was found.
NEARLY_ALL, NEARLY_ALL_OF_BORDER = 0.9, 0.8
GRID = 64  # cells, across and down, in which a mask is looked at
ROWS = 384  # pixels; in more, which would take seconds, every second or third one is compared with the labels
# Of the head above the clothes: long hair that falls on them belongs under a mask. Mask rules hid at most 0.11 of it on
# 360 drawn people and 0.56 on ten photographs, whose heads were outlined by hand; inverted masks at least 0.89.
MOST_OF_HEAD = 0.7
# Of the worn garment, strips apart that are thinner than SLIVER, by which a parser errs at outlines. Mask rules left at
# most 0.08 of it uncovered on those drawn people, and nothing where the labels made the mask.
LEFT_OF_GARMENT = 0.1


def doubts_about_mask(mask: Image.Image, labels: Tensor | None, category: Category | None) -> Iterator[str]:
    """Why a mask, "L" of 0 and 255, is hardly one that was meant, each reason in a clause.

    labels: [H, W] of places in PARTS, of the mask's person; None: they are not known. category: of the new garment;
    None: what stays of the old one is not looked at.
    """
    if doubt := doubt_about_shape(mask):
        yield doubt
        return
    if labels is None:
        return
    every = max(1, mask.height // ROWS)
    labels, hidden = labels[::every, ::every], torch.from_numpy(np.array(mask) > 0)[None, ::every, ::every]
    worn = worn_garments(labels)
    if (share := _hidden_head(hidden, labels, worn)) > MOST_OF_HEAD:
        yield (
            f"the mask is white over {share:.0%} of face and hair above the clothes, as the parser sees them: they are "
            "repainted too"
        )
    if category and (share := _left_over(hidden, worn[category])) > LEFT_OF_GARMENT:
        yield (
            f"{share:.0%} of the {category}-body garment that is worn, as the parser sees it, lies outside the mask "
            "and will still be seen"
        )


def doubt_about_shape(mask: Image.Image) -> str | None:
    """Why a mask, "L" of 0 and 255, is hardly one of any picture; None where it may well be."""
    white = np.asarray(mask.resize((GRID, GRID), Image.Resampling.BOX)) / 255
    inside, middle = white[1:-1, 1:-1], white[GRID // 4 : -GRID // 4, GRID // 4 : -GRID // 4]
    border = (white.sum() - inside.sum()) / (white.size - inside.size)
    share = mask.histogram()[255] / (mask.width * mask.height)
    white_is = f"the mask is white over {share:.0%} of the picture"
    if border > NEARLY_ALL_OF_BORDER > middle.mean():
        return f"{white_is}, and at its border more than in its middle: white is repainted, it looks inverted"
    if share > NEARLY_ALL:
        return f"{white_is}: all of that is repainted, perhaps the face too"
    return None


def _hidden_head(hidden: Tensor, labels: Tensor, worn: dict[Category, Tensor]) -> float:
    """The share under the mask of the head that lies above all clothes; 0 where there is none."""
    head = among(labels, ("head",))
    rows = torch.cat([*worn.values()]).any(0).any(1).nonzero()
    if len(rows):
        head[:, int(rows[0]) :] = False
    head = without_specks(head)
    return int((head & hidden).sum()) / max(1, int(head.sum()))


def _left_over(hidden: Tensor, worn: Tensor) -> float:
    """The share of the worn garment that lies outside the mask, slivers apart; 0 where none is worn."""
    side = max(1, round(SLIVER * worn.shape[1]))
    seen = binary_opening((worn & ~hidden)[0].numpy(), np.ones((side, side)))
    return int(seen.sum()) / max(1, int(worn.sum()))
