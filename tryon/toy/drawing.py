"""Draws the toy's people in their clothes, and garments alone, with masks that are exact ground truth.

Parts are painted back to front.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from tryon.toy.canvas import FINE, Canvas, Drawing, Place, canvas_at, fill, finished, ink, place, shade
from tryon.toy.clothes import draw_sleeve, draw_unsleeved, neckline
from tryon.toy.geometry import (
    ANKLE,
    ARM_GIRTH,
    DISC,
    HAND_GIRTH,
    LEG_GIRTH,
    STEPS,
    UPRIGHT,
    Body,
    Pose,
    closed_curve,
    curve,
    make_body,
    mirrored,
    oval,
    tube,
    warp,
)
from tryon.toy.world import VIEWS, Colour, Garment, Person

REGIONS = ("head", "arms", "hands", "torso", "legs", "shoes")  # what is not garment; hair counts as head

_HEAD, _ARMS, _HANDS, _TORSO, _LEGS, _SHOES, _WORN = range(1, 8)  # owners; 0 is background, garments start at _WORN
# Ranges of the angles of upper arm and forearm, degrees from hanging, outwards. In front views of world 4 all stand
# alike: masks hide it, and what nobody can know would be luck when pictures are compared. Else arms hang, are held out,
# on the thigh, on the hip; in front views of world 5 held far out, too; and in the livelier "additional" view held out,
# on the hip, before the belly, waving.
_FRONT_ARMS = (((12.5, 13.5), (8.5, 9.5)),)
_USUAL_ARMS = ((3, 12), (0, 8)), ((16, 32), (14, 38)), ((18, 26), (-16, -6)), ((36, 48), (-50, -38))
_FREE_ARMS = (*_USUAL_ARMS, ((42, 64), (44, 76)))
_LIVELY_ARMS = ((16, 32), (14, 38)), ((36, 48), (-50, -38)), ((16, 26), (-75, -55)), ((48, 64), (158, 174))
# Arms, the range of the feet from the middle, and how much further each of them may be.
_FRONT = {4: (_FRONT_ARMS, (0.0645, 0.0655), 0.001), 5: (_FREE_ARMS, (0.045, 0.12), 0.015)}
_USUAL, _LIVELY = (_USUAL_ARMS, (0.045, 0.085), 0.015), (_LIVELY_ARMS, (0.045, 0.12), 0.015)
_WIDEST = 0.3  # half the width of the widest skirt, body units
_MANES = {  # right halves of the outlines of hair
    "bob": (0.02 - 0.004j, 0.06 + 0.02j, 0.08 + 0.08j, 0.082 + 0.13j, 0.05 + 0.165j),
    "bun": (0.01 - 0.036j, 0.034 - 0.01j, 0.01 + 0.02j),
    "ponytail": (0.01 + 0.03j, 0.034 + 0.1j, 0.03 + 0.17j, 0.004 + 0.25j),
    "long": (0.02 - 0.004j, 0.06 + 0.02j, 0.08 + 0.08j, 0.086 + 0.19j, 0.076 + 0.265j, 0.04 + 0.285j),
}
_MANES["over"] = _MANES["long"]
_LOCK = np.array([0.058 + 0.035j, 0.074 + 0.1j, 0.09 + 0.19j, 0.08 + 0.27j, 0.06 + 0.275j, 0.056 + 0.19j, 0.052 + 0.1j])


def _draw_arm(canvas: Canvas, body: Body, skin: Colour, garment: Garment, owner: int, side: int) -> None:
    v = np.concatenate([ARM_GIRTH[0][:3], 0.03 + 0.27 * STEPS])
    for limb, along, girth in ((_ARMS, v, np.interp(v, *ARM_GIRTH)), (_HANDS, *np.array(HAND_GIRTH))):
        outline = tube(along, girth * body.across, girth * body.across)
        fill(canvas, warp(body.arms[side > 0], outline), limb, skin)
    if garment.sleeve > 0:
        draw_sleeve(canvas, body, garment, owner, side)


def _draw_head(canvas: Canvas, person: Person, turn: float) -> None:
    """Ears, face, and the hair that frames it."""
    x, gaze, narrow, skin = 0.012 * turn, 0.042 * turn, 1 - 0.3 * abs(turn), person.skin
    for side in (-1, 1):
        if side != np.sign(turn):
            fill(canvas, oval(x + 0.06 * side + 0.085j, 0.012, 0.016), _HEAD, skin)
    jaw = oval(0.079j, 0.061, 0.074)
    fill(canvas, jaw + x - 0.16 * jaw.real * np.maximum(DISC.imag, 0), _HEAD, skin)
    blush = tuple((3 * a + b) // 4 for a, b in zip(skin, (235, 80, 90), strict=True))
    sides, smile = narrow * np.array([[-1], [1]]), narrow * (2 * STEPS - 1)
    for points, colour, line in (
        (0.037 * sides + oval(0.11j, 0.012, 0.008), blush, 0),
        (0.026 * sides + oval(0.084j, 0.0075, 0.009), (40, 30, 35), 0),
        (0.026 * sides + (0.067j - 0.011, 0.067j + 0.011), shade(person.hair, 0.6), 0.006),
        ((0.019 * smile + 0.126j - 0.008j * smile**2)[None], (170, 60, 70), 0.007),
        (0.2 * gaze + np.array([[0.094j, 0.103j + 0.004, 0.104j - 0.003]]), shade(skin, 0.78), 0.005),
    ):
        ink(canvas.pen, place(canvas, points + gaze), colour, _HEAD, line * canvas.scale)
    fringe = curve([0.055 + 0.075j, 0.05 + 0.05j, 0.015 + 0.03j, 0.042j - 0.035, 0.075j - 0.055])
    fringe += 0.6 * gaze * (fringe.imag < 0.07)
    crown = 0.078j - 0.068 * np.cos(np.pi * STEPS) - 0.085j * np.sin(np.pi * STEPS)
    fill(canvas, x + np.concatenate([crown, fringe]), _HEAD, person.hair)
    for side in (-1, 1):
        if person.hair_style == "over" and side != np.sign(turn):
            lock = _LOCK if side > 0 else -np.conj(_LOCK)
            fill(canvas, closed_curve(lock) + x, _HEAD, person.hair)


def _draw_figure(canvas: Canvas, body: Body, person: Person, outfit: Sequence[Garment]) -> None:
    skin, far = person.skin, -int(np.sign(body.turn))
    owners = {garment.category: _WORN + index for index, garment in enumerate(outfit)}
    top = next(garment for garment in outfit if garment.category != "lower")
    mane = closed_curve(mirrored(_MANES.get(person.hair_style, _MANES["bun"])))
    mane += 0.055 if person.hair_style == "ponytail" and not (body.back or body.turn) else -0.04 * body.turn
    if person.hair_style != "short" and not body.back:
        fill(canvas, mane, _HEAD, shade(person.hair, 0.85))
    if body.turn:
        _draw_arm(canvas, body, skin, top, owners[top.category], far)
    _draw_legs_and_torso(canvas, body, person)
    for garment in sorted(outfit, key=lambda garment: garment.category == "upper"):
        draw_unsleeved(canvas, body, garment, owners[garment.category])
    for side in (-1, 1):
        if side != far:
            _draw_arm(canvas, body, skin, top, owners[top.category], side)
    if not body.back:
        _draw_head(canvas, person, body.turn)
        return
    fill(canvas, oval(0.074j, 0.068, 0.08), _HEAD, person.hair)
    if person.hair_style != "short":
        fill(canvas, mane, _HEAD, person.hair)


def _draw_legs_and_torso(canvas: Canvas, body: Body, person: Person) -> None:
    """Legs, shoes, and the trunk with its neck."""
    skin, v, y = person.skin, 0.04 + 0.53 * STEPS, 0.25 + 0.25 * STEPS
    girth = np.interp(v, *LEG_GIRTH) * body.across
    for spine, side in zip(body.legs, (-1, 1), strict=True):
        fill(canvas, warp(spine, tube(v, girth, girth)), _LEGS, skin)
        shoe = mirrored(np.array([0.026 + 0.93j, 0.031 + 0.965j, 0.031 + 0.991j]))
        shoe.real *= body.across
        shoe[2 if (body.turn or side) > 0 else 3] += 0.035 * body.turn or 0.008 * side  # the toe
        fill(canvas, closed_curve(shoe) + (spine[1][-2] - 1j * ANKLE), _SHOES, person.shoes)
    neck = 0.033 * body.across
    trunk = [neck + 0.12j, neck + 0.155j, 2 * neck + 0.176j, body.shoulder - 0.02 + 0.188j]
    fill(canvas, mirrored(np.concatenate([trunk, np.interp(y, *body.profile) + 1j * y])), _TORSO, skin)
    if not body.back:  # the chin's shadow on the neck
        shadow = place(canvas, oval(0.013 * body.turn + 0.15j, 0.9 * neck, 0.02))
        ink(canvas.pen, shadow[None], shade(skin, 0.82), _TORSO)


def _pose(person: Person, view: str) -> tuple[Body, Place]:
    """The body as it stands in a view, and where in the picture."""
    rng = np.random.default_rng([person.seed, VIEWS.index(view)])
    poses, stance, further = {"front": _FRONT[person.world], "additional": _LIVELY}.get(view, _USUAL)
    arms = [rng.uniform(*np.transpose(poses[rng.integers(len(poses))])) @ (1, 1j) * np.pi / 180 for _ in "lr"]
    feet = rng.uniform(*stance) + rng.uniform(-1, 1, 2) * further
    turn = float(rng.choice([-1, 1]) * rng.uniform(0.75, 1.0)) if view == "side" else 0.0
    zoom, shift, lean = rng.uniform((0.98, -0.015, -0.01), (1.0, 0.015, 0.01)) * (0.84 if view == "full" else 1, 1, 1)
    if person.world == 4:
        return make_body(person, Pose(arms, feet, turn, back=view == "back")), Place(zoom, 0.5 + shift, lean=lean)
    if view not in ("side", "back"):
        turn = float(rng.choice([0.0, rng.uniform(-0.5, 0.5)]))
    feet = feet + 1j * rng.permutation([0.0, rng.choice([0.0, rng.uniform(0.01, 0.035)])])  # a step back
    body = make_body(person, Pose(arms, feet, turn, front=0.04 * turn, back=view == "back"))
    return body, _anywhere(rng, body, zoom, lean)


def _anywhere(rng: np.random.Generator, body: Body, zoom: float, lean: float) -> Place:
    """A place that holds the whole figure in any outfit, at up to this zoom."""
    hands = np.array([warp(arm, np.array([0.29j, 0.34j])).real for arm in body.arms])
    left, right = np.maximum(_WIDEST, 0.05 + np.array([-hands.min(), hands.max()])) * 0.93 * 4 / 3  # widths at zoom 1
    zoom = min(zoom * rng.uniform(0.65, 1.0), 0.97 / (left + right))
    across = 0.015 + zoom * left + rng.uniform() * (0.97 - zoom * (left + right))
    return Place(zoom, across, rng.uniform(max(0.85, 0.97 * zoom), 0.97), lean=lean)


def _backdrop(person: Person, width: int, height: int) -> Image.Image:
    upper, lower = np.array(person.backdrop_colours)
    down = np.linspace(0, 1, height)[:, None]
    fade = {"plain": 0.0 * down, "gradient": down, "room": down > 0.8}[person.backdrop]
    column = np.zeros((height, 1, 4), np.uint8)
    column[:, 0, :3] = (upper + (lower - upper) * fade).round()
    return Image.fromarray(column, "RGBX").resize((width, height), Image.Resampling.NEAREST)


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
    body, where = _pose(person, view)
    size = width * FINE, height * FINE
    image = _backdrop(person, *size)
    canvas = canvas_at(image, 0.93 * min(size[1], size[0] * 4 / 3) * person.stature, where)
    ground = place(canvas, oval(0.99j, 0.2, 0.014))[None]
    ink(canvas.pen, ground, shade(image.getpixel((0, int(where.down * size[1])))[:3], 0.85), 0)
    _draw_figure(canvas, body, person, outfit)
    return finished(canvas, [*REGIONS, *(garment.category for garment in outfit)])


@dataclass(frozen=True)
class Layout:
    """How a garment lies in its flat picture."""

    sleeves: float  # radians from hanging, outwards
    legs: float  # from the middle to an ankle, body units
    where: Place


# World 4's: as large as, and where, people wear it, at one zoom for all garments, so that lengths compare.
AS_WORN = Layout(0.3, 0.085, Place(0.907, down=0.5, level=0.482))


def random_layout(rng: np.random.Generator, garment: Garment) -> Layout:
    """World 5's: spread out, and anywhere in the picture at between three fifths of the largest size and that."""
    layout = Layout(rng.uniform(0.15, 0.8), rng.uniform(0.065, 0.1), Place(0.8, down=0.5, level=0.55))
    size, unit = np.array([96, 128]), 128 * layout.where.zoom  # of a 3:4 portrait to measure it in
    left, top, right, bottom = draw_garment(garment, *size[::-1], layout).masks[garment.category].getbbox()
    extent = np.array([right - left, bottom - top])
    larger = rng.uniform(0.6, 1.0) * (0.96 * size / extent).min()
    across, down = 0.5 + rng.uniform(-0.48, 0.48, 2) * (1 - larger * extent / size / 0.96)
    middle = layout.where.level + ((top + bottom) / 2 - 64) / unit
    return replace(layout, where=Place(larger * layout.where.zoom, across, down, middle))


def draw_garment(garment: Garment, height: int, width: int, layout: Layout = AS_WORN) -> Drawing:
    """The flat product picture on white."""
    arm = layout.sleeves * (1 + 1j)
    body = make_body(None, Pose((arm, arm), (layout.legs, layout.legs)))
    size = width * FINE, height * FINE
    image = Image.new("RGBX", size, (255, 255, 255, 0))
    canvas = canvas_at(image, min(size[1], size[0] * 4 / 3), layout.where)
    if garment.category != "lower":  # the inside of the back, seen through the neckline
        neck, rise = neckline(body, garment), -0.024j if garment.neckline == "high" else 0.006j
        inside = neck[-1].real * np.cos(np.pi * STEPS) + rise * np.sin(np.pi * STEPS)
        fill(canvas, warp(UPRIGHT, np.concatenate([inside, neck])), 1, shade(garment.colours[0], 0.6))
    draw_unsleeved(canvas, body, garment, 1)
    for side in (-1, 1):
        if garment.sleeve > 0:
            draw_sleeve(canvas, body, garment, 1, side)
    return finished(canvas, [garment.category])
