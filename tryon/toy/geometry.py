"""The geometry of the toy's drawings: curves, and the body under the clothes.

Points are complex numbers x + iy in *body units*: the figure is 1 tall, y grows downwards from its crown (0) to its
soles (1), x = 0 is its middle.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tryon.toy.world import Person

Spine = tuple[np.ndarray, np.ndarray, np.ndarray]  # a limb's centre line: distances along it, points, unit normals

NECK, WAIST, ANKLE = 0.166, 0.37, 0.935  # heights
UPPER_ARM, FOREARM, LEG = 0.15, 0.14, ANKLE - WAIST  # lengths
ARM_GIRTH = (-0.034, -0.026, -0.008, 0.13, 0.29), (0.005, 0.017, 0.028, 0.024, 0.017)  # distances, half widths
HAND_GIRTH = (0.285, 0.297, 0.315, 0.33, 0.338), (0.014, 0.021, 0.022, 0.015, 0.004)
LEG_GIRTH = (0.06, 0.14, 0.34, 0.42, 0.57), (0.054, 0.056, 0.037, 0.036, 0.022)
STEPS = np.linspace(0, 1, 9)
ROUND = np.linspace(0, 2 * np.pi, 18, endpoint=False)
DISC = np.exp(1j * ROUND)


@dataclass(frozen=True)
class Pose:
    """How a body stands, or a garment is laid out. Pairs are of the picture's left and right."""

    arms: Sequence[complex]  # radians from hanging, outwards: of the upper arm + i of the forearm
    feet: Sequence[complex]  # body units: from the middle, outwards, + i off the ground, as of a leg that steps back
    turn: float = 0.0  # 0 faces the viewer or away; -1 and 1 are turned to the picture's left and right
    front: float = 0.0  # body units: where the middle of the chest is seen
    back: bool = False


@dataclass(frozen=True)
class Body:
    """The geometry under the clothes, for one person in one pose."""

    profile: tuple[np.ndarray, np.ndarray]  # heights and half widths of the trunk
    shoulder: float  # half width
    across: float  # factor on widths: the build, less when turned
    arms: list[Spine]  # picture left and right, from the shoulder to the wrist
    legs: list[Spine]  # from the waist to the ankle
    turn: float  # this and what follows: the pose's
    front: float
    back: bool


_BASIS = np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]) / 2  # of Catmull-Rom curves
_BASIS = (np.linspace(0, 1, 4, endpoint=False)[:, None] ** np.arange(4)) @ _BASIS


def curve(points: Sequence[complex]) -> np.ndarray:
    """A smooth open curve through n points: 4 (n - 1) + 1 points."""
    p = np.asarray(points)
    padded = np.concatenate([[2 * p[0] - p[1]], p, [2 * p[-1] - p[-2]]])
    return np.append((_BASIS @ [padded[k : k + len(p) - 1] for k in range(4)]).T.ravel(), p[-1])


def closed_curve(points: Sequence[complex]) -> np.ndarray:
    """A smooth closed outline through points."""
    return curve([*points[-2:], *points, *points[:2]])[8:-8]


def oval(centre: complex, rx: float, ry: float) -> np.ndarray:
    """The outline of an upright ellipse with these radii."""
    return centre + rx * DISC.real + 1j * ry * DISC.imag


def mirrored(half: Sequence[complex]) -> np.ndarray:
    """An outline symmetric about x = 0 from its right half, listed downwards."""
    return np.concatenate([half, -np.conj(half[::-1])])


def make_spine(points: np.ndarray) -> Spine:
    """The spine through points, lengthened straight at both ends; distance 0 is the first point."""
    step = np.diff(points)
    unit = step / np.abs(step)
    unit = np.concatenate([unit[:1], unit, unit[-1:]])
    centre = np.concatenate([points[:1] - 0.5 * unit[0], points, points[-1:] + 0.5 * unit[-1]])
    along = np.concatenate([[-0.5, 0.0], np.cumsum(np.abs(step)), [np.abs(step).sum() + 0.5]])
    return along, centre, -1j * np.concatenate([unit[:1], (unit[1:] + unit[:-1]) / 2, unit[-1:]])


UPRIGHT = make_spine(np.array([1j * NECK, 1j]))  # the trunk's


def warp(spine: Spine, points: np.ndarray) -> np.ndarray:
    """u + iv, u across (to the right on a downward spine) and v along the spine -> body points."""
    along, centre, normal = spine
    return np.interp(points.imag, along, centre) + points.real * np.interp(points.imag, along, normal)


def tube(v: np.ndarray, right: np.ndarray, left: np.ndarray) -> np.ndarray:
    """An outline in u + iv with these half widths."""
    return np.concatenate([right + 1j * v, (-left + 1j * v)[::-1]])


def make_body(person: Person | None, pose: Pose) -> Body:
    """The person's body in a pose; nobody's in particular if no person."""
    build, shoulders, hips = (person.build, person.shoulders, person.hips) if person else (1.0, 1.0, 1.0)
    across = build * (1 - 0.3 * abs(pose.turn))
    chest, hip = 0.103 * (0.4 + 0.6 * shoulders), 0.112 * hips
    waist = 0.39 * (chest + hip) * (1.0 if hips >= shoulders else 1.08)
    profile = curve([chest + 0.19j, 0.98 * chest + 0.26j, waist + 0.36j, hip + 0.455j, hip + 0.505j, hip + 0.6j])
    shoulder = 0.128 * shoulders * across
    body = Body((profile.imag, profile.real * across), shoulder, across, [], [], pose.turn, pose.front, pose.back)
    for side, arm, foot in zip((-1, 1), pose.arms, pose.feet, strict=True):
        joint = side * (shoulder - 0.026 * build) + 0.213j
        elbow = joint + UPPER_ARM * 1j * np.exp(-1j * side * arm.real)
        wrist = elbow + FOREARM * 1j * np.exp(-1j * side * arm.imag)
        body.arms.append(make_spine(curve([joint, 0.4 * joint + 0.6 * elbow, 0.6 * elbow + 0.4 * wrist, wrist])))
        top, ankle = side * 0.053 * across * hips, side * foot.real * across
        knee = 0.4 * top + 0.6 * ankle + side * 0.004
        down = [top + 1j * WAIST, top + 0.47j, knee + 0.71j, ankle + 1j * (ANKLE - foot.imag)]
        along, centre, normal = make_spine(curve(down))
        body.legs.append((along * (LEG / (LEG - foot.imag)), centre, normal))  # foreshortened: as long as the other
    return body
