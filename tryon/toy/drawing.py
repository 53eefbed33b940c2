"""Draws the toy's people and garments, with masks that are exact ground truth.

Points are complex numbers x + iy in *body units*: the figure is 1 tall, y grows downwards from its crown (0) to its
soles (1), x = 0 is its middle. Parts are painted back to front on a canvas _FINE times the asked size, whose fourth
channel says which part owns each fine pixel; it is reduced at the end. A garment is the same geometry on a person and
in its flat picture: only the body under it, the pose and the zoom differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from tryon.toy.world import VIEWS, Colour, Garment, Person

REGIONS = ("head", "arms", "hands", "torso", "legs", "shoes")  # what is not garment; hair counts as head

_Spine = tuple[np.ndarray, np.ndarray, np.ndarray]  # a limb's centre line: distances along it, points, unit normals
_Ink = tuple[np.ndarray, Colour, float]  # points (strokes or fills, corners), colour, line width or 0 to fill
# A part of a garment: its spine, and in u + iv of that (see _warp) its outline, its details, the u of the body's middle
# and where a logo goes.
_Part = tuple[_Spine, np.ndarray, list[_Ink], float, complex | None]


_FINE = 3  # fine pixels per picture pixel, each way
_HEAD, _ARMS, _HANDS, _TORSO, _LEGS, _SHOES, _WORN = range(1, 8)  # owners; 0 is background, garments start at _WORN
_NECK, _WAIST, _ANKLE = 0.166, 0.37, 0.935  # heights
_UPPER_ARM, _FOREARM, _LEG = 0.15, 0.14, _ANKLE - _WAIST  # lengths
_ARM_GIRTH = (-0.034, -0.026, -0.008, 0.13, 0.29), (0.005, 0.017, 0.028, 0.024, 0.017)  # distances, half widths
_HAND_GIRTH = (0.285, 0.297, 0.315, 0.33, 0.338), (0.014, 0.021, 0.022, 0.015, 0.004)
_LEG_GIRTH = (0.06, 0.14, 0.34, 0.42, 0.57), (0.054, 0.056, 0.037, 0.036, 0.022)
_NECK_WIDTH = {"crew": 0.046, "v": 0.048, "scoop": 0.06, "square": 0.054, "high": 0.044, "collar": 0.044}  # half
_NECK_DEPTH = {"crew": 0.028, "v": 0.085, "scoop": 0.062, "square": 0.05, "high": -0.024, "collar": 0.05}
_FLAT = 0.907, 0.482  # zoom, and the y shown in the middle, of flat pictures: as large as, and where, people wear it
# Ranges of the angles of upper arm and forearm, degrees from hanging, outwards. In front views all stand alike: masks
# hide it, and what nobody can know would be luck when pictures are compared. Else arms hang, are held out, on the
# thigh, on the hip; and in the livelier "additional" view held out, on the hip, before the belly, waving.
_FRONT_ARMS = (((12.5, 13.5), (8.5, 9.5)),)
_USUAL_ARMS = ((3, 12), (0, 8)), ((16, 32), (14, 38)), ((18, 26), (-16, -6)), ((36, 48), (-50, -38))
_LIVELY_ARMS = ((16, 32), (14, 38)), ((36, 48), (-50, -38)), ((16, 26), (-75, -55)), ((48, 64), (158, 174))
_FRONT_STANCE, _USUAL_STANCE, _LIVELY_STANCE = (0.0645, 0.0655), (0.045, 0.085), (0.045, 0.12)  # feet from the middle
_MANES = {  # right halves of the outlines of hair
    "bob": (0.02 - 0.004j, 0.06 + 0.02j, 0.08 + 0.08j, 0.082 + 0.13j, 0.05 + 0.165j),
    "bun": (0.01 - 0.036j, 0.034 - 0.01j, 0.01 + 0.02j),
    "ponytail": (0.01 + 0.03j, 0.034 + 0.1j, 0.03 + 0.17j, 0.004 + 0.25j),
    "long": (0.02 - 0.004j, 0.06 + 0.02j, 0.08 + 0.08j, 0.086 + 0.19j, 0.076 + 0.265j, 0.04 + 0.285j),
}
_MANES["over"] = _MANES["long"]
_LOCK = np.array([0.058 + 0.035j, 0.074 + 0.1j, 0.09 + 0.19j, 0.08 + 0.27j, 0.06 + 0.275j, 0.056 + 0.19j, 0.052 + 0.1j])
_STEPS = np.linspace(0, 1, 9)
_ROUND = np.linspace(0, 2 * np.pi, 18, endpoint=False)
_DISC = np.exp(1j * _ROUND)
_SYMBOLS = {
    "disc": _DISC,
    "diamond": np.array([-1.15j, 0.85, 1.15j, -0.85]),
    "star": -1j * np.exp(0.2j * np.pi * np.arange(10)) * ([1.25, 0.58] * 5),
    "heart": 1.1 * np.sin(_ROUND) ** 3 - 1j * (np.cos([1, 2, 3] * _ROUND[:, None]) @ (0.9, -0.35, -0.15)),
}


@dataclass(frozen=True)
class Drawing:
    """A picture (RGB) and masks of its size ("L" of 0 and 255): the visible region of each garment, under its
    category, and on people of each of REGIONS. Pixels that two regions share are in both masks."""

    image: Image.Image
    masks: dict[str, Image.Image]


@dataclass(frozen=True)
class _Body:
    """The geometry under the clothes, for one person in one pose."""

    profile: tuple[np.ndarray, np.ndarray]  # heights and half widths of the trunk
    shoulder: float  # half width
    across: float  # factor on widths: the build, less when turned
    arms: list[_Spine]  # picture left and right, from the shoulder to the wrist
    legs: list[_Spine]  # from the waist to the ankle
    turn: float  # 0 faces the viewer or away; -1 and 1 are turned to the picture's left and right
    back: bool


@dataclass(frozen=True)
class _Canvas:
    image: Image.Image  # RGB and the owner
    pen: ImageDraw.ImageDraw
    scale: float  # fine pixels per body unit
    origin: complex  # fine pixel of body point 0
    lean: float = 0.0  # sideways shift of the crown relative to the soles, body units


def _place(canvas: _Canvas, points: np.ndarray) -> np.ndarray:
    """Body points -> fine pixels."""
    return (points + canvas.lean * (1 - points.imag)) * canvas.scale + canvas.origin


_BASIS = np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]) / 2  # of Catmull-Rom curves
_BASIS = (np.linspace(0, 1, 4, endpoint=False)[:, None] ** np.arange(4)) @ _BASIS


def _curve(points: Sequence[complex]) -> np.ndarray:
    """A smooth open curve through n points: 4 (n - 1) + 1 points."""
    p = np.asarray(points)
    padded = np.concatenate([[2 * p[0] - p[1]], p, [2 * p[-1] - p[-2]]])
    return np.append((_BASIS @ [padded[k : k + len(p) - 1] for k in range(4)]).T.ravel(), p[-1])


def _blob(points: Sequence[complex]) -> np.ndarray:
    """A smooth closed outline through points."""
    return _curve([*points[-2:], *points, *points[:2]])[8:-8]


def _oval(centre: complex, rx: float, ry: float) -> np.ndarray:
    return centre + rx * _DISC.real + 1j * ry * _DISC.imag


def _mirrored(half: Sequence[complex]) -> np.ndarray:
    """An outline symmetric about x = 0 from its right half, listed downwards."""
    return np.concatenate([half, -np.conj(half[::-1])])


def _spine(points: np.ndarray) -> _Spine:
    """The spine through points, lengthened straight at both ends; distance 0 is the first point."""
    step = np.diff(points)
    unit = step / np.abs(step)
    unit = np.concatenate([unit[:1], unit, unit[-1:]])
    centre = np.concatenate([points[:1] - 0.5 * unit[0], points, points[-1:] + 0.5 * unit[-1]])
    along = np.concatenate([[-0.5, 0.0], np.cumsum(np.abs(step)), [np.abs(step).sum() + 0.5]])
    return along, centre, -1j * np.concatenate([unit[:1], (unit[1:] + unit[:-1]) / 2, unit[-1:]])


_UPRIGHT = _spine(np.array([1j * _NECK, 1j]))  # the trunk's


def _warp(spine: _Spine, points: np.ndarray) -> np.ndarray:
    """u + iv, u across (to the right on a downward spine) and v along the spine -> body points."""
    along, centre, normal = spine
    return np.interp(points.imag, along, centre) + points.real * np.interp(points.imag, along, normal)


def _tube(v: np.ndarray, right: np.ndarray, left: np.ndarray) -> np.ndarray:
    """An outline in u + iv with these half widths."""
    return np.concatenate([right + 1j * v, (-left + 1j * v)[::-1]])


def _body(person: Person | None, arms: Sequence[complex], feet: Sequence[float], turn: float, back: bool) -> _Body:
    """arms: radians of upper arm + i forearm; feet: from the middle, body units. Nobody in particular if no person."""
    build, shoulders, hips = (person.build, person.shoulders, person.hips) if person else (1.0, 1.0, 1.0)
    across = build * (1 - 0.3 * abs(turn))
    chest, hip = 0.103 * (0.4 + 0.6 * shoulders), 0.112 * hips
    waist = 0.39 * (chest + hip) * (1.0 if hips >= shoulders else 1.08)
    profile = _curve([chest + 0.19j, 0.98 * chest + 0.26j, waist + 0.36j, hip + 0.455j, hip + 0.505j, hip + 0.6j])
    shoulder = 0.128 * shoulders * across
    body = _Body((profile.imag, profile.real * across), shoulder, across, [], [], turn, back)
    for side, arm, foot in zip((-1, 1), arms, feet, strict=True):
        joint = side * (shoulder - 0.026 * build) + 0.213j
        elbow = joint + _UPPER_ARM * 1j * np.exp(-1j * side * arm.real)
        wrist = elbow + _FOREARM * 1j * np.exp(-1j * side * arm.imag)
        body.arms.append(_spine(_curve([joint, 0.4 * joint + 0.6 * elbow, 0.6 * elbow + 0.4 * wrist, wrist])))
        top, ankle = side * 0.053 * across * hips, side * foot * across
        knee = 0.4 * top + 0.6 * ankle + side * 0.004
        body.legs.append(_spine(_curve([top + 1j * _WAIST, top + 0.47j, knee + 0.71j, ankle + 1j * _ANKLE])))
    return body


def _shade(colour: Colour, factor: float) -> Colour:
    return tuple(round(value * factor) for value in colour)


def edge_colour(colour: Colour) -> Colour:
    """What the edges of parts of this colour are drawn in."""
    return _shade(colour, 0.72)


def _ink(pen: ImageDraw.ImageDraw, pixels: np.ndarray, colour: Colour, owner: int, width: float = 0) -> None:
    for one in np.ascontiguousarray(pixels).view(float).tolist():
        if width:
            pen.line(one, fill=(*colour, owner), width=max(1, round(width)))
        else:
            pen.polygon(one, fill=(*colour, owner))


def _fill(canvas: _Canvas, outline: np.ndarray, owner: int, colour: Colour) -> None:
    """Paints a plain part with a darker edge; outline in body points."""
    pixels = _place(canvas, outline).view(float).tolist()
    canvas.pen.polygon(pixels, fill=(*colour, owner))
    edge = max(1, round(0.005 * canvas.scale))
    canvas.pen.line(pixels + pixels[:2], fill=(*edge_colour(colour), owner), width=edge)


def _texture(garment: Garment, outline: np.ndarray, middle: float, logo: complex | None, back: bool) -> list[_Ink]:
    """The accent within an outline, all in u + iv; from behind everything is mirrored, and logos are not seen."""
    ground, accent = garment.colours
    if garment.texture == "plain" or (garment.texture == "logo" and (back or logo is None)):
        return []
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
        return [(stamp(0.27 * _DISC, lattice + 0.5 * (q[:, None] % 2)), accent, 0)]
    row, column = (line[0] + len(line) * _STEPS for line in (p, q))
    rows = stamp(np.concatenate([row, row[::-1] + 0.5j]), 1j * q)
    if garment.texture in ("stripes", "blocks"):
        return [(rows, accent, 0)]
    columns = stamp(np.concatenate([1j * column, 0.5 + 1j * column[::-1]]), p)
    mixed = tuple((a + b) // 2 for a, b in zip(ground, accent, strict=True))
    return [(rows, mixed, 0), (columns, mixed, 0), (stamp(np.array([0, 0.5, 0.5 + 0.5j, 0.5j]), lattice), accent, 0)]


def _clothe(canvas: _Canvas, garment: Garment, owner: int, back: bool, part: _Part) -> None:
    """Paints a part of a garment: ground, texture, details and a darker edge, all inside its outline."""
    spine, outline, details, middle, logo = part
    inks = [*_texture(garment, outline, middle, logo, back), *details]
    pixels = _place(canvas, _warp(spine, np.concatenate([outline, *(points.ravel() for points, _, _ in inks)])))
    edge = pixels[: len(outline)]
    at = int(edge.real.min()), int(edge.imag.min())
    pixels -= complex(*at)
    size = int(edge.real.max()) + 2, int(edge.imag.max()) + 2
    shape, patch = Image.new("L", size), Image.new("RGBX", size, (*garment.colours[0], owner))
    ImageDraw.Draw(shape).polygon(edge.view(float).tolist(), fill=255)
    pen, start = ImageDraw.Draw(patch), len(outline)
    for points, colour, width in inks:
        mine = pixels[start : start + points.size].reshape(points.shape)
        _ink(pen, mine, colour, owner, width * canvas.scale)
        start += points.size
    _ink(pen, np.append(edge, edge[0])[None], edge_colour(garment.colours[0]), owner, 0.009 * canvas.scale)
    canvas.image.paste(patch, at, shape)


def _seams(garment: Garment, *ends: tuple[complex, complex]) -> _Ink:
    return np.array(ends), _shade(garment.colours[0], 0.66), 0.006


def _draw_leg(canvas: _Canvas, body: _Body, garment: Garment, owner: int, side: int) -> None:
    """One leg of shorts, trousers or a jumpsuit, from the waist to the hem."""
    spine, hem = body.legs[side > 0], _LEG * garment.length
    ease, top = 0.006 + 0.014 * garment.fit, abs(spine[1][1].real)
    v = np.concatenate([[0.0, 0.045, 0.09], 0.13 + (hem - 0.13) * _STEPS])
    leg = np.interp(v, *_LEG_GIRTH) * body.across + ease + 0.05 * garment.flare * np.minimum(v / 0.56, 1) ** 2
    outer = np.where(v < 0.1, np.interp(_WAIST + v, *body.profile) + ease - top, leg)
    inner = np.where(v < 0.13, top + 0.012, leg)  # past the middle, so that no gap opens between the legs
    outline = _tube(v, outer, inner) if side > 0 else _tube(v, inner, outer)
    band, cuff, pocket = 0.024j, 1j * hem - 0.014j, side * outer[1]
    ends = [(band - 0.2, band + 0.2), (cuff - 0.2, cuff + 0.2), (pocket - side * 0.03 + band, pocket + 0.075j)]
    seams = _seams(garment, *ends[: 2 if body.back else 3])
    logo = 0.01 + 0.1j if side > 0 and garment.category == "lower" else None
    _clothe(canvas, garment, owner, body.back, (spine, outline, [seams], -side * top, logo))


def _draw_sleeve(canvas: _Canvas, body: _Body, garment: Garment, owner: int, side: int) -> None:
    end = garment.sleeve * (_UPPER_ARM + _FOREARM)
    v = np.concatenate([_ARM_GIRTH[0][:3], 0.02 + (end - 0.02) * _STEPS])
    ease = np.minimum(0.004 + 0.01 * garment.fit, v + 0.036) + 0.35 * garment.flare * np.maximum(v, 0) ** 2
    width = np.interp(v, *_ARM_GIRTH) * body.across + ease
    seams = _seams(garment, (1j * end - 0.012j - 0.2, 1j * end - 0.012j + 0.2))
    part = body.arms[side > 0], _tube(v, width, width), [seams], -side * 0.1, None
    _clothe(canvas, garment, owner, body.back, part)


def _neckline(body: _Body, garment: Garment) -> np.ndarray:
    """The edge at the neck from left to right, in u + iv of the trunk."""
    half, depth = _NECK_WIDTH[garment.neckline] * body.across, _NECK_DEPTH[garment.neckline] * 1j
    if garment.neckline == "high":
        return np.array([-half, depth - 0.9 * half, depth + 0.9 * half, half])
    if garment.neckline in ("v", "collar") and not body.back:
        return np.array([-half, depth, half])
    if garment.neckline == "square" and not body.back:
        return np.array([-half, depth - half, depth + half, half])
    return -half * np.cos(np.pi * _STEPS) + (0.012j if body.back else depth) * np.sin(np.pi * _STEPS)


def _draw_trunk(canvas: _Canvas, body: _Body, garment: Garment, owner: int) -> None:
    """A top, a skirt, a dress, or the upper half of a jumpsuit."""
    skirted, low = garment.kind in ("skirt", "dress"), garment.category == "lower"
    fall = 0.025 + 0.165 * garment.length if garment.category == "upper" else _LEG * garment.length
    start, end = _WAIST if low else 0.27, _WAIST + (0.03 if garment.kind == "jumpsuit" else fall)
    y = start + (end - start) * np.linspace(0, 1, 14)
    ease = 0.022 if garment.category == "upper" else 0.006  # tops hide all that they hang over
    width = np.interp(np.minimum(y, 0.5), *body.profile) + ease + 0.016 * garment.fit
    width += garment.flare * body.across * np.maximum(0.27 * (y - 0.455) if skirted else 0.2 * (y - 0.3), 0)
    if skirted:  # even a narrow one holds the legs of a wide stance
        legs = np.interp(y, (0.47, _ANKLE), (0.0, max(abs(leg[1][-2].real) for leg in body.legs)))
        width = np.maximum(width, (y > 0.47) * (legs + np.interp(y - _WAIST, *_LEG_GIRTH) * body.across + 0.008))
    right, waist, hem = width + 1j * (y - _NECK), 1j * (_WAIST - _NECK), 1j * (end - _NECK)
    bottom = width[-1] * np.cos(_ROUND[1:9]) + hem + (0.016j if skirted else 0.006j) * np.sin(_ROUND[1:9])
    levels = [hem - 0.012j] if garment.category == "upper" else [waist, waist + 0.024j][low:]
    seams, details, neck = [(v - 0.3, v + 0.3) for v in levels], [], np.empty(0)
    if skirted:  # folds
        rise, foot = 0.6j * (end - _WAIST), width[-1]
        seams += [(s * 0.3 * foot + hem - rise, s * 0.45 * foot + hem + 0.02j) for s in (-1, 1)]
    if not low:
        neck, depth = _neckline(body, garment), _NECK_DEPTH[garment.neckline] * 1j
        dark = _shade(garment.colours[0], 0.66)
        top = [body.shoulder - 0.012 + 0.023j, body.shoulder - 0.004 + 0.044j]
        if garment.sleeve == 0:
            strap = max(neck[-1].real + 0.03 * body.across, 0.6 * body.shoulder)
            top = [strap + 0.012j, strap + 0.049j, 0.45 * strap + 0.55 * width[0] + 0.082j]
        right = np.concatenate([neck[-1:], top, right])
        details.append((neck[None], dark, 0.018))
        if garment.neckline == "collar" and not body.back:
            flap = np.array([neck[-1], depth, 0.035 + depth + 0.02j, neck[-1] + 0.012 + 0.012j])
            details.append((np.array([flap, -np.conj(flap)]), _shade(garment.colours[0], 0.82), 0))
            buttons = 0.012 + 1j * np.arange(depth.imag + 0.03, hem.imag - 0.01, 0.045)
            details.append((buttons[:, None] + 0.007 * _DISC, dark, 0))
            seams.append((depth, hem))
    outline = np.concatenate([right, bottom, -np.conj(right[::-1]), neck])
    logo = 0.05 * body.across + waist + 0.085j if low else 0.115j
    _clothe(canvas, garment, owner, body.back, (_UPRIGHT, outline, [_seams(garment, *seams), *details], 0.0, logo))


def _draw_unsleeved(canvas: _Canvas, body: _Body, garment: Garment, owner: int) -> None:
    if garment.kind in ("shorts", "trousers", "jumpsuit"):
        for side in (-1, 1):
            _draw_leg(canvas, body, garment, owner, side)
    if garment.kind not in ("shorts", "trousers"):
        _draw_trunk(canvas, body, garment, owner)


def _draw_arm(canvas: _Canvas, body: _Body, skin: Colour, garment: Garment, owner: int, side: int) -> None:
    v = np.concatenate([_ARM_GIRTH[0][:3], 0.03 + 0.27 * _STEPS])
    for limb, along, girth in ((_ARMS, v, np.interp(v, *_ARM_GIRTH)), (_HANDS, *np.array(_HAND_GIRTH))):
        outline = _tube(along, girth * body.across, girth * body.across)
        _fill(canvas, _warp(body.arms[side > 0], outline), limb, skin)
    if garment.sleeve > 0:
        _draw_sleeve(canvas, body, garment, owner, side)


def _draw_head(canvas: _Canvas, person: Person, turn: float) -> None:
    """Ears, face, and the hair that frames it."""
    x, gaze, narrow, skin = 0.012 * turn, 0.042 * turn, 1 - 0.3 * abs(turn), person.skin
    for side in (-1, 1):
        if side != np.sign(turn):
            _fill(canvas, _oval(x + 0.06 * side + 0.085j, 0.012, 0.016), _HEAD, skin)
    jaw = _oval(0.079j, 0.061, 0.074)
    _fill(canvas, jaw + x - 0.16 * jaw.real * np.maximum(_DISC.imag, 0), _HEAD, skin)
    blush = tuple((3 * a + b) // 4 for a, b in zip(skin, (235, 80, 90), strict=True))
    sides, smile = narrow * np.array([[-1], [1]]), narrow * (2 * _STEPS - 1)
    for points, colour, line in (
        (0.037 * sides + _oval(0.11j, 0.012, 0.008), blush, 0),
        (0.026 * sides + _oval(0.084j, 0.0075, 0.009), (40, 30, 35), 0),
        (0.026 * sides + (0.067j - 0.011, 0.067j + 0.011), _shade(person.hair, 0.6), 0.006),
        ((0.019 * smile + 0.126j - 0.008j * smile**2)[None], (170, 60, 70), 0.007),
        (0.2 * gaze + np.array([[0.094j, 0.103j + 0.004, 0.104j - 0.003]]), _shade(skin, 0.78), 0.005),
    ):
        _ink(canvas.pen, _place(canvas, points + gaze), colour, _HEAD, line * canvas.scale)
    fringe = _curve([0.055 + 0.075j, 0.05 + 0.05j, 0.015 + 0.03j, 0.042j - 0.035, 0.075j - 0.055])
    fringe += 0.6 * gaze * (fringe.imag < 0.07)
    crown = 0.078j - 0.068 * np.cos(np.pi * _STEPS) - 0.085j * np.sin(np.pi * _STEPS)
    _fill(canvas, x + np.concatenate([crown, fringe]), _HEAD, person.hair)
    for side in (-1, 1):
        if person.hair_style == "over" and side != np.sign(turn):
            lock = _LOCK if side > 0 else -np.conj(_LOCK)
            _fill(canvas, _blob(lock) + x, _HEAD, person.hair)


def _draw_figure(canvas: _Canvas, body: _Body, person: Person, outfit: Sequence[Garment]) -> None:
    skin, far = person.skin, -int(np.sign(body.turn))
    owners = {garment.category: _WORN + index for index, garment in enumerate(outfit)}
    top = next(garment for garment in outfit if garment.category != "lower")
    mane = _blob(_mirrored(_MANES.get(person.hair_style, _MANES["bun"])))
    mane += 0.055 if person.hair_style == "ponytail" and not (body.back or body.turn) else -0.04 * body.turn
    if person.hair_style != "short" and not body.back:
        _fill(canvas, mane, _HEAD, _shade(person.hair, 0.85))
    if body.turn:
        _draw_arm(canvas, body, skin, top, owners[top.category], far)
    v, y = 0.04 + 0.53 * _STEPS, 0.25 + 0.25 * _STEPS
    girth = np.interp(v, *_LEG_GIRTH) * body.across
    for spine, side in zip(body.legs, (-1, 1), strict=True):
        _fill(canvas, _warp(spine, _tube(v, girth, girth)), _LEGS, skin)
        shoe = _mirrored(np.array([0.026 + 0.93j, 0.031 + 0.965j, 0.031 + 0.991j]))
        shoe.real *= body.across
        shoe[2 if (body.turn or side) > 0 else 3] += 0.035 * body.turn or 0.008 * side  # the toe
        _fill(canvas, _blob(shoe) + spine[1][-2].real, _SHOES, person.shoes)
    neck = 0.033 * body.across
    trunk = [neck + 0.12j, neck + 0.155j, 2 * neck + 0.176j, body.shoulder - 0.02 + 0.188j]
    _fill(canvas, _mirrored(np.concatenate([trunk, np.interp(y, *body.profile) + 1j * y])), _TORSO, skin)
    if not body.back:  # the chin's shadow on the neck
        shadow = _place(canvas, _oval(0.013 * body.turn + 0.15j, 0.9 * neck, 0.02))
        _ink(canvas.pen, shadow[None], _shade(skin, 0.82), _TORSO)
    for garment in sorted(outfit, key=lambda garment: garment.category == "upper"):
        _draw_unsleeved(canvas, body, garment, owners[garment.category])
    for side in (-1, 1):
        if side != far:
            _draw_arm(canvas, body, skin, top, owners[top.category], side)
    if not body.back:
        _draw_head(canvas, person, body.turn)
        return
    _fill(canvas, _oval(0.074j, 0.068, 0.08), _HEAD, person.hair)
    if person.hair_style != "short":
        _fill(canvas, mane, _HEAD, person.hair)


def _finished(canvas: _Canvas, names: Sequence[str]) -> Drawing:
    """Reduces a canvas; names are those of owners 1, 2, ... (at most 8)."""
    image, owner = canvas.image.reduce(_FINE).convert("RGB"), canvas.image.getchannel(3)
    left, top, right, bottom = (edge // _FINE for edge in owner.getbbox())
    owner = np.asarray(owner.crop((left * _FINE, top * _FINE, (right + 1) * _FINE, (bottom + 1) * _FINE)))
    # One bit an owner: a pixel is in the masks of all that own any of it, so nothing of a garment is outside its mask.
    bits = np.take(np.array([0, *(1 << index for index in range(len(names)))], np.uint8), owner)
    bits = np.bitwise_or.reduce([bits[y::_FINE, x::_FINE] for y in range(_FINE) for x in range(_FINE)])
    masks = {}
    for index, name in enumerate(names):
        masks[name] = Image.new("L", image.size)
        masks[name].paste(Image.fromarray((bits >> index & 1) * np.uint8(255)), (left, top))
    return Drawing(image, masks)


def draw_person(person: Person, outfit: Sequence[Garment], view: str, height: int, width: int) -> Drawing:
    """A person in an outfit (an upper and a lower garment, or a full one; in any order), whole figure in the frame.

    Pose, place and all that no garment covers depend on the person and the view alone: with another garment, pixels
    outside both garments' masks are unchanged.

    Raises ValueError for an unknown view and for an incomplete outfit.
    """
    if view not in VIEWS:
        raise ValueError(f"view must be one of {', '.join(VIEWS)}, not {view!r}")
    if sorted(garment.category for garment in outfit) not in (["lower", "upper"], ["full"]):
        raise ValueError("an outfit is an upper and a lower garment, or one full garment")
    rng = np.random.default_rng([person.seed, VIEWS.index(view)])
    poses = {"front": _FRONT_ARMS, "additional": _LIVELY_ARMS}.get(view, _USUAL_ARMS)
    arms = [rng.uniform(*np.transpose(poses[rng.integers(len(poses))])) @ (1, 1j) * np.pi / 180 for _ in "lr"]
    stance = {"front": _FRONT_STANCE, "additional": _LIVELY_STANCE}.get(view, _USUAL_STANCE)
    feet = rng.uniform(*stance) + rng.uniform(-1, 1, 2) * (0.001 if view == "front" else 0.015)
    turn = float(rng.choice([-1, 1]) * rng.uniform(0.75, 1.0)) if view == "side" else 0.0
    zoom, shift, lean = rng.uniform((0.98, -0.015, -0.01), (1.0, 0.015, 0.01)) * (0.84 if view == "full" else 1, 1, 1)

    size = width * _FINE, height * _FINE
    upper, lower = np.array(person.backdrop_colours)
    down = np.linspace(0, 1, size[1])[:, None]
    fade = {"plain": 0.0 * down, "gradient": down, "room": down > 0.8}[person.backdrop]
    column = np.zeros((size[1], 1, 4), np.uint8)
    column[:, 0, :3] = (upper + (lower - upper) * fade).round()
    image = Image.fromarray(column, "RGBX").resize(size, Image.Resampling.NEAREST)
    scale = 0.93 * min(size[1], size[0] * 4 / 3) * person.stature * zoom
    origin = size[0] * (0.5 + shift) + 1j * (0.97 * size[1] - scale)
    canvas = _Canvas(image, ImageDraw.Draw(image), scale, origin, lean)
    ground = _place(canvas, _oval(0.99j, 0.2, 0.014))[None]
    _ink(canvas.pen, ground, _shade(column[int(0.97 * size[1]), 0, :3].tolist(), 0.85), 0)
    _draw_figure(canvas, _body(person, arms, feet, turn, view == "back"), person, outfit)
    return _finished(canvas, [*REGIONS, *(garment.category for garment in outfit)])


def draw_garment(garment: Garment, height: int, width: int) -> Drawing:
    """The flat product picture on white, at one zoom for all garments, so that lengths compare."""
    body = _body(None, (0.3 + 0.3j, 0.3 + 0.3j), (0.085, 0.085), 0.0, False)
    size, (zoom, middle) = (width * _FINE, height * _FINE), _FLAT
    image, scale = Image.new("RGBX", size, (255, 255, 255, 0)), zoom * min(size[1], size[0] * 4 / 3)
    canvas = _Canvas(image, ImageDraw.Draw(image), scale, size[0] / 2 + 1j * (size[1] / 2 - middle * scale))
    if garment.category != "lower":  # the inside of the back, seen through the neckline
        neck, rise = _neckline(body, garment), -0.024j if garment.neckline == "high" else 0.006j
        inside = neck[-1].real * np.cos(np.pi * _STEPS) + rise * np.sin(np.pi * _STEPS)
        _fill(canvas, _warp(_UPRIGHT, np.concatenate([inside, neck])), 1, _shade(garment.colours[0], 0.6))
    _draw_unsleeved(canvas, body, garment, 1)
    for side in (-1, 1):
        if garment.sleeve > 0:
            _draw_sleeve(canvas, body, garment, 1, side)
    return _finished(canvas, [garment.category])
