"""Garment where none should be, in pictures of which it is known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ListSource, make_sample
from tryon.data.masks import PARTS
from tryon.data.sample import fit_picture
from tryon.evaluation.cases import HeldOut
from tryon.evaluation.leftovers import share_by_labels
from tryon.evaluation.perceptual import load_perception
from tryon.evaluation.score import measured
from tryon.toy.drawing import draw_person
from tryon.toy.examples import DrawnCases, DrawnData, label_map
from tryon.toy.model import toy_parser
from tryon.toy.people import VIEW

HEIGHT, WIDTH = 192, 144
DATA = DrawnData(12, 3, ("upper", "lower", "full"), HEIGHT, WIDTH, unpaired=True)


@pytest.mark.parametrize("index", range(6))
def test_of_a_drawing_they_are_known_to_the_pixel(index: int) -> None:
    case, category = DrawnCases(DATA)[index], DATA.category(index)
    truth = DATA.truth(index)
    assert case.leftovers(case.truth) == 0
    assert 0 <= case.leftovers(case.truth + 0.05) < 0.01, "a slightly other brightness is no garment"

    mask, pixels = case.sample.mask[0].bool().numpy(), np.array(truth.image)
    place = mask & (np.asarray(truth.masks[category]) == 0)
    inked = DATA.example(index).outfit[0].colours[0]
    seen = place & (np.linalg.norm(pixels.astype(float) - inked, axis=-1) > 60)
    rows, columns = (each[:40] for each in np.nonzero(seen))
    assert len(rows) == 40
    pixels[rows, columns] = inked
    spotted = fit_picture(Image.fromarray(pixels), HEIGHT, WIDTH)
    assert case.leftovers(spotted) == pytest.approx(40 / mask.sum()), "forty pixels in the old garment's colour"
    assert measured(case, spotted)["leftovers"] == case.leftovers(spotted)


def test_of_a_drawing_the_old_garment_shows_where_it_is_larger_than_the_new_one() -> None:
    for index, larger in ((4, True), (6, True), (3, False), (7, False)):  # trousers, long sleeves; short ones
        example = DATA.example(index)
        old = draw_person(example.person, example.outfit, VIEW, HEIGHT, WIDTH).image
        kept = DrawnCases(DATA)[index].leftovers(fit_picture(old, HEIGHT, WIDTH))
        assert kept > 0.15 if larger else kept < 0.01


def labels(**parts: slice) -> torch.Tensor:
    """[8, 4] of places in PARTS, rows by name."""
    found = torch.zeros(8, 4, dtype=torch.uint8)
    for part, rows in parts.items():
        found[rows] = PARTS.index(part)
    return found


def test_of_a_photograph_they_are_what_was_not_asked_for() -> None:
    mask = torch.zeros(1, 8, 4)
    mask[:, 2:] = 1
    suit, dress = labels(upper=slice(1, 4), lower=slice(4, 7)), labels(full=slice(1, 7))
    assert share_by_labels(suit, suit, mask, "upper") == 0, "the trousers were there before"
    assert share_by_labels(suit, labels(upper=slice(1, 3), lower=slice(3, 7)), mask, "upper") == pytest.approx(1 / 6)
    assert share_by_labels(dress, dress, mask, "upper") == pytest.approx(5 / 6), "a top was asked for"
    assert share_by_labels(suit, suit, mask, "full") == pytest.approx(5 / 6), "a dress was asked for"
    assert share_by_labels(suit, dress, mask, "full") == 0


def test_a_parser_finds_a_dress_that_was_kept(data_cache: Path, tmp_path: Path) -> None:
    perception = load_perception(tmp_path, torch.device("cpu"), str(toy_parser(data_cache)))
    example, top = DATA.example(2), DATA.example(0).outfit
    dressed = draw_person(example.person, example.outfit, VIEW, HEIGHT, WIDTH)
    right = draw_person(example.person, top, VIEW, HEIGHT, WIDTH)
    mask = (label_map(right) == PARTS.index("upper"))[None].float()
    before, kept, changed = (perception.labels(each) for each in (dressed.image, dressed.image, right.image))
    assert share_by_labels(before, kept, mask, "upper") > 0.8 and share_by_labels(before, changed, mask, "upper") < 0.2


def test_without_the_parsers_weights_they_are_not_computed(tmp_path: Path) -> None:
    perception = load_perception(tmp_path, torch.device("cpu"), str(tmp_path))
    assert perception.labels is None and "cannot be loaded" in perception.missing["leftovers"]
    case = HeldOut(ListSource([make_sample(0)]), [0], [0])[0]
    assert "leftovers" not in measured(case, case.truth)
