"""The mask's layers: what a person painted and erased stays on top of what is computed."""

from pathlib import Path

import numpy as np
from PIL import Image

from tryon.app.mask_layers import (
    ERASED,
    PAINTED,
    UNTOUCHED,
    MaskLayers,
    alpha_of,
    alpha_of_paint,
    as_paint,
    drawn,
    flatten,
)

SHAPE = 4, 6
NOTHING = np.zeros(SHAPE, np.uint8)


def mask_of(rows: slice) -> np.ndarray:
    mask = NOTHING.copy()
    mask[rows] = 255
    return mask


def brush(alpha: np.ndarray, place: tuple) -> np.ndarray:
    """The editor's paint after a stroke there: alphas are blended as its brush blends them."""
    painted = alpha.copy()
    painted[place] = np.round(153 + 0.4 * painted[place])
    return painted


def test_strokes_hide_what_is_computed() -> None:
    strokes = np.full(SHAPE, UNTOUCHED, np.uint8)
    strokes[0, 0], strokes[3, 0] = PAINTED, ERASED
    for rows in (slice(2, 4), slice(0, 4), slice(0, 0)):
        mask, computed = flatten(mask_of(rows), strokes), mask_of(rows)
        assert mask[0, 0] == 255 and mask[3, 0] == 0
        mask[[0, 3], 0] = computed[[0, 3], 0]
        assert (mask == computed).all()


def test_what_is_drawn_is_told_from_what_was_given() -> None:
    """On the mask and beside it; half a pixel at an edge is no stroke; what is drawn last counts."""
    given = alpha_of_paint(mask_of(slice(2, 4)))
    seen = brush(brush(given, (0, 0)), (3, 1))  # one beside the mask, one on it
    seen[0, 2], seen[3, 2] = 0, 0  # erased beside it and on it
    seen[0, 3], seen[3, 3] = given[0, 3] + 70, given[3, 3] - 70  # edges
    strokes = drawn(NOTHING, [given], seen)
    assert (
        strokes[[0, 3], :4] == [[PAINTED, UNTOUCHED, ERASED, UNTOUCHED], [UNTOUCHED, PAINTED, ERASED, UNTOUCHED]]
    ).all()
    assert not strokes[1:3].any()
    assert (drawn(strokes, [seen], seen) == strokes).all()
    seen[0, 0] = 0
    assert drawn(strokes, [given], seen)[0, 0] == ERASED


def test_an_editor_that_still_shows_an_earlier_mask_is_understood() -> None:
    earlier, later = (alpha_of_paint(mask_of(rows)) for rows in (slice(2, 4), slice(1, 4)))
    seen = brush(earlier, (0, 0))
    for given in ([NOTHING, earlier, later], [later, earlier, NOTHING]):
        strokes = drawn(NOTHING, given, seen)
        assert strokes[0, 0] == PAINTED and np.count_nonzero(strokes) == 1
    assert not drawn(NOTHING, [NOTHING, earlier], NOTHING).any(), "one that shows nothing yet"


def test_what_the_page_gives_comes_back_as_it_was(tmp_path: Path) -> None:
    mask = mask_of(slice(2, 4))
    person = Image.new("RGB", SHAPE[::-1])
    layers = [Image.new("RGBA", person.size), as_paint(mask)]
    layers[0].putpixel((1, 1), (255, 0, 0, 255))
    seen = alpha_of({"background": person, "layers": layers, "composite": None})
    assert seen[1, 1] == 255, "of several layers all count"
    seen[1, 1] = alpha_of_paint(mask)[1, 1]
    assert (seen == alpha_of_paint(mask)).all()
    person.save(tmp_path / "person.png")
    assert not MaskLayers(str(tmp_path / "person.png")).mask.any()
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert (MaskLayers(str(tmp_path / "person.png"), str(tmp_path / "mask.png")).mask == mask).all()
