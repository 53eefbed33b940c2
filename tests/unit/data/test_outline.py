"""How much of a mask's outline follows the picture."""

import numpy as np
import pytest
import torch
from PIL import Image

from tryon.data.masks import agnostic_mask
from tryon.data.outline import outline_on_edges
from tryon.toy.drawing import draw_person
from tryon.toy.examples import DrawnData
from tryon.toy.people import VIEW


def boxed(box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", (60, 80))
    mask.paste(255, box)
    return mask


def test_an_outline_follows_the_edges_that_it_lies_on() -> None:
    person = Image.new("RGB", (60, 80), (240, 240, 240))
    person.paste((20, 60, 120), (20, 20, 40, 60))
    assert outline_on_edges(person, boxed((20, 20, 40, 60))) == 1
    assert outline_on_edges(person, boxed((8, 8, 52, 72))) == 0
    # Two of four sides on the edge, of 40 of 120 and odd pixels.
    assert outline_on_edges(person, boxed((5, 20, 40, 60))) == pytest.approx(0.7, abs=0.15)
    assert outline_on_edges(person, boxed((0, 0, 60, 80))) is None


def test_a_garments_own_outline_tells_more_than_its_rectangle() -> None:
    data = DrawnData(6, 4, ("lower", "full"), 192, 144)
    for index in range(len(data)):
        example, category = data.example(index), data.category(index)
        drawing = draw_person(example.person, example.outfit, VIEW, 192, 144)
        worn = drawing.masks[category]
        hidden = agnostic_mask(torch.from_numpy(np.asarray(worn) > 0)[None], category)[0].numpy()
        rectangle = Image.fromarray(hidden.astype(np.uint8) * 255)
        assert outline_on_edges(drawing.image, worn) > 0.9
        assert outline_on_edges(drawing.image, rectangle) < 0.5
