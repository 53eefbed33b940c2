"""Who and what there is in the toy's world: people and garments, drawn at random from a seed.

A small, exactly known version of the real task: the same person can be drawn in any other garment (drawing.py).
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tryon.data.category import CATEGORIES, Category

# In world 4 all stand alike in the middle of front views, and flat pictures show garments where they are worn. In
# world 5 people move, are off-centre and of any size, and garments are laid out in a size and place of their own.
World = Literal[4, 5]
WORLD_VERSION: World = 4  # the default; raise it whenever a drawing changes: caches are named after it
VIEWS = ("front", "side", "back", "full", "additional")
TEXTURES = ("plain", "stripes", "checks", "dots", "blocks", "logo")
WORD = "word"  # a texture that only drawings made by hand have
SYMBOLS = ("disc", "diamond", "star", "heart")

Colour = tuple[int, int, int]

CLOTHES = {  # category, range of lengths, range of sleeves, necklines
    "tee": ("upper", (0.0, 0.85), (0.25, 0.5), ("crew", "v", "scoop")),
    "long_sleeve": ("upper", (0.0, 0.85), (0.6, 1.0), ("crew", "v", "high")),
    "tank": ("upper", (0.0, 0.85), (0.0, 0.0), ("v", "scoop", "square")),
    "shirt": ("upper", (0.0, 0.85), (0.3, 1.0), ("collar",)),
    "shorts": ("lower", (0.36, 0.52), (0.0, 0.0), ("none",)),
    "trousers": ("lower", (0.68, 1.0), (0.0, 0.0), ("none",)),
    "skirt": ("lower", (0.36, 0.92), (0.0, 0.0), ("none",)),
    "dress": ("full", (0.36, 0.95), (0.25, 1.0), ("crew", "v", "scoop", "square", "collar")),
    "jumpsuit": ("full", (0.32, 1.0), (0.25, 1.0), ("crew", "v", "square")),
}
KINDS = {category: tuple(kind for kind in CLOTHES if CLOTHES[kind][0] == category) for category in CATEGORIES}

_SKINS = np.array([(255, 224, 200), (246, 205, 170), (228, 180, 140), (200, 148, 108), (160, 108, 74), (112, 74, 52)])
_HAIRS = ((38, 30, 32), (66, 42, 30), (104, 64, 38), (150, 84, 44), (216, 172, 100), (168, 60, 36), (150, 148, 150))
# All dark: masks hide shoes, and a model that had to guess their colour would be scored on its luck.
_SHOE_COLOURS = ((40, 38, 44), (58, 44, 38), (84, 62, 50), (52, 58, 78), (80, 40, 44))


@dataclass(frozen=True)
class Garment:
    """One piece of clothing. Its measures are fractions or body units, so they mean the same on everybody."""

    category: Category
    kind: str  # one of KINDS[category]
    length: float  # 0..1; upper: from the waist to mid-thigh, lower and full: from the waist to the ankle
    sleeve: float  # 0 (none)..1 (to the wrist); 0 for lower
    neckline: str  # crew, v, scoop, square, high, collar; none for lower
    fit: float  # 0 (tight)..1 (loose)
    flare: float  # 0 (straight)..1 (wide hem)
    texture: str  # one of TEXTURES, or WORD
    period: float  # of the texture, body units; of a logo or a word, its width
    angle: float  # of the texture, radians; stripes are horizontal at 0
    symbol: str  # a logo's shape: disc, diamond, star, heart; or the word
    colours: tuple[Colour, Colour]  # ground and accent, RGB 0..255


@dataclass(frozen=True)
class Person:
    """Somebody to dress: a body, a look, a place, and the seed of the poses taken in the views."""

    gender: str  # "WOMEN" or "MEN"
    stature: float  # 0.97..1, of the largest figure that fits
    build: float  # 0.92..1.12, factor on all widths
    shoulders: float  # 0.93..1.1, factor on the shoulders' width
    hips: float  # 0.92..1.08, factor on the hips' width
    skin: Colour
    hair: Colour
    hair_style: str  # short, bob, bun, ponytail, long (behind the shoulders), over (falling over them)
    shoes: Colour
    backdrop: str  # plain, gradient, room
    backdrop_colours: tuple[Colour, Colour]  # upper and lower
    seed: int
    world: World = WORLD_VERSION  # whose poses and places are taken


def _random_colour(rng: np.random.Generator, low: float, high: float, value: float) -> Colour:
    """Any hue, a saturation from low to high, at least this value."""
    rgb = colorsys.hsv_to_rgb(*rng.uniform((0.0, low, value), (1.0, high, 1.0)))
    return tuple(round(255 * channel) for channel in rgb)


def random_garment(rng: np.random.Generator, category: Category) -> Garment:
    """A garment of a category: continuous measures, colours of HSV saturation and value of at least 0.35."""
    kind = str(rng.choice(KINDS[category]))
    _, lengths, sleeves, necklines = CLOTHES[kind]
    texture = str(rng.choice(TEXTURES, p=(0.25, 0.18, 0.15, 0.15, 0.12, 0.15)))
    angle, period = rng.choice([0.0, 0.0, np.pi / 2, np.pi / 4, -np.pi / 4]), rng.uniform(0.08, 0.125)
    if texture == "blocks":  # halves side by side, or bands
        angle = rng.choice([0.0, np.pi / 2])
        period = 1.0 if angle else rng.uniform(0.24, 0.36)
    ground, accent = (_random_colour(rng, 0.4, 1.0, 0.4) for _ in "ga")
    while np.linalg.norm(np.subtract(ground, accent)) < 150:
        accent = _random_colour(rng, 0.4, 1.0, 0.4)
    return Garment(
        category, kind, length=rng.uniform(*lengths),
        sleeve=0.0 if category == "full" and rng.random() < 0.35 else rng.uniform(*sleeves),
        neckline=str(rng.choice(necklines)), fit=rng.uniform(),
        flare=rng.uniform() ** (1 if kind == "skirt" else 2), texture=texture, period=period, angle=float(angle),
        symbol=str(rng.choice(SYMBOLS)), colours=(ground, accent),
    )  # fmt: skip


def random_outfit(rng: np.random.Generator, category: Category) -> tuple[Garment, ...]:
    """A complete outfit whose first garment is of the category."""
    if category == "full":
        return (random_garment(rng, "full"),)
    upper, lower = random_garment(rng, "upper"), random_garment(rng, "lower")
    if category == "upper":
        return upper, lower
    return lower, replace(upper, length=0.4 * upper.length)  # a long top would hide short lower garments


def random_person(rng: np.random.Generator, gender: str | None = None, world: World = WORLD_VERSION) -> Person:
    """Somebody of the given gender, "WOMEN" or "MEN"; of either by default."""
    gender = gender or str(rng.choice(["WOMEN", "MEN"]))
    men, tone = gender == "MEN", rng.uniform(0, len(_SKINS) - 1)
    styles = ("short", "short", "short", "bun") if men else ("short", "bob", "bun", "ponytail", "long", "over", "over")
    return Person(
        gender, stature=rng.uniform(0.97, 1.0), build=rng.uniform(0.92, 1.12),
        shoulders=rng.uniform(1.02, 1.1) if men else rng.uniform(0.93, 1.0),
        hips=rng.uniform(0.92, 0.97) if men else rng.uniform(1.0, 1.08),
        skin=tuple(round(float(np.interp(tone, range(len(_SKINS)), channel))) for channel in _SKINS.T),
        hair=_HAIRS[rng.integers(len(_HAIRS))], hair_style=str(rng.choice(styles)),
        shoes=_SHOE_COLOURS[rng.integers(len(_SHOE_COLOURS))], backdrop=str(rng.choice(["plain", "gradient", "room"])),
        backdrop_colours=(_random_colour(rng, 0.03, 0.25, 0.7), _random_colour(rng, 0.03, 0.25, 0.7)),
        seed=int(rng.integers(2**31)), world=world,
    )  # fmt: skip


def random_wearer(rng: np.random.Generator, outfit: Sequence[Garment], world: World = WORLD_VERSION) -> Person:
    """Somebody for the outfit: a woman where it has a skirt or a dress."""
    skirted = any(garment.kind in ("skirt", "dress") for garment in outfit)
    return random_person(rng, "WOMEN" if skirted else None, world)
