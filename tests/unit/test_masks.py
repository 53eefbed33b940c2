"""The agnostic mask."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tryon.masks import agnostic_mask
from tryon.sample import Category
from tryon.toy.drawing import draw_person
from tryon.toy.world import Garment, Person, random_garment, random_outfit, random_person


def garment(top: int, bottom: int, left: int, right: int, height: int = 100, width: int = 60) -> torch.Tensor:
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize("category", ["upper", "lower", "full"])
def test_covers_the_garment_and_nothing_above_it(category: str) -> None:
    worn = garment(30, 60, 20, 40)
    hidden = agnostic_mask(worn, category)
    assert hidden[worn].all()
    assert not hidden[:, :30].any()
    assert hidden.dtype == torch.bool


@pytest.mark.parametrize("category", ["lower", "full"])
def test_does_not_tell_short_from_long(category: str) -> None:
    short, long = garment(40, 55, 20, 40), garment(40, 95, 20, 40)
    assert torch.equal(agnostic_mask(short, category), agnostic_mask(long, category))
    assert agnostic_mask(short, category)[0, -1].any()


def test_upper_leaves_the_legs() -> None:
    assert not agnostic_mask(garment(20, 50, 20, 40), "upper")[0, -30:].any()


def dressed(person: Person, outfit: tuple[Garment, ...], category: Category) -> tuple[torch.Tensor, torch.Tensor]:
    """What of the person, standing frontally, is garment, and what head."""
    masks = draw_person(person, outfit, "front", 192, 144).masks
    return tuple(torch.from_numpy(np.asarray(masks[name]) > 0)[None] for name in (category, "head"))


def overlap(one: torch.Tensor, other: torch.Tensor) -> float:
    return ((one & other).sum() / (one | other).sum()).item()


def test_shorts_trousers_and_skirts_are_hidden_alike() -> None:
    rng, seen = np.random.default_rng(0), set()
    for _ in range(20):
        person, (worn, top) = random_person(rng, "WOMEN"), random_outfit(rng, "lower")
        others = [random_garment(rng, "lower") for _ in range(5)]
        first, *rest = (agnostic_mask(dressed(person, (lower, top), "lower")[0], "lower") for lower in (worn, *others))
        overlaps = [overlap(first, mask) for mask in rest]
        assert np.mean(overlaps) >= 0.95 and min(overlaps) >= 0.9
        seen |= {garment.kind for garment in (worn, *others)}
    assert seen == {"shorts", "trousers", "skirt"}


@pytest.mark.parametrize("category", ["upper", "full"])
def test_short_and_long_sleeves_are_hidden_alike(category: Category) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        person, (worn, *others) = random_person(rng), random_outfit(rng, category)
        short, long = (dressed(person, (replace(worn, sleeve=sleeve), *others), category)[0] for sleeve in (0.25, 1.0))
        assert overlap(agnostic_mask(short, category), agnostic_mask(long, category)) >= 0.95


@pytest.mark.parametrize("category", ["upper", "lower", "full"])
def test_on_people_the_garment_is_hidden_and_the_face_is_not(category: Category) -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        person = replace(random_person(rng), hair_style="short")
        worn, head = dressed(person, random_outfit(rng, category), category)
        hidden = agnostic_mask(worn, category)
        assert hidden[worn].all()
        assert (head & hidden).sum() <= 0.05 * head.sum(), "the chin above a high collar at most"


@pytest.mark.parametrize("category", ["upper", "lower", "full"])
def test_commutes_with_resizing_and_mirroring(category: Category) -> None:
    rng = np.random.default_rng(3)
    worn, _ = dressed(random_person(rng), random_outfit(rng, category), category)
    hidden = agnostic_mask(worn, category)
    assert overlap(agnostic_mask(worn.flip(2), category), hidden.flip(2)) >= 0.97
    double = [np.asarray(Image.fromarray(mask[0].numpy()).resize((288, 384))) for mask in (worn, hidden)]
    larger, expected = (torch.from_numpy(mask.copy())[None] for mask in double)
    assert overlap(agnostic_mask(larger, category), expected) >= 0.97


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        agnostic_mask(torch.zeros(1, 8, 8, dtype=torch.bool), "upper")
