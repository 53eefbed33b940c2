"""Whether the words on a garment are found again in a try-on of it, as an OCR engine reads them.

The engine, rapidocr, is one of the packages of requirements-metrics.txt; its weights come with it.
"""

from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

import numpy as np
from PIL import Image
from torch import Tensor

# The lines of text in a picture whose middle lies in a mask, [1, H, W] of 0 and 1, or all without one.
Reader = Callable[[Image.Image, Tensor | None], list[str]]

# Of a line: how sure the engine is of it, and its characters. What has less is most often a pattern, a hem or a symbol.
LEAST_SURE, LEAST_LETTERS = 0.8, 2


def load_reader() -> Reader:
    """Raises ValueError where the engine is not installed."""
    try:
        import onnxruntime  # noqa: F401 (rapidocr misses it only once it reads)
        from rapidocr import RapidOCR
    except ImportError as error:
        raise ValueError(
            f"--text needs an engine that reads ({error}): pip install -r requirements-metrics.txt, or leave it out"
        ) from error
    # Without its classifier of upside-down lines: such a line is not what is printed.
    engine = RapidOCR(params={"Global.use_cls": False, "Global.text_score": LEAST_SURE, "Global.log_level": "error"})

    def read(picture: Image.Image, mask: Tensor | None) -> list[str]:
        found = engine(picture)
        if found.txts is None:
            return []
        middles = np.mean(found.boxes, axis=1).astype(int)
        shown = [mask is None or bool(mask[0, row, column]) for column, row in middles]
        lines = [text for text, inside in zip(found.txts, shown, strict=True) if inside]
        return [text for text in lines if len(_letters(text)) >= LEAST_LETTERS]

    return read


def found_again(printed: Sequence[str], read: Sequence[str]) -> float:
    """The share, 0 to 1, of the characters of a garment's lines that are read in a result: of each line those that
    come in the same order, wherever the line stands, in any case. Only letters and digits count; there has to be one.
    """
    result, lines = _letters("".join(read)), [_letters(line) for line in printed]
    matches = (SequenceMatcher(None, line, result, autojunk=False).get_matching_blocks() for line in lines)
    return sum(block.size for blocks in matches for block in blocks) / sum(map(len, lines))


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))
