"""The prompt of a pair. Imports nothing heavy."""

from typing import Literal

from tryon.data.category import CATEGORIES, Category

# The prompt that CatVTON-Flux was trained with: the same for every pair.
FIXED_PROMPT = (
    "The pair of images highlights a clothing and its styling on a model, high resolution, 4K, 8K; "
    "[IMAGE1] Detailed product shot of a clothing"
    "[IMAGE2] The same cloth is worn by a model in a lifestyle setting."
)
# Our own, of a try-off. It always names the category: nothing else says which garment of the person is meant.
TRY_OFF_PROMPT = "[IMAGE1] Detailed product shot of the {garment} garment worn by the model in [IMAGE2]"
PromptKind = Literal["fixed", "category"]
GARMENTS = {"upper": "upper-body", "lower": "lower-body", "full": "full-body"}


def prompt_for(kind: PromptKind, category: Category) -> str:
    """The prompt of a pair: CatVTON-Flux's own for "fixed", one per garment category for "category"."""
    if kind == "fixed":
        return FIXED_PROMPT
    return f"[IMAGE1] {GARMENTS[category]} garment, product shot [IMAGE2] the same garment worn by a model"


def prompt_key(category: Category, try_off: bool) -> str:
    """What a LoRA's prompt for a category is called among its prompts for both tasks."""
    return f"{category}, taken off" if try_off else category


def prompts_of(kind: PromptKind, try_off_prompt: str | None) -> dict[str, str]:
    """All prompts of a LoRA by their keys. try_off_prompt: that of its try-offs, with {garment} for the category; None
    where it was not trained for them."""
    prompts = {prompt_key(category, False): prompt_for(kind, category) for category in CATEGORIES}
    if try_off_prompt:
        taken_off = {each: try_off_prompt.replace("{garment}", GARMENTS[each]) for each in CATEGORIES}
        prompts |= {prompt_key(category, True): prompt for category, prompt in taken_off.items()}
    return prompts
