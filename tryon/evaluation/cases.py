"""The try-ons that are scored, and what is known of how each should come out.

A case is of one kind: "paired", a person in its own garment, "unpaired", in another one, or "try-off", in which the
product picture of the garment is painted from the person.
"""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice, zip_longest
from typing import Any, Protocol

import torch
from torch import Tensor

from tryon.console import progress_bar
from tryon.data.category import CATEGORIES, Category
from tryon.data.sample import SampleSource, TryOnSample, UnreadablePicture, check_unreadable
from tryon.units import plural

logger = logging.getLogger(__name__)

BASE = "base"  # the model without a LoRA
TRY_OFF = "try-off"  # the kind of cases that only LoRAs trained for it have
WHITE = 0.97  # in [-1, 1]; brighter pixels of the garment's picture are its background
FILL, VAE = "fill", "vae"  # bounds, no models: see tryon.evaluation.score
REAL = "real"  # the truths, or the persons where there is no truth, among what Inception sees
Place = tuple[str, str, int]  # of what was measured: model, kind, case
Line = dict[str, Any]  # what was measured there


@dataclass(frozen=True)
class Case:
    """A try-on or a try-off. truth: [3, H, W/2] in [-1, 1], the sample's person wearing its garment, or its garment's
    product picture; None where it is not known. What is inside the sample's mask is scored by itself: in a try-off the
    garment in that picture, see try_off_case.
    ends_right: says of a picture like it whether the garment ends where it does in truth; None where it cannot be told.
    leftovers: says for which share of the mask it shows garment where the truth has none; None where that is not known.
    """

    sample: TryOnSample
    truth: Tensor | None
    ends_right: Callable[[Tensor], bool] | None = None
    leftovers: Callable[[Tensor], float] | None = None


class CaseSource(Protocol):
    """Cases, each built when it is asked for."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """What tells case `index` from any other, cheaply."""

    def name(self, index: int) -> str:
        """What a message calls it."""

    def __getitem__(self, index: int) -> Case:
        """Builds it. Raises UnreadablePicture where a picture cannot be used."""


Cases = Mapping[str, CaseSource | Sequence[Case]]  # by kind; keys and names are for those that are kept in a folder


def places_of(models: Collection[str], cases: Cases) -> set[Place]:
    """Each of the models with each of the cases."""
    return {(name, kind, index) for name in models for kind, source in cases.items() for index in range(len(source))}


@dataclass(frozen=True)
class HeldOut:
    """Pairs of a data set as a CaseSource: each person in its own garment, or in another person's, of which there is no
    true picture. persons, garments: places in the data, one each for every case."""

    data: SampleSource
    persons: list[int]
    garments: list[int]

    def __len__(self) -> int:
        return len(self.persons)

    def key(self, index: int) -> str:
        return f"{self.data.key(self.persons[index])} {self.data.key(self.garments[index])}"

    def name(self, index: int) -> str:
        person, garment = self.persons[index], self.garments[index]
        given = "" if garment == person else f" in the garment of {self.data.name(garment)}"
        return self.data.name(person) + given

    def __getitem__(self, index: int) -> Case:
        sample = self.data[self.persons[index]]
        if self.garments[index] == self.persons[index]:
            return Case(sample, sample.person)
        return Case(replace(sample, garment=self.data[self.garments[index]].garment), None)


@dataclass(frozen=True)
class TryOffs:
    """Try-offs of paired cases, as a CaseSource. places: of the cases whose garment has a product picture."""

    paired: CaseSource
    places: Sequence[int]

    def __len__(self) -> int:
        return len(self.places)

    def key(self, index: int) -> str:
        return f"{TRY_OFF} {self.paired.key(self.places[index])}"

    def name(self, index: int) -> str:
        return self.paired.name(self.places[index])

    def __getitem__(self, index: int) -> Case:
        return try_off_case(self.paired[self.places[index]].sample)


def try_off_case(sample: TryOnSample) -> Case:
    """The garment's product picture, painted from the person. Its mask is where that picture is not white; all of it,
    where it is white everywhere."""
    shown = (sample.garment < WHITE).any(0, keepdim=True)
    mask = (shown if shown.any() else torch.ones_like(shown)).float()
    return Case(replace(sample, mask=mask, try_off=True), sample.garment)


def try_offs_of(held_out: HeldOut, categories: Collection[Category]) -> dict[str, TryOffs]:
    """The try-offs of paired cases of these categories whose garment has a product picture, by their kind; nothing
    where none has one."""
    alone = [
        case
        for case, pair in enumerate(held_out.garments)
        if held_out.data.category(pair) in categories and held_out.data.shows_garment_alone(pair)
    ]
    return {TRY_OFF: TryOffs(held_out, alone)} if alone else {}


def paired_cases(data: SampleSource, per_category: int | None) -> HeldOut:
    """The first `per_category` readable pairs of each category, or all, each person in its own garment."""
    pairs = first_pairs(data, per_category, partial(can_be_read, data))
    return HeldOut(data, pairs, pairs)


def held_out_cases(data: SampleSource, per_category: int | None, item: Callable[[int], str]) -> dict[str, HeldOut]:
    """The pairs of `paired_cases` as they are, and each of these persons in the garment of the next pair of its
    category that shows another item; a person without such a pair is left out. item: what pair `index` shows; pairs of
    one item may show one garment. Raises ValueError where there is no pair, and where too many cannot be read."""
    readable = cache(partial(can_be_read, data))
    persons = first_pairs(data, per_category, readable)
    looked_at = readable.cache_info().misses
    check_unreadable(looked_at - len(persons), looked_at, "held-out pairs")
    pairs, garments = {category: pairs_of(data, category) for category in CATEGORIES}, {}
    for person in persons:
        of_category = pairs[data.category(person)]
        place = of_category.index(person)
        others = (*of_category[place + 1 :], *of_category[:place])
        garments[person] = next((index for index in others if item(index) != item(person) and readable(index)), None)
    cases = {"paired": HeldOut(data, persons, persons)}
    if given := [person for person in persons if garments[person] is not None]:
        cases["unpaired"] = HeldOut(data, given, [garments[person] for person in given])
    if len(given) < len(persons):
        alone = plural(len(persons) - len(given), "person")
        logger.warning("%s without another garment of the category to try on", alone)
    return cases


def first_pairs(data: SampleSource, per_category: int | None, readable: Callable[[int], bool]) -> list[int]:
    """The first `per_category` readable pairs of each category, or all.

    The categories take turns, so that a longer list begins with the shorter one: the noise that a case starts from
    follows from its place, and stays the same when more are scored.
    """
    pairs = [pairs_of(data, category) for category in CATEGORIES]
    queues = [islice(filter(readable, of_category), per_category) for of_category in pairs]
    with progress_bar(sum(len(each[:per_category]) for each in pairs), "reading held-out pairs", visible=True) as bar:
        found = []
        for index in (index for turn in zip_longest(*queues) for index in turn if index is not None):
            found.append(index)
            bar.update()
    return found


def pairs_of(data: SampleSource, category: Category) -> list[int]:
    """The pairs of the category; a pair's variants are one."""
    return [index for index in range(len(data) // data.variants) if data.category(index) == category]


def can_be_read(data: SampleSource, index: int) -> bool:
    """Whether a pair's pictures can be used; if not, the log says why."""
    try:
        data[index]
    except UnreadablePicture as error:
        logger.warning("skipped: %s", error)
        return False
    return True
