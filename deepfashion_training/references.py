"""Garment references for data without garment pictures: cut-outs, and which views of an item show the same colours."""

import numpy as np
from PIL import Image
from scipy.ndimage import binary_fill_holes, label

from tryon.data.outline import to_lab

CUT_OUT_MARGIN = 0.08  # white around a cut-out garment, as a share of its longer side
HOLE = 0.02  # of the garment's area: smaller holes in its mask are mistakes, larger ones are seen through
SPECK = 0.02  # of the garment's area: smaller regions beside it are mistakes
SCALES = (0.7, 1.0)  # of a moved cut-out, in its frame
TILT = 12  # degrees that it is turned at most
SIGNATURE_SIZE = 96  # pixels that pictures are reduced to before their colours are compared
QUANTILES = np.linspace(0.05, 0.95, 13)
UNKNOWN = np.full((3, len(QUANTILES)), np.nan, np.float32)  # the signature of what cannot be read
SIGNATURE_VERSION = 1  # bump when signatures change: kept ones are made again
# Mean difference of the quantiles of L*, a* and b*, in CIELAB units, the lightness counting half, because light changes
# between views.
LIGHTNESS_WEIGHT = 0.5
SAME_COLOURS = 12.0  # the toy: views of a garment up to 10, other colourways from 16


def clean_mask(worn: np.ndarray) -> np.ndarray:
    """The garment's region [H, W] bool without small holes and specks."""
    numbers, _ = label(worn)
    sizes = np.bincount(numbers.ravel())
    kept = sizes >= SPECK * worn.sum()
    kept[0] = False
    clean = kept[numbers]
    holes, _ = label(binary_fill_holes(clean) & ~clean)
    small = np.bincount(holes.ravel()) < HOLE * worn.sum()
    small[0] = False
    return clean | small[holes]


def cut_out(person: Image.Image, worn: Image.Image) -> Image.Image:
    """The garment on white, cropped to it with a margin. person: RGB; worn: its mask, "L", of the same size.

    Raises ValueError where the mask is empty, or falls into specks.
    """
    clean = Image.fromarray(clean_mask(np.asarray(worn) > 127))
    box = clean.getbbox()
    if box is None:
        raise ValueError("the garment's mask is empty, or nothing but specks")
    picture = Image.composite(person, Image.new("RGB", worn.size, "white"), clean).crop(box)
    margin = round(CUT_OUT_MARGIN * max(picture.size))
    framed = Image.new("RGB", (picture.width + 2 * margin, picture.height + 2 * margin), "white")
    framed.paste(picture, (margin, margin))
    return framed


def moved(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A cut-out on white, turned, scaled, shifted and perhaps mirrored, so that copying it in place does not pay."""
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    picture = picture.rotate(rng.uniform(-TILT, TILT), Image.Resampling.BICUBIC, expand=True, fillcolor="white")
    scale = rng.uniform(*SCALES)
    frame = Image.new("RGB", (round(picture.width / scale), round(picture.height / scale)), "white")
    room = np.subtract(frame.size, picture.size)
    frame.paste(picture, tuple(int(share * free) for share, free in zip(rng.random(2), room, strict=True)))
    return frame


def colour_signature(person: Image.Image, worn: Image.Image) -> np.ndarray:
    """[3, Q] float32: quantiles of L* (0..100), a* and b* (-128..127) of the garment. person: RGB; worn: its mask, "L",
    of the same size.

    Raises ValueError where the mask is empty.
    """
    factor = max(1, min(person.size) // SIGNATURE_SIZE)
    shares = np.asarray(worn.reduce(factor))
    inside = shares > (200 if shares.max() > 200 else 0)
    if not inside.any():
        raise ValueError("the garment's mask is empty")
    return np.quantile(to_lab(person.reduce(factor))[inside], QUANTILES, axis=0).T.astype(np.float32)


def colour_distances(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[N]: how far a garment's colours [3, Q] are from others' [N, 3, Q], in CIELAB units: the mean difference of
    quantiles, which is the earth mover's distance of each channel."""
    lightness, a, b = np.abs(one - others).mean(2).T
    return LIGHTNESS_WEIGHT * lightness + a + b
