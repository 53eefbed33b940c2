"""Masks that are hardly meant are doubted, and those of the mask rules are not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from tryon.data.category import CATEGORIES, MaskRule
from tryon.data.human_parser import Parser, labels_at_hand, parse
from tryon.data.mask_doubts import doubts_about_mask
from tryon.data.masks import PARTS, mask_picture
from tryon.data.sample import to_picture
from tryon.inference.dressing import part_finder
from tryon.toy.examples import DrawnData
from tryon.toy.model import toy_parser

HEAD = "of face and hair above the clothes, as the parser sees them: they are repainted too"
LEFT_OVER = (
    "of the lower-body garment that is worn, as the parser sees it, lies outside the mask and will still be seen"
)


def doubts(mask: torch.Tensor, labels: torch.Tensor | None, category: str | None) -> list[str]:
    return [*doubts_about_mask(mask_picture(mask), labels, category)]


def test_masks_that_are_hardly_meant_are_doubted_and_others_are_not(drawn_parser: Parser) -> None:
    whole = torch.ones(1, 120, 90, dtype=torch.bool)
    (said,) = doubts(whole, None, None)
    assert said.startswith("the mask is white over 100% of the picture")
    whole[:, :8] = False
    (said,) = doubts(whole, None, None)
    assert said.startswith("the mask is white over 93% of the picture: all of that is repainted")
    labels = {}
    for rule in ("rectangle", "parsing"):
        data = DrawnData(12, 0, CATEGORIES, 192, 144, mask_rule=MaskRule(rule))
        for index, sample in enumerate(map(data.__getitem__, range(len(data)))):
            labels.setdefault(index, parse(drawn_parser, to_picture(sample.person)))
            mask, known = sample.mask.bool(), (labels[index], sample.category)
            assert doubts(mask, *known) == doubts(mask, None, None) == []
            inverted = ImageOps.invert(mask_picture(mask))
            (said,) = doubts_about_mask(inverted, *known)
            assert said.startswith(f"the mask is white over {1 - mask.float().mean():.0%} of the picture")
            assert "inverted" in said
            (said,) = doubts((labels[index] > 0)[None], *known)
            assert said == f"the mask is white over 100% {HEAD}", "the whole figure"


def test_the_head_and_the_old_garment_are_measured_by_the_labels() -> None:
    """Hair that falls on the clothes belongs under a mask, and outlines are not exact."""
    labels = torch.zeros(200, 100, dtype=torch.long)
    labels[50:120, 30:70], labels[120:180, 30:70] = PARTS.index("upper"), PARTS.index("lower")
    labels[10:50, 40:60] = labels[50:110, 30:40] = PARTS.index("head")
    top = torch.zeros(1, 200, 100, dtype=torch.bool)
    top[:, 40:120, 20:80] = True
    assert doubts(top, labels, "upper") == [], "long hair and a chin"
    assert doubts(top, labels, "lower") == [f"100% {LEFT_OVER}"]
    assert doubts(top, labels, None) == doubts(top, labels * (labels != PARTS.index("lower")), "lower") == []
    legs = torch.zeros(1, 200, 100, dtype=torch.bool)
    legs[:, 127:, 33:67] = True
    assert doubts(legs, labels, "lower") == [f"12% {LEFT_OVER}"], "a waistband, not the slivers at the sides"
    top[:, 14:40, 20:80] = True
    assert doubts(top, labels, "upper") == [f"the mask is white over 90% {HEAD}"]


def test_a_given_mask_needs_no_parser_and_no_second_pass(
    data_cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> torch.Tensor:
        raise ValueError("no SegFormer")

    assert labels_at_hand(refuse, "some/parser", str(tmp_path)) is None and not caplog.text, "it is not on the disk"
    assert labels_at_hand(refuse, str(tmp_path), None) is None
    assert caplog.messages == ["the mask is not compared with the person: no SegFormer"]
    find_parts = part_finder(str(toy_parser(data_cache)), None, at_once=True)
    person = Image.fromarray(np.full((96, 64, 3), 200, np.uint8))
    assert find_parts(person) is find_parts(person)
    assert torch.equal(find_parts(person.copy()), find_parts(person))
