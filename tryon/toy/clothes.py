"""Draws the toy's clothes. A garment is the same geometry on a person and in its flat picture: only the body under it,
the pose and the zoom differ."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tryon.toy.canvas import Canvas, Ink, edge_colour, ink, place, shade
from tryon.toy.geometry import (
    ANKLE,
    ARM_GIRTH,
    DISC,
    FOREARM,
    LEG,
    LEG_GIRTH,
    NECK,
    ROUND,
    STEPS,
    UPPER_ARM,
    UPRIGHT,
    WAIST,
    Body,
    Spine,
    tube,
    warp,
)
from tryon.toy.world import WORD, Garment

# A part of a garment: its spine, and in u + iv of that (see warp) its outline, its details, the u of the body's middle
# and where a logo goes.
_Part = tuple[Spine, np.ndarray, list[Ink], float, complex | None]

_NECK_WIDTH = {"crew": 0.046, "v": 0.048, "scoop": 0.06, "square": 0.054, "high": 0.044, "collar": 0.044}  # half
_NECK_DEPTH = {"crew": 0.028, "v": 0.085, "scoop": 0.062, "square": 0.05, "high": -0.024, "collar": 0.05}
_SYMBOLS = {
    "disc": DISC,
    "diamond": np.array([-1.15j, 0.85, 1.15j, -0.85]),
    "star": -1j * np.exp(0.2j * np.pi * np.arange(10)) * ([1.25, 0.58] * 5),
    "heart": 1.1 * np.sin(ROUND) ** 3 - 1j * (np.cos([1, 2, 3] * ROUND[:, None]) @ (0.9, -0.35, -0.15)),
}


def _letters(word: str) -> np.ndarray:
    """[count, 4]: the squares that make up a printed word of width 1 around 0."""
    font = ImageFont.load_default(48)
    left, top, right, bottom = font.getbbox(word)
    image = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(image).text((-left, -top), word, fill=255, font=font)
    rows, columns = np.nonzero(np.asarray(image) > 127)
    corners = (columns + 1j * rows)[:, None] + [0, 1, 1 + 1j, 1j]
    return (corners - complex(*image.size) / 2) / image.width


def _texture(garment: Garment, outline: np.ndarray, middle: float, logo: complex | None, back: bool) -> list[Ink]:
    """The accent within an outline, all in u + iv; from behind everything is mirrored, and neither logos nor words are
    seen."""
    ground, accent = garment.colours
    if garment.texture == "plain" or (garment.texture in ("logo", WORD) and (back or logo is None)):
        return []
    if garment.texture == WORD:
        return [(logo + garment.period * _letters(garment.symbol), accent, 0)]
    if garment.texture == "logo":
        return [((logo + garment.period / 2 * _SYMBOLS[garment.symbol])[None], accent, 0)]
    # The pattern lives in w = p + iq: periods along and across its stripes.
    turn = garment.period * np.exp(1j * garment.angle)
    u, v = (outline.real - middle) * (-1 if back else 1), outline.imag
    corners = (np.array([[u.min()], [u.max()]]) + 1j * np.array([v.min(), v.max()])) / turn
    p, q = (np.arange(np.floor(c.min() - 0.5), np.ceil(c.max() + 0.5)) for c in (corners.real, corners.imag))
    lattice = p + 1j * q[:, None]

    def stamp(shape: np.ndarray, places: np.ndarray) -> np.ndarray:
        w = (places.reshape(-1, 1) + shape) * turn
        return (-np.conj(w) if back else w) + middle

    if garment.texture == "dots":
        return [(stamp(0.27 * DISC, lattice + 0.5 * (q[:, None] % 2)), accent, 0)]
    row, column = (line[0] + len(line) * STEPS for line in (p, q))
    rows = stamp(np.concatenate([row, row[::-1] + 0.5j]), 1j * q)
    if garment.texture in ("stripes", "blocks"):
        return [(rows, accent, 0)]
    columns = stamp(np.concatenate([1j * column, 0.5 + 1j * column[::-1]]), p)
    mixed = tuple((a + b) // 2 for a, b in zip(ground, accent, strict=True))
    return [(rows, mixed, 0), (columns, mixed, 0), (stamp(np.array([0, 0.5, 0.5 + 0.5j, 0.5j]), lattice), accent, 0)]


def _clothe(canvas: Canvas, garment: Garment, owner: int, back: bool, part: _Part) -> None:
    """Paints a part of a garment: ground, texture, details and a darker edge, all inside its outline."""
    spine, outline, details, middle, logo = part
    inks = [*_texture(garment, outline, middle, logo, back), *details]
    pixels = place(canvas, warp(spine, np.concatenate([outline, *(points.ravel() for points, _, _ in inks)])))
    edge = pixels[: len(outline)]
    at = int(edge.real.min()), int(edge.imag.min())
    pixels -= complex(*at)
    size = int(edge.real.max()) + 2, int(edge.imag.max()) + 2
    shape, patch = Image.new("L", size), Image.new("RGBX", size, (*garment.colours[0], owner))
    ImageDraw.Draw(shape).polygon(edge.view(float).tolist(), fill=255)
    pen, start = ImageDraw.Draw(patch), len(outline)
    for points, colour, width in inks:
        mine = pixels[start : start + points.size].reshape(points.shape)
        ink(pen, mine, colour, owner, width * canvas.scale)
        start += points.size
    ink(pen, np.append(edge, edge[0])[None], edge_colour(garment.colours[0]), owner, 0.009 * canvas.scale)
    canvas.image.paste(patch, at, shape)


def _seams(garment: Garment, *ends: tuple[complex, complex]) -> Ink:
    return np.array(ends), shade(garment.colours[0], 0.66), 0.006


def _draw_leg(canvas: Canvas, body: Body, garment: Garment, owner: int, side: int) -> None:
    """One leg of shorts, trousers or a jumpsuit, from the waist to the hem."""
    spine, hem = body.legs[side > 0], LEG * garment.length
    ease, top = 0.006 + 0.014 * garment.fit, abs(spine[1][1].real)
    v = np.concatenate([[0.0, 0.045, 0.09], 0.13 + (hem - 0.13) * STEPS])
    leg = np.interp(v, *LEG_GIRTH) * body.across + ease + 0.05 * garment.flare * np.minimum(v / 0.56, 1) ** 2
    outer = np.where(v < 0.1, np.interp(WAIST + v, *body.profile) + ease - top, leg)
    inner = np.where(v < 0.13, top + 0.012, leg)  # past the middle, so that no gap opens between the legs
    outline = tube(v, outer, inner) if side > 0 else tube(v, inner, outer)
    band, cuff, pocket = 0.024j, 1j * hem - 0.014j, side * outer[1]
    ends = [(band - 0.2, band + 0.2), (cuff - 0.2, cuff + 0.2), (pocket - side * 0.03 + band, pocket + 0.075j)]
    seams = _seams(garment, *ends[: 2 if body.back else 3])
    logo = 0.01 + 0.1j if side > 0 and garment.category == "lower" else None
    _clothe(canvas, garment, owner, body.back, (spine, outline, [seams], -side * top, logo))


def draw_sleeve(canvas: Canvas, body: Body, garment: Garment, owner: int, side: int) -> None:
    """The sleeve of the arm at the picture's left (side -1) or right (1)."""
    end = garment.sleeve * (UPPER_ARM + FOREARM)
    v = np.concatenate([ARM_GIRTH[0][:3], 0.02 + (end - 0.02) * STEPS])
    ease = np.minimum(0.004 + 0.01 * garment.fit, v + 0.036) + 0.35 * garment.flare * np.maximum(v, 0) ** 2
    width = np.interp(v, *ARM_GIRTH) * body.across + ease
    seams = _seams(garment, (1j * end - 0.012j - 0.2, 1j * end - 0.012j + 0.2))
    part = body.arms[side > 0], tube(v, width, width), [seams], -side * 0.1, None
    _clothe(canvas, garment, owner, body.back, part)


