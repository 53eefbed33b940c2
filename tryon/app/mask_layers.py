"""The mask on the page as two layers: what was computed, and on top of it what the person painted and erased.

A slider changes the computed layer only. The editor has one layer of paint for both: what a person drew is where its
alpha differs from that of the paint that the editor was given.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor
from PIL.Image import Resampling

from tryon.app.pictures import Editor
from tryon.data.category import Category, MaskRule

MASK_COLOUR, MASK_OPACITY = "#ff2d9b", 0.6  # the picture still shows through the paint
PAINT = round(255 * MASK_OPACITY)  # alpha of the mask
VEIL = 4  # alpha elsewhere: too little to be seen, but its absence shows where the eraser was
UNTOUCHED, ERASED, PAINTED = 0, 128, 255  # the values of strokes


@dataclass(frozen=True)
class MaskSource:
    """What a mask was computed from. worn: paint over what the person wears, a file; None: the parser finds it."""

    worn: str | None
    category: Category
    rule: MaskRule


@dataclass(frozen=True)
class MaskLayers:
    """A mask, and the person that it is for. Pictures are files, the masks "L" of the person's size.

    computed: 255 = repaint; None: nothing. strokes: UNTOUCHED, ERASED or PAINTED; None: nothing was drawn. source: of
    the computed layer; None where it cannot be computed again.
    """

    person: str
    computed: str | None = None
    strokes: str | None = None
    source: MaskSource | None = None

    def read(self, layer: str | None) -> np.ndarray:
        """The values of its layer, uint8 [height, width]; zeros where there is none."""
        with Image.open(layer or self.person) as picture:
            return np.asarray(picture) if layer else np.zeros(picture.size[::-1], np.uint8)

    @property
    def mask(self) -> np.ndarray:
        """Both layers as one mask of 0 and 255, uint8 [height, width]."""
        return flatten(self.read(self.computed), self.read(self.strokes))


def flatten(computed: np.ndarray, strokes: np.ndarray) -> np.ndarray:
    """The mask of both layers, 0 and 255: strokes hide what was computed."""
    return np.where(strokes == PAINTED, 255, np.where(strokes == ERASED, 0, computed))


def alpha_of(editor: Editor) -> np.ndarray:
    """The alpha of the editor's paint, uint8 [height, width] at the size of its picture; the most of its layers."""
    size = editor["background"].size
    layers = [layer.getchannel("A").resize(size, Resampling.NEAREST) for layer in editor["layers"]]
    return np.max([np.zeros(size[::-1], np.uint8), *map(np.asarray, layers)], axis=0)


def alpha_of_paint(mask: np.ndarray) -> np.ndarray:
    """The alpha of the paint that the page gives the editor for a mask of 0 and 255, uint8."""
    return np.where(mask > 0, PAINT, VEIL).astype(np.uint8)


def as_paint(mask: np.ndarray) -> Image.Image:
    """A mask of 0 and 255 as a layer of the editor, which can be painted over and erased."""
    layer = Image.new("RGBA", mask.shape[::-1], ImageColor.getrgb(MASK_COLOUR))
    layer.putalpha(Image.fromarray(alpha_of_paint(mask)))
    return layer


def drawn(strokes: np.ndarray, given: Sequence[np.ndarray], seen: np.ndarray) -> np.ndarray:
    """The strokes with those that were drawn since: where brush or eraser covered more than half of a pixel.

    seen: alpha of the editor's paint. given: alphas of the paint that the editor got lately. It may have been asked
    before it showed the last one, so what was drawn is the difference to the one that `seen` differs least from.
    """
    before = min(given, key=lambda alpha: np.count_nonzero(alpha != seen)).astype(np.float32)
    brush = MASK_OPACITY * (255 - before)  # what it adds where it covers all of a pixel
    return np.where(seen - before > brush / 2, PAINTED, np.where(seen < before / 2, ERASED, strokes))
