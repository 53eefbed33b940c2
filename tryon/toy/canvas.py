"""What the toy's drawings are painted on: a canvas FINE times the size of the picture, each way, whose fourth channel
says which part owns each fine pixel. It is reduced at the end, which gives the picture and exact masks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from tryon.toy.world import Colour

Ink = tuple[np.ndarray, Colour, float]  # points (strokes or fills, corners), colour, line width or 0 to fill

FINE = 3  # fine pixels per picture pixel, each way


@dataclass(frozen=True)
class Drawing:
    """A picture (RGB) and masks of its size ("L" of 0 and 255): the visible region of each garment, under its
    category, and on people of each of drawing.REGIONS. Pixels that two regions share are in both masks."""

    image: Image.Image
    masks: dict[str, Image.Image]


@dataclass(frozen=True)
class Place:
    """Where in a picture, and how large, people stand and garments lie."""

    zoom: float
    across: float = 0.5  # where the figure's middle is, in widths of the picture
    down: float = 0.97  # where its `level` is, in heights of the picture
    level: float = 1.0  # body units; 1 is the soles
    lean: float = 0.0  # sideways shift of the crown relative to the soles, body units


@dataclass(frozen=True)
class Canvas:
    """A picture in the making, and where the figure stands in it."""

    image: Image.Image  # RGB and the owner
    pen: ImageDraw.ImageDraw
    scale: float  # fine pixels per body unit
    origin: complex  # fine pixel of body point 0
    lean: float


def canvas_at(image: Image.Image, unit: float, where: Place) -> Canvas:
    """A canvas on a fine image, RGB and the owner. unit: fine pixels per body unit at zoom 1."""
    scale = unit * where.zoom
    origin = image.width * where.across + 1j * (image.height * where.down - where.level * scale)
    return Canvas(image, ImageDraw.Draw(image), scale, origin, where.lean)


def place(canvas: Canvas, points: np.ndarray) -> np.ndarray:
    """Body points -> fine pixels."""
    return (points + canvas.lean * (1 - points.imag)) * canvas.scale + canvas.origin


def shade(colour: Colour, factor: float) -> Colour:
    """The colour, darker for factors below 1."""
    return tuple(round(value * factor) for value in colour)


def edge_colour(colour: Colour) -> Colour:
    """What the edges of parts of this colour are drawn in."""
    return shade(colour, 0.72)


def ink(pen: ImageDraw.ImageDraw, pixels: np.ndarray, colour: Colour, owner: int, width: float = 0) -> None:
    """Draws lines [count, points] of this width in fine pixels; with width 0, filled polygons."""
    for one in np.ascontiguousarray(pixels).view(float).tolist():
        if width:
            pen.line(one, fill=(*colour, owner), width=max(1, round(width)))
        else:
            pen.polygon(one, fill=(*colour, owner))


def fill(canvas: Canvas, outline: np.ndarray, owner: int, colour: Colour) -> None:
    """Paints a plain part with a darker edge; outline in body points."""
    pixels = place(canvas, outline)
    ink(canvas.pen, pixels[None], colour, owner)
    ink(canvas.pen, np.append(pixels, pixels[0])[None], edge_colour(colour), owner, 0.005 * canvas.scale)


def finished(canvas: Canvas, names: Sequence[str]) -> Drawing:
    """Reduces a canvas; names are those of owners 1, 2, ... (at most 8)."""
    image, owner = canvas.image.reduce(FINE).convert("RGB"), canvas.image.getchannel(3)
    left, top, right, bottom = (edge // FINE for edge in owner.getbbox())
    owner = np.asarray(owner.crop((left * FINE, top * FINE, (right + 1) * FINE, (bottom + 1) * FINE)))
    # One bit an owner: a pixel is in the masks of all that own any of it, so nothing of a garment is outside its mask.
    bits = np.take(np.array([0, *(1 << index for index in range(len(names)))], np.uint8), owner)
    bits = np.bitwise_or.reduce([bits[y::FINE, x::FINE] for y in range(FINE) for x in range(FINE)])
    masks = {}
    for index, name in enumerate(names):
        masks[name] = Image.new("L", image.size)
        masks[name].paste(Image.fromarray((bits >> index & 1) * np.uint8(255)), (left, top))
    return Drawing(image, masks)
