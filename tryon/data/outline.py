"""How much a mask's outline follows what is seen on the picture. Pure.

Where a garment ends, the colour changes. A mask whose outline lies on such edges follows the garment and gives its
shape away; one whose outline runs through even colour is larger than the garment.
"""

import numpy as np
from PIL import Image, ImageCms
from scipy.ndimage import binary_erosion, maximum_filter, minimum_filter

OUTLINE_SIZE = 288  # pixels of the shorter side, to which pictures are reduced
OUTLINE_REACH = 4  # pixels to both sides
STILL_COLOUR = 5.0  # CIELAB units between the extremes; more is an edge

_TO_LAB = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")


def to_lab(picture: Image.Image) -> np.ndarray:
    """[H, W, 3] float32: L* (0..100), a* and b* (-128..127) of an RGB picture."""
    lab = np.asarray(ImageCms.applyTransform(picture, _TO_LAB)).astype(np.float32)
    lab[..., 0] *= 100 / 255
    lab[..., 1:] = (lab[..., 1:] + 128) % 256 - 128  # Pillow gives signed bytes
    return lab


def outline_on_edges(person: Image.Image, mask: Image.Image) -> float | None:
    """Share of the mask's outline near which the picture's colour changes, 0..1; None where the mask has no outline
    within the picture. person: RGB; mask: "L" of 0 and 255, of the same size."""
    factor = max(1, min(person.size) // OUTLINE_SIZE)
    small = np.asarray(mask.reduce(factor)) > 127
    outline = small & ~binary_erosion(small, border_value=1)
    if not outline.any():
        return None
    lab, size = to_lab(person.reduce(factor)), (2 * OUTLINE_REACH + 1, 2 * OUTLINE_REACH + 1, 1)
    change = (maximum_filter(lab, size) - minimum_filter(lab, size)).max(-1)
    return float((change[outline] >= STILL_COLOUR).mean())
