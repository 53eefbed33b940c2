"""The agnostic mask."""

import pytest
import torch

from tryon.masks import agnostic_mask


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


def test_an_empty_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        agnostic_mask(torch.zeros(1, 8, 8, dtype=torch.bool), "upper")
