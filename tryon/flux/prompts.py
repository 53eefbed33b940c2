"""The prompt of a pair. Imports nothing heavy."""

from typing import Literal

from tryon.data.category import Category

# The prompt that CatVTON-Flux was trained with: the same for every pair.
FIXED_PROMPT = (
    "The pair of images highlights a clothing and its styling on a model, high resolution, 4K, 8K; "
    "[IMAGE1] Detailed product shot of a clothing"
    "[IMAGE2] The same cloth is worn by a model in a lifestyle setting."
)
PromptKind = Literal["fixed", "category"]


def prompt_for(kind: PromptKind, category: Category) -> str:
    """The prompt of a pair: CatVTON-Flux's own for "fixed", one per garment category for "category"."""
    if kind == "fixed":
        return FIXED_PROMPT
    garment = {"upper": "upper-body", "lower": "lower-body", "full": "full-body"}[category]
    return f"[IMAGE1] {garment} garment, product shot [IMAGE2] the same garment worn by a model"
