"""Between a photograph of any size and the panel that the model paints: which part of it is shown to the model, and how
what was painted gets back into it; and what of the person was hidden for nothing."""

import logging

import numpy as np
import torch
from PIL import Image, ImageOps
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from tryon.data.category import Category
from tryon.data.human_parser import UNSURE
from tryon.data.masks import REPLACED_GARMENTS, among, mask_picture, needed_mask, without_specks

logger = logging.getLogger(__name__)

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels, the last two just outside

SEAM = 0.008  # of the photograph's longer side: how far inside the mask's edge the new picture fades in


def window_of(mask: Image.Image, height: int, width: int) -> Box:
    """The part of a photograph that is fitted into a panel of height x width: all of it, as in training.

    Only a landscape is cut to the panel's shape, around the mask, unless the mask is wider: training has not seen
    landscapes, and they would leave most of the panel empty. mask: "L" of 0 and 255, of the photograph's size, not
    empty.
    """
    left, _, right, _ = mask.getbbox()
    whole = (0, 0, *mask.size)
    wanted = round(mask.height * width / height)
    if mask.width <= max(mask.height, wanted) or right - left > wanted:
        return whole
    start = round((left + right - wanted) / 2)
    start = min(max(start, 0), mask.width - wanted)
    return start, 0, start + wanted, mask.height


def put_back(person: Image.Image, mask: Image.Image, panel: Image.Image, window: Box) -> Image.Image:
    """The photograph with the panel's picture in its mask, at its own size: RGB.

    person, mask: RGB, and "L" of 0 and 255. panel: what was made of their window, fitted as `fit_picture` does.
    Pixels outside the mask are exactly the person's; inside, the new picture fades in over a narrow seam.
    """
    size = window[2] - window[0], window[3] - window[1]
    fitted = ImageOps.pad(Image.new("L", size, 255), panel.size, Image.Resampling.NEAREST, color=0).getbbox()
    painted = panel.crop(fitted)
    if painted.size != size:
        painted = painted.resize(size, Image.Resampling.LANCZOS)
    restored = person.copy()
    restored.paste(painted, window, _fading(mask.crop(window)))
    return restored


def given_back(
    person: Image.Image, result: Image.Image, mask: Image.Image, category: Category, before: Tensor, after: Tensor
) -> Image.Image:
    """The result with everything as it was that the mask hid for nothing: background, limbs and other garments that are
    seen there before and after.

    person, result, mask: RGB, RGB, and "L" of 0 and 255, of one size. before, after: [H, W] of places in PARTS, what a
    human parser finds in person and result. Where it sees no new garment, the log says so, and the result stays.
    """
    hidden = torch.from_numpy(np.array(mask) > 0)[None]
    if not without_specks(hidden & among(after, REPLACED_GARMENTS[category])).any():
        logger.warning("the parser sees no %s-body garment in the result: nothing is given back", category)
        return result
    needed = mask_picture(needed_mask(hidden, category, before, after, UNSURE))
    return put_back(person, needed, result, (0, 0, *person.size))


def _fading(mask: Image.Image) -> Image.Image:
    """ "L": 0 outside the mask, rising to 255 within the seam. The picture's own edges have none."""
    inside = np.asarray(mask) > 0
    if inside.all():
        return mask
    seam = SEAM * max(mask.size)
    distance = distance_transform_edt(inside)  # 1 at the outermost pixels of the mask
    return Image.fromarray((255 * np.clip(distance / (seam + 1), 0, 1)).round().astype(np.uint8))
