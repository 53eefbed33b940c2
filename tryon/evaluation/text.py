"""Whether the words on a garment are found again in a try-on of it, as an OCR engine reads them.

The engine, rapidocr, is one of the packages of requirements-metrics.txt; its weights come with it.
"""

from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

import numpy as np
import torch
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
    engine = RapidOCR(
        params={
            "Global.use_cls": False,  # lines upside down are not turned: they are not what is printed
            "Global.text_score": LEAST_SURE,
            "Global.log_level": "error",
            "EngineConfig.onnxruntime.intra_op_num_threads": torch.get_num_threads(),
        }
    )

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
    """The share, 0 to 1, of the letters and digits of a garment's lines that are read in a result in the same order,
    in any case; of the result's letters where these are more, so that a long text does not hold every short one. Which
    line comes first does not matter. printed: at least one letter."""
    lines, result = [_letters(line) for line in printed], _letters("".join(read))
    matches = (SequenceMatcher(None, line, result, autojunk=False).get_matching_blocks() for line in lines)
    found = sum(block.size for blocks in matches for block in blocks)
    return min(found, len(result)) / max(len(result), sum(map(len, lines)))


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))
