"""Try-on pairs drawn on the spot, with what no real data set has: the truth of an unpaired try-on, and its length."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tryon.data.category import CATEGORIES, Category, MaskRule
from tryon.data.masks import MASK_VERSION, PARTS, agnostic_mask, mask_picture
from tryon.data.sample import TryOnSample, fit_picture, fitted_sample, to_picture
from tryon.evaluation.cases import TRY_OFF, Case, CaseSource, TryOffs
from tryon.evaluation.leftovers import share_by_truth
from tryon.toy.canvas import Drawing, edge_colour
from tryon.toy.drawing import AS_WORN, draw_garment, draw_person, random_layout
from tryon.toy.model import PARSER_LABELS
from tryon.toy.people import OTHER_LENGTH, VIEW, Example, distance, random_example, surroundings
from tryon.toy.world import VIEWS, WORLD_VERSION, Colour, Garment, World, random_outfit, random_wearer

EVALUATION_SEED = 10_000  # no run has seen these drawings; they are the same for all, so that numbers can be compared
REFERENCE_VIEWS = ("front", "full", "additional")  # from behind, neither logos nor necklines are seen
LENGTH_TOLERANCE = 0.1  # of the true length
PARSED_SIZES = ((96, 64), (96, 72), (192, 144), (384, 288))  # height and width of what the parser learns from
LEGGINGS = Garment("lower", "trousers", 0.95, 0.0, "none", 0.0, 0.0, "plain", 0.1, 0.0, "disc", ((0, 0, 0), (0, 0, 0)))


@dataclass(frozen=True)
class DrawnData:
    """Drawn pairs of one panel size: a SampleSource. Pair i is of categories[i % len(categories)]. The fields that
    `repr` leaves out enter the key where they are not at world 4's values."""

    variants: ClassVar[int] = 1

    count: int
    seed: int
    categories: tuple[Category, ...]
    height: int
    width: int
    unpaired: bool = False  # whether the other garment is tried on
    mask_rule: MaskRule = MaskRule()
    world: World = field(default=WORLD_VERSION, repr=False)
    worn_reference_share: float = field(default=0.0, repr=False)  # of pairs whose reference is a photograph

    def __len__(self) -> int:
        return self.count

    def example(self, index: int) -> Example:
        """Who and what pair `index` shows."""
        return random_example(self.seed, index, self.category(index), self.world)

    def tried_on(self, index: int) -> tuple[Garment, ...]:
        """What the person of pair `index` wears in the end; the first is the garment that is tried on."""
        example = self.example(index)
        return (example.other, *example.outfit[1:]) if self.unpaired else example.outfit

    def truth(self, index: int) -> Drawing:
        """The person of pair `index` wearing it."""
        example = self.example(index)
        return draw_person(example.person, self.tried_on(index), VIEW, self.height, self.width)

    def has_worn_reference(self, index: int) -> bool:
        """Whether the reference of pair `index` is a photograph of somebody else who wears the garment."""
        return np.random.default_rng([self.seed, index, 1]).random() < self.worn_reference_share

    def reference(self, index: int) -> Drawing:
        """What shows the garment that is tried on: alone, or the whole picture of another person in another pose."""
        garment, size = self.tried_on(index)[0], (self.height, self.width)
        rng = np.random.default_rng([self.seed, index, 2])
        if not self.has_worn_reference(index):
            return draw_garment(garment, *size, random_layout(rng, garment) if self.world == 5 else AS_WORN)
        outfit = (garment, *random_outfit(rng, garment.category)[1:])
        return draw_person(random_wearer(rng, outfit, self.world), outfit, str(rng.choice(REFERENCE_VIEWS)), *size)

    def key(self, index: int) -> str:
        """A hash of all that pair `index` is drawn from."""
        reference = ("worn",) if self.has_worn_reference(index) else ()
        return sha256(repr((self.world, MASK_VERSION, self, index, *reference)).encode()).hexdigest()

    def category(self, index: int) -> Category:
        return self.categories[index % len(self.categories)]

    def name(self, index: int) -> str:
        return f"drawing {index}"

    def shows_garment_alone(self, index: int) -> bool:
        return True

    def __getitem__(self, index: int) -> TryOnSample:
        example = self.example(index)
        category = example.outfit[0].category
        person = draw_person(example.person, example.outfit, VIEW, self.height, self.width)
        worn = torch.from_numpy(np.asarray(person.masks[category]) > 0)[None]
        hidden = mask_picture(agnostic_mask(worn, category, self.mask_rule, label_map(person)))
        size = self.height, self.width
        pictures = self.reference(index).image, person.image, hidden
        return fitted_sample(self.key(index), pictures, category, size)

    def length(self, index: int, picture: np.ndarray) -> int:
        """Rows from where the legs begin to show, below the top, down to the lowest row in which more than half of the
        pixels are nearer in colour to the garment that is tried on than to skin, shoes and background. picture:
        [H, W, 3] of 0..255, the person of pair `index`."""
        example, garment = self.example(index), self.tried_on(index)[0]
        away = distance(picture, surroundings(example.person)).min(-1)
        return _lowest_row(self.legs(index), distance(picture, colours_of(garment)).min(-1) < away)

    def true_length(self, index: int) -> int:
        """Rows of the legs that the garment, as it is drawn, covers: what `length` should find."""
        return _lowest_row(self.legs(index), np.asarray(self.truth(index).masks["lower"]) > 0)

    def legs(self, index: int) -> np.ndarray:
        """[H, W] bool: what of the legs, down to above the shoes, shows between background, upper garment and arms;
        without the pixels at its sides, which are mixed."""
        example = self.example(index)
        outfit = (LEGGINGS, *example.outfit[1:])
        drawing = draw_person(example.person, outfit, VIEW, self.height, self.width)
        legs = np.pad(np.asarray(drawing.masks["lower"]) > 0, ((0, 0), (2, 2)))
        return np.all([legs[:, shift : shift + self.width] for shift in range(5)], axis=0)


