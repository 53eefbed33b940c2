"""A person, what it wears, and another garment to try on, from a seed. Imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tryon.data.category import Category
from tryon.toy.canvas import edge_colour
from tryon.toy.world import WORLD_VERSION, Colour, Garment, Person, World, random_garment, random_outfit, random_wearer

VIEW = "front"  # of all examples
OTHER_LENGTH = {"trousers": "shorts", "shorts": "trousers"}
DISTINCT = 90  # in RGB: least distance of garments whose length is measured from skin, shoes and background


@dataclass(frozen=True)
class Example:
    """One person, seen from the front. outfit: what it wears; outfit[0] is the garment of the example's category.
    other: another garment of that category."""

    person: Person
    outfit: tuple[Garment, ...]
    other: Garment


def random_example(seed: int, index: int, category: Category, world: World = WORLD_VERSION) -> Example:
    """The example that seed, index and category stand for. People in trousers get shorts to try on and the reverse, in
    colours unlike those of legs and background, so that the length of the result can be measured."""
    rng = np.random.default_rng([seed, index])
    outfit = random_outfit(rng, category)
    person = random_wearer(rng, outfit, world)
    other = random_garment(rng, category)
    if wanted := OTHER_LENGTH.get(outfit[0].kind):
        while other.kind != wanted or distance(other.colours, surroundings(person)).min() < DISTINCT:
            other = random_garment(rng, category)
    return Example(person, outfit, other)


def surroundings(person: Person) -> tuple[Colour, ...]:
    """The colours of legs that no garment covers, edges included, and of the background beside them."""
    edges = [edge_colour(colour) for colour in (person.skin, person.shoes)]
    return person.skin, person.shoes, *edges, *person.backdrop_colours


def distance(colours: Sequence[Colour] | np.ndarray, others: Sequence[Colour]) -> np.ndarray:
    """Distances in RGB, 0..442: [..., 3] and [N, 3] -> [..., N]."""
    return np.linalg.norm(np.asarray(colours, float)[..., None, :] - np.asarray(others, float), axis=-1)
