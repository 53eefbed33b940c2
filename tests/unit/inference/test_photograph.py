"""From the panel back into the photograph: nothing is distorted, nothing outside the mask changes."""

import numpy as np
import pytest
import torch
from PIL import Image

from tryon.data.masks import PARTS
from tryon.data.sample import fit_picture, to_picture
from tryon.inference.photograph import given_back, put_back, window_of


def masked(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


@pytest.mark.parametrize("size", [(517, 803), (64, 96), (300, 300), (90, 410)])
def test_portraits_are_shown_whole_as_in_training(size: tuple[int, int]) -> None:
    assert window_of(masked(size, (20, 30, 50, 60)), 96, 64) == (0, 0, *size)


def test_landscapes_are_cut_to_the_panels_shape_around_the_mask() -> None:
    assert window_of(masked((900, 300), (600, 100, 700, 300)), 96, 64) == (550, 0, 750, 300)
    assert window_of(masked((900, 300), (0, 100, 40, 300)), 96, 64) == (0, 0, 200, 300)
    assert window_of(masked((900, 300), (880, 100, 900, 300)), 96, 64) == (700, 0, 900, 300)
    assert window_of(masked((900, 300), (100, 100, 500, 300)), 96, 64) == (0, 0, 900, 300), "the mask is wider"
    assert window_of(masked((330, 300), (100, 100, 200, 300)), 64, 96) == (0, 0, 330, 300), "the panel is wider still"


@pytest.mark.parametrize("size", [(517, 803), (803, 517), (64, 96), (61, 333)])
def test_what_is_painted_comes_back_to_its_place(size: tuple[int, int]) -> None:
    """A picture that the model returns as it is comes back as it was, blurred by the panel's few pixels."""
    rows, columns = np.mgrid[: size[1], : size[0]]
    slopes = [255 * columns / size[0], 255 * rows / size[1], 255 - 255 * rows / size[1]]
    person = Image.fromarray(np.stack(slopes, -1).astype(np.uint8))
    mask = masked(size, (size[0] // 4, size[1] // 4, size[0] // 2, size[1] - 10))
    window = window_of(mask, 96, 64)
    panel = to_picture(fit_picture(person.crop(window), 96, 64))
    back = np.asarray(put_back(person, mask, panel, window)).astype(int)
    assert np.abs(back - np.asarray(person)).max() <= 255 * 1.5 / 48  # a pixel and a half of the panel


def test_the_seam_lies_inside_the_mask_and_only_there() -> None:
    black, mask = Image.new("RGB", (400, 500)), masked((400, 500), (100, 200, 300, 500))
    restored = np.asarray(put_back(black, mask, Image.new("RGB", (64, 96), "white"), (0, 0, 400, 500)))[..., 0]
    inside = np.asarray(mask) > 0
    assert not restored[~inside].any()
    assert restored[inside].min() > 0, "the whole mask is repainted"
    assert restored[300, 100] < 100 < 250 < restored[300, 110], "it fades in over four pixels"
    assert (restored[499, 110:290] == 255).all(), "the picture's own edge is no seam"
    everything = masked((400, 500), (0, 0, 400, 500))
    white = put_back(black, everything, Image.new("RGB", (64, 96), "white"), (0, 0, 400, 500))
    assert (torch.from_numpy(np.array(white)) == 255).all()


def test_what_the_mask_hid_for_nothing_comes_back(caplog: pytest.LogCaptureFixture) -> None:
    person, result = Image.new("RGB", (60, 100), "red"), Image.new("RGB", (60, 100), "blue")
    mask, labels = masked((60, 100), (5, 20, 55, 90)), torch.zeros(100, 60, dtype=torch.long)
    assert given_back(person, result, mask, "lower", labels, labels) is result
    assert "the parser sees no lower-body garment in the result: nothing is given back" in caplog.text
    labels[40:60, 20:40] = PARTS.index("lower")
    back = np.asarray(given_back(person, result, mask, "lower", torch.zeros_like(labels), labels))
    assert (back[40:60, 20:40] == (0, 0, 255)).all()
    assert (back[np.asarray(masked((60, 100), (18, 38, 42, 62))) == 0] == (255, 0, 0)).all()
