"""Try-on pairs drawn on the spot, with what no real data set has: the truth of an unpaired try-on."""

from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from PIL import Image

from tryon.masks import agnostic_mask
from tryon.sample import Category, TryOnSample, fit_mask, fit_picture
from tryon.toy.drawing import draw_garment, draw_person
from tryon.toy.world import VIEWS, WORLD_VERSION, Garment, Person, random_garment, random_outfit, random_person


@dataclass(frozen=True)
class Example:
    """One person, what it wears, of which outfit[0] is tried on, and another garment of the same category."""

    person: Person
    outfit: tuple[Garment, ...]
    other: Garment
    view: str


def random_example(seed: int, index: int, category: Category) -> Example:
    """The example that seed, index and category stand for."""
    rng = np.random.default_rng([seed, index])
    outfit = random_outfit(rng, category)
    skirted = any(garment.kind in ("skirt", "dress") for garment in outfit)
    person = random_person(rng, "WOMEN" if skirted else None)
    return Example(person, outfit, random_garment(rng, category), str(rng.choice(VIEWS)))


@dataclass(frozen=True)
class DrawnData:
    """Drawn pairs of one panel size: a SampleSource. Pair i is of categories[i % len(categories)]."""

    count: int
    seed: int
    categories: tuple[Category, ...]
    height: int
    width: int

    def __len__(self) -> int:
        return self.count

    def example(self, index: int) -> Example:
        """Who and what pair `index` shows."""
        return random_example(self.seed, index, self.categories[index % len(self.categories)])

    def key(self, index: int) -> str:
        """A hash of all that pair `index` is drawn from."""
        return sha256(repr((WORLD_VERSION, self, index)).encode()).hexdigest()

    def __getitem__(self, index: int) -> TryOnSample:
        example = self.example(index)
        garment, category = example.outfit[0], example.outfit[0].category
        person = draw_person(example.person, example.outfit, example.view, self.height, self.width)
        hidden = agnostic_mask(torch.from_numpy(np.asarray(person.masks[category]) > 0)[None], category)
        return TryOnSample(
            key=self.key(index),
            garment=fit_picture(draw_garment(garment, self.height, self.width).image, self.height, self.width),
            person=fit_picture(person.image, self.height, self.width),
            mask=fit_mask(Image.fromarray(hidden[0].numpy()), self.height, self.width),
            category=category,
        )
