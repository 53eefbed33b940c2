"""Words on garments that are found again, or not: as sequences, and read by the engine from drawings."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import ImageOps

from tryon.evaluation.text import Reader, found_again, load_reader
from tryon.toy.drawing import draw_garment, draw_person
from tryon.toy.world import WORD, Garment, random_outfit, random_person

SIZE = 768, 576  # height and width, as photographs have


@pytest.fixture(scope="module")
def read() -> Reader:
    pytest.importorskip("rapidocr", reason="needs rapidocr: pip install -r requirements-metrics.txt")
    return load_reader()


@pytest.fixture(scope="module")
def outfit() -> tuple[Garment, Garment]:
    """A tee that says one thing, and a skirt that says another."""
    tee, skirt = random_outfit(np.random.default_rng(3), "upper")
    tee = replace(tee, kind="tee", neckline="crew", sleeve=0.3, length=0.2, period=0.15, symbol="SUMMER")
    skirt = replace(skirt, kind="skirt", length=0.5, flare=0.5, period=0.11, symbol="COAST")
    tee, skirt = (replace(each, texture=WORD, colours=((240, 200, 40), (20, 40, 120))) for each in (tee, skirt))
    return tee, skirt


def test_characters_are_found_in_their_order_and_in_any_case() -> None:
    assert found_again(["Kansas City", "Lee"], ["LEE", "kansas-city"]) == 1
    assert found_again(["SUMMER"], ["SUMER"]) == pytest.approx(5 / 6)
    assert found_again(["ab"], ["ba"]) == 0.5, "one of them comes before the other"
    assert found_again(["SUMMER"], ["coast"]) == pytest.approx(1 / 6), "an S"
    assert found_again(["Vans"], ["Lee", "Kansas City"]) == pytest.approx(3 / 13), "ans, among many"
    assert found_again(["love", "love"], ["love"]) == 0.5
    assert found_again(["SUMMER"], []) == 0


def test_a_true_try_on_shows_the_word_and_another_garment_does_not(
    read: Reader, outfit: tuple[Garment, Garment]
) -> None:
    printed = read(draw_garment(outfit[0], *SIZE).image, None)
    assert printed == ["SUMMER"]
    someone = replace(random_person(np.random.default_rng(4)), hair_style="short")
    worn = draw_person(someone, outfit, "front", *SIZE)
    tee, skirt = (torch.from_numpy(np.asarray(worn.masks[each]) > 0)[None] for each in ("upper", "lower"))
    assert found_again(printed, read(worn.image, tee)) == 1
    assert read(worn.image, skirt) == ["COAST"], "what is printed elsewhere is not in the mask"


def test_neither_mirrored_words_nor_plain_garments_are_text(read: Reader, outfit: tuple[Garment, Garment]) -> None:
    mirrored = ImageOps.mirror(draw_garment(outfit[0], *SIZE).image)
    assert found_again(["SUMMER"], read(mirrored, None)) < 0.5
    assert read(draw_garment(replace(outfit[0], texture="plain"), *SIZE).image, None) == []


def test_a_missing_engine_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("rapidocr", "onnxruntime"):
        with monkeypatch.context() as missing:
            missing.setitem(sys.modules, package, None)  # as if it were not installed
            with pytest.raises(ValueError, match=r"--text needs an engine .*: pip install -r requirements-metrics.txt"):
                load_reader()