def neckline(body: Body, garment: Garment) -> np.ndarray:
    """The edge at the neck from left to right, in u + iv of the trunk."""
    half, depth = _NECK_WIDTH[garment.neckline] * body.across, _NECK_DEPTH[garment.neckline] * 1j + body.front
    if garment.neckline == "high":
        return np.array([-half, depth - 0.9 * half, depth + 0.9 * half, half])
    if garment.neckline in ("v", "collar") and not body.back:
        return np.array([-half, depth, half])
    if garment.neckline == "square" and not body.back:
        return np.array([-half, depth - half, depth + half, half])
    return -half * np.cos(np.pi * STEPS) + (0.012j if body.back else depth) * np.sin(np.pi * STEPS)


def _draw_trunk(canvas: Canvas, body: Body, garment: Garment, owner: int) -> None:
    """A top, a skirt, a dress, or the upper half of a jumpsuit."""
    skirted, low = garment.kind in ("skirt", "dress"), garment.category == "lower"
    fall = 0.025 + 0.165 * garment.length if garment.category == "upper" else LEG * garment.length
    start, end = WAIST if low else 0.27, WAIST + (0.03 if garment.kind == "jumpsuit" else fall)
    y = start + (end - start) * np.linspace(0, 1, 14)
    ease = 0.022 if garment.category == "upper" else 0.006  # tops hide all that they hang over
    width = np.interp(np.minimum(y, 0.5), *body.profile) + ease + 0.016 * garment.fit
    width += garment.flare * body.across * np.maximum(0.27 * (y - 0.455) if skirted else 0.2 * (y - 0.3), 0)
    if skirted:  # even a narrow one holds the legs of a wide stance
        legs = np.interp(y, (0.47, ANKLE), (0.0, max(abs(leg[1][-2].real) for leg in body.legs)))
        width = np.maximum(width, (y > 0.47) * (legs + np.interp(y - WAIST, *LEG_GIRTH) * body.across + 0.008))
    right, waist, hem = width + 1j * (y - NECK), 1j * (WAIST - NECK), 1j * (end - NECK)
    bottom = width[-1] * np.cos(ROUND[1:9]) + hem + (0.016j if skirted else 0.006j) * np.sin(ROUND[1:9])
    levels = [hem - 0.012j] if garment.category == "upper" else [waist, waist + 0.024j][low:]
    seams, details, neck = [(v - 0.3, v + 0.3) for v in levels], [], np.empty(0)
    if skirted:  # folds
        rise, foot = 0.6j * (end - WAIST), width[-1]
        seams += [(s * 0.3 * foot + hem - rise, s * 0.45 * foot + hem + 0.02j) for s in (-1, 1)]
    if not low:
        neck, depth = neckline(body, garment), _NECK_DEPTH[garment.neckline] * 1j + body.front
        dark = shade(garment.colours[0], 0.66)
        top = [body.shoulder - 0.012 + 0.023j, body.shoulder - 0.004 + 0.044j]
        if garment.sleeve == 0:
            strap = max(neck[-1].real + 0.03 * body.across, 0.6 * body.shoulder)
            top = [strap + 0.012j, strap + 0.049j, 0.45 * strap + 0.55 * width[0] + 0.082j]
        right = np.concatenate([neck[-1:], top, right])
        details.append((neck[None], dark, 0.018))
        if garment.neckline == "collar" and not body.back:
            flaps = [
                [side * neck[-1].real, depth, depth + side * 0.035 + 0.02j, side * (neck[-1].real + 0.012) + 0.012j]
                for side in (1, -1)
            ]
            details.append((np.array(flaps), shade(garment.colours[0], 0.82), 0))
            buttons = body.front + 0.012 + 1j * np.arange(depth.imag + 0.03, hem.imag - 0.01, 0.045)
            details.append((buttons[:, None] + 0.007 * DISC, dark, 0))
            seams.append((depth, hem + body.front))
    outline = np.concatenate([right, bottom, -np.conj(right[::-1]), neck])
    logo = 0.05 * body.across + waist + 0.085j if low else 0.115j + body.front
    part = UPRIGHT, outline, [_seams(garment, *seams), *details], body.front, logo
    _clothe(canvas, garment, owner, body.back, part)


def draw_unsleeved(canvas: Canvas, body: Body, garment: Garment, owner: int) -> None:
    """All of a garment but its sleeves, which lie over the trunk and belong to the arms."""
    if garment.kind in ("shorts", "trousers", "jumpsuit"):
        for side in (-1, 1):
            _draw_leg(canvas, body, garment, owner, side)
    if garment.kind not in ("shorts", "trousers"):
        _draw_trunk(canvas, body, garment, owner)
