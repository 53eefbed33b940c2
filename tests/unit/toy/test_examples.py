"""Drawn examples: the truth of an unpaired try-on, and how lengths are measured on it."""

from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from tryon.data.category import CATEGORIES
from tryon.data.masks import MASK_VERSION
from tryon.data.sample import fit_picture
from tryon.evaluation.cases import Case
from tryon.flux.encode import decode_latents, encode_pictures
from tryon.toy.examples import DrawnCases, DrawnData, colours_of, length_right
from tryon.toy.people import DISTINCT, OTHER_LENGTH, distance, surroundings
from tryon.toy.world import World

SIZE = (192, 144)
LOWER = DrawnData(45, 7, ("lower",), *SIZE, unpaired=True)


def drawn_cases(data: DrawnData) -> list[Case]:
    cases = DrawnCases(data)
    return [cases[index] for index in range(len(cases))]


def measured(data: DrawnData) -> Iterator[int]:
    """The pairs of which lengths can be told."""
    return (index for index in range(len(data)) if data.example(index).outfit[0].kind in OTHER_LENGTH)


def test_who_wears_trousers_is_given_shorts_and_the_reverse() -> None:
    kinds = set()
    for index in measured(LOWER):
        worn, other = LOWER.example(index).outfit[0], LOWER.tried_on(index)[0]
        assert {worn.kind, other.kind} == {"trousers", "shorts"}
        assert distance(other.colours, surroundings(LOWER.example(index).person)).min() >= DISTINCT
        kinds.add(worn.kind)
    assert kinds == {"trousers", "shorts"}


@pytest.mark.parametrize(("world", "share"), [(4, 0.0), (5, 0.0), (5, 1.0)])
def test_the_truth_is_the_same_person_in_the_other_garment(world: World, share: float) -> None:
    paired = DrawnData(9, 3, CATEGORIES, *SIZE, world=world, worn_reference_share=share)
    unpaired = replace(paired, unpaired=True)
    for index, (own, other) in enumerate(zip(*map(drawn_cases, (paired, unpaired)), strict=True)):
        assert torch.equal(own.truth, own.sample.person)
        assert torch.equal(own.sample.person, other.sample.person) and torch.equal(own.sample.mask, other.sample.mask)
        assert not torch.equal(own.sample.garment, other.sample.garment)
        changed = (own.truth != other.truth).any(0)
        category = own.sample.category
        worn = [np.asarray(data.truth(index).masks[category]) > 0 for data in (paired, unpaired)]
        assert changed.any() and not (changed.numpy() & ~(worn[0] | worn[1])).any()
    assert paired.key(0) != unpaired.key(0)
    assert DrawnCases(paired).key(0) == DrawnCases(replace(paired, count=12)).key(0) != DrawnCases(unpaired).key(0)


def test_the_world_and_worn_references_enter_keys_where_they_are_not_world_4s() -> None:
    data = DrawnData(4, 3, CATEGORIES, *SIZE)
    assert data.key(1) == sha256(repr((4, MASK_VERSION, data, 1)).encode()).hexdigest()
    assert "world" not in repr(replace(data, world=5)) and "worn" not in repr(data)
    others = [replace(data, world=5), replace(data, worn_reference_share=1.0)]
    assert len({data.key(1), *(other.key(1) for other in others)}) == 3


def test_a_worn_reference_is_another_person_in_the_garment_that_is_tried_on() -> None:
    data = DrawnData(60, 4, CATEGORIES, *SIZE, unpaired=True, world=5, worn_reference_share=0.4)
    worn = [index for index in range(len(data)) if data.has_worn_reference(index)]
    assert 15 <= len(worn) <= 33
    for index in range(12):
        garment, reference = data.tried_on(index)[0], data.reference(index)
        assert set(reference.masks) >= ({"head", "hands", garment.category} if index in worn else {garment.category})
        assert np.array_equal(data[index].garment, fit_picture(reference.image, *SIZE))
        inside = np.asarray(reference.image)[np.asarray(reference.masks[garment.category]) > 0]
        assert (distance(inside, colours_of(garment)).min(-1) < 10).mean() > 0.5
        assert not np.array_equal(reference.image, data.truth(index).image)


@pytest.mark.parametrize("world", [4, 5])
def test_lengths_are_right_on_the_truth_and_wrong_on_what_was_worn(world: World) -> None:
    lower = replace(LOWER, world=world)
    truths = [fit_picture(lower.truth(index).image, *SIZE) for index in range(len(lower))]
    right = [length_right(lower, index, truths[index]) for index in measured(lower)]
    few = [case for case in drawn_cases(replace(lower, count=4)) if case.ends_right]
    assert [case.ends_right(case.truth) for case in few] == right[: len(few)]
    assert len(few) == sum(index < 4 for index in measured(lower)) > 0
    assert len(right) == len(list(measured(lower))) > 25
    assert np.mean(right) >= 0.99
    assert np.mean([length_right(lower, index, lower[index].person) for index in measured(lower)]) < 0.2


@torch.no_grad()
def test_lengths_survive_the_vae(vae: AutoencoderKL) -> None:
    data = DrawnData(60, 8, ("lower",), *SIZE, unpaired=True)
    right = []
    for index in measured(data):
        truth = fit_picture(data.truth(index).image, *SIZE)
        decoded = decode_latents(vae, encode_pictures(vae, truth[None]))[0].clamp(-1, 1)
        right.append(length_right(data, index, decoded))
    assert len(right) > 35 and np.mean(right) >= 0.95


@pytest.mark.parametrize("garment_length", [0.0, 1.0])
def test_nothing_worn_has_no_length(garment_length: float) -> None:
    """A picture in the background's colour alone, or in the garment's."""
    index = next(measured(LOWER))
    person, garment = LOWER.example(index).person, LOWER.tried_on(index)[0]
    colour = garment.colours[0] if garment_length else person.backdrop_colours[0]
    rows = LOWER.legs(index).any(1).sum()
    assert LOWER.length(index, np.full((*SIZE, 3), colour)) == round(garment_length * rows)