def colours_of(garment: Garment) -> tuple[Colour, ...]:
    """What a garment shows: its colours, what checks mix of them, its edges."""
    mixed = tuple((a + b) // 2 for a, b in zip(*garment.colours, strict=True))
    return *garment.colours, mixed, edge_colour(garment.colours[0])


def label_map(drawing: Drawing) -> Tensor:
    """[H, W] of places in PARTS of a drawn person: exact, hands included. The trunk's skin counts as arms, which are
    repainted with it."""
    labels = np.zeros(drawing.image.size[::-1], np.uint8)
    for name, mask in drawing.masks.items():
        labels[np.asarray(mask) > 0] = PARTS.index("arms" if name == "torso" else name)
    return torch.from_numpy(labels)


def labelled_person(seed: int, index: int, world: World = WORLD_VERSION) -> tuple[Image.Image, Tensor]:
    """A drawn person, RGB, and its labels, [H, W] of places in PARSER_LABELS. Sixty in a row cover every combination of
    category, view and size."""
    example = random_example(seed, index, CATEGORIES[index % len(CATEGORIES)], world)
    view, size = VIEWS[index % len(VIEWS)], PARSED_SIZES[index % len(PARSED_SIZES)]
    drawing = draw_person(example.person, example.outfit, view, *size)
    lower = "Skirt" if any(garment.kind == "skirt" for garment in example.outfit) else "Pants"
    label_of_part = {
        "head": "Face", "arms": "Left-arm", "hands": "Left-arm", "legs": "Left-leg", "shoes": "Left-shoe",
        "upper": "Upper-clothes", "lower": lower, "full": "Dress",
    }  # fmt: skip
    places = [PARSER_LABELS.index(label_of_part.get(part, "Background")) for part in PARTS]
    return drawing.image, torch.tensor(places)[label_map(drawing).long()]


def _lowest_row(legs: np.ndarray, covered: np.ndarray) -> int:
    rows = np.flatnonzero(legs.any(1))
    share = (legs & covered)[rows].sum(1) / legs[rows].sum(1)
    return int(np.flatnonzero(share > 0.5).max(initial=-1)) + 1


@dataclass(frozen=True)
class DrawnCases:
    """The drawn pairs with their truths: a CaseSource."""

    data: DrawnData

    def __len__(self) -> int:
        return len(self.data)

    def key(self, index: int) -> str:
        return replace(self.data, count=0).key(index)  # a drawing is the same one among any number

    def name(self, index: int) -> str:
        return self.data.name(index)

    def __getitem__(self, index: int) -> Case:
        data, sample, drawn = self.data, self.data[index], self.data.truth(index)
        truth = fit_picture(drawn.image, data.height, data.width)
        ends_right = partial(length_right, data, index) if has_length(data, index) else None
        old, new = data.example(index).outfit[0], data.tried_on(index)[0]
        leftovers = partial(
            share_of_picture, truth=np.asarray(drawn.image), mask=sample.mask[0].bool().numpy(),
            garment=np.asarray(drawn.masks[new.category]) > 0, colours=np.array([*colours_of(old), *colours_of(new)]),
        )  # fmt: skip
        return Case(sample, truth, ends_right, leftovers)


def held_out_drawings(
    per_category: int, height: int, width: int, rule: MaskRule, *, try_offs: Collection[Category] = ()
) -> dict[str, CaseSource]:
    """Drawings that no run has seen, equally many of each category, in their own garments and in others. try_offs:
    categories whose garments are taken off too."""
    data = DrawnData(len(CATEGORIES) * per_category, EVALUATION_SEED, CATEGORIES, height, width, mask_rule=rule)
    paired = DrawnCases(data)
    cases = {"paired": paired, "unpaired": DrawnCases(replace(data, unpaired=True))}
    taken_off = [index for index in range(len(paired)) if data.category(index) in try_offs]
    return cases | ({TRY_OFF: TryOffs(paired, taken_off)} if taken_off else {})


def has_length(data: DrawnData, index: int) -> bool:
    """Whether the person of pair `index` wears shorts or trousers, whose length can be measured."""
    return data.example(index).outfit[0].kind in OTHER_LENGTH


def share_of_picture(picture: Tensor, **truth: np.ndarray) -> float:
    """What share_by_truth says of a picture, [3, H, W/2] in [-1, 1]."""
    return share_by_truth(np.asarray(to_picture(picture)), **truth)


def length_right(data: DrawnData, index: int, picture: Tensor) -> bool:
    """Whether what the person of pair `index` wears in the picture, [3, H, W/2] in [-1, 1], ends where it does in
    truth, to a tenth of its length."""
    true = data.true_length(index)
    return abs(data.length(index, np.asarray(to_picture(picture))) - true) <= LENGTH_TOLERANCE * true
