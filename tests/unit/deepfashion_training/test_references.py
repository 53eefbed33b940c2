"""Garment references: cut-outs, and which pictures show the same colours."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from deepfashion_training.references import (
    SAME_COLOURS,
    clean_mask,
    colour_distances,
    colour_signature,
    cut_out,
    moved,
)
from tryon.data.category import CATEGORIES, Category
from tryon.toy.drawing import draw_person
from tryon.toy.world import random_garment, random_outfit, random_person


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return colour_distances(one, other[None]).item()


def test_small_holes_are_closed_and_specks_removed() -> None:
    worn = np.zeros((80, 60), bool)
    worn[20:60, 10:50] = True
    expected = worn.copy()
    worn[30:34, 20:24] = False  # a hole of 16 in 1600 pixels
    worn[5:8, 50:54] = True  # a speck of 12
    assert (clean_mask(worn) == expected).all()
    worn[40:55, 15:40] = False  # a hole that is seen through
    assert not clean_mask(worn)[45, 20]


def test_the_larger_parts_of_a_garment_stay() -> None:
    worn = np.zeros((80, 60), bool)
    worn[10:50, 5:25] = worn[10:50, 35:55] = True  # an arm before it, say
    assert (clean_mask(worn) == worn).all()


def test_a_cut_out_is_centred_on_white() -> None:
    person, worn = Image.new("RGB", (40, 60), "red"), Image.new("L", (40, 60))
    worn.paste(255, (3, 20, 13, 45))
    garment = np.asarray(cut_out(person, worn))
    red = (garment == (255, 0, 0)).all(-1)
    assert red.sum() == 10 * 25
    assert (garment[~red] == 255).all()
    rows, columns = np.nonzero(red.any(1))[0], np.nonzero(red.any(0))[0]
    assert rows[0] == garment.shape[0] - 1 - rows[-1] == columns[0] == garment.shape[1] - 1 - columns[-1] == 2


def test_a_moved_cut_out_is_whole_elsewhere_and_the_same_by_its_seed() -> None:
    garment = Image.new("RGB", (60, 90), "white")
    garment.paste((200, 30, 40), (15, 20, 45, 70))
    seen = [moved(garment, np.random.default_rng(seed)) for seed in range(8)]
    assert seen[3].tobytes() == moved(garment, np.random.default_rng(3)).tobytes()
    assert len({each.tobytes() for each in seen}) == 8
    for each in seen:
        pixels = np.asarray(each).astype(int)
        assert abs((pixels[..., 0] - pixels[..., 1] > 100).sum() / (30 * 50) - 1) < 0.05, (
            "all of it is there, no larger"
        )
        assert (pixels[[0, -1]] == 255).all() and (pixels[:, [0, -1]] == 255).all()


@pytest.mark.parametrize("category", CATEGORIES)
def test_views_of_a_garment_agree_in_colour_and_other_colourways_do_not(category: Category) -> None:
    """Of one item in two colourways, every view is told to its own."""
    same, other = [], []
    for index in range(20):
        rng = np.random.default_rng([11, index, CATEGORIES.index(category)])
        outfit = random_outfit(rng, category)
        person = random_person(rng, "WOMEN")
        recoloured = replace(outfit[0], colours=random_garment(rng, category).colours)
        colours = []
        for garment, view in ((outfit[0], "front"), (outfit[0], "additional"), (recoloured, "additional")):
            drawing = draw_person(person, (garment, *outfit[1:]), view, 192, 144)
            colours.append(colour_signature(drawing.image, drawing.masks[category]))
        same.append(distance(colours[0], colours[1]))
        other.append(distance(colours[0], colours[2]))
    assert max(same) <= SAME_COLOURS < min(other)


def test_light_changes_less_than_hue() -> None:
    worn = Image.new("L", (64, 64), 255)
    red, dark, blue = (
        colour_signature(Image.new("RGB", (64, 64), colour), worn)
        for colour in ((180, 40, 40), (165, 37, 37), (40, 60, 180))
    )
    assert red.shape == (3, 13)
    assert red[:, 0] == pytest.approx([40, 55, 36], abs=4)  # CIELAB of this red
    assert distance(red, dark) < SAME_COLOURS < distance(red, blue)


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="mask is empty"):
        colour_signature(Image.new("RGB", (8, 8)), Image.new("L", (8, 8)))
    with pytest.raises(ValueError, match="mask is empty"):
        cut_out(Image.new("RGB", (8, 8)), Image.new("L", (8, 8)))
    dust = np.zeros((40, 40), np.uint8)
    dust[::4, ::4] = 255
    with pytest.raises(ValueError, match="nothing but specks"):
        cut_out(Image.new("RGB", (40, 40)), Image.fromarray(dust))
