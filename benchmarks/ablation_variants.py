"""Recipes that benchmarks/toy_ablation.py compares. Imports nothing heavy."""

from dataclasses import dataclass
from typing import Any, Literal

from tryon.data.category import Category
from tryon.profiles import on_toy, quick_test

# What is scored: people in their own garments, in others, and in others that are shown worn by another person.
KINDS = ("paired", "unpaired", "worn")
# A flat picture; a cut-out of another view or of the same picture; another view, whole; another person, whole.
Reference = Literal["flat", "other view", "same picture", "worn", "worn by another"]


@dataclass(frozen=True)
class Variant:
    """A recipe. settings: of TrainConfig, where they differ. reference: what training's garment pictures are.
    worn_share: share of the pairs for which they are "worn" instead. mask: what is hidden, in training and when trying
    on; "varied": in training rectangles that vary, when trying on plain ones. categories: of the pairs trained on, in
    turn."""

    settings: dict[str, Any]
    reference: Reference = "flat"
    worn_share: float = 0.0
    mask: Literal["rectangle", "tight", "varied"] = "rectangle"
    categories: tuple[Category, ...] = ("lower", "full")


RECIPE = on_toy(quick_test())
# Upper-body garments are trained on too, and dressed with the LoRA: as many as others of each kind, or two of three.
WITH_TOPS = {"base_categories": "none"}
EQUAL: tuple[Category, ...] = ("upper", "lower", "full")
TOPS_DOMINATE: tuple[Category, ...] = ("upper", "lower", "upper", "upper", "full", "upper")

VARIANTS = {
    "recipe": Variant({}),
    "tops_equal": Variant(WITH_TOPS, categories=EQUAL),
    "tops_dominate": Variant(WITH_TOPS, categories=TOPS_DOMINATE),
    "rank_4": Variant({"lora_rank": 4}),
    "rank_64": Variant({"lora_rank": 64}),
    "rate_a_third": Variant({"learning_rate": RECIPE.learning_rate / 3}),
    "rate_threefold": Variant({"learning_rate": 3 * RECIPE.learning_rate}),
    "mask_tight": Variant({}, mask="tight"),
    "mask_varied": Variant({}, mask="varied"),
    "reference_other_view": Variant({}, reference="other view"),
    "reference_same_picture": Variant({}, reference="same picture"),
    "worn_reference_quarter": Variant({}, worn_share=0.25),
    "guidance_30": Variant({"guidance_scale": 30.0}),
    "noise_higher": Variant({"logit_mean": -1.5}),
    "noise_uniform": Variant({"weighting_scheme": "none"}),
    "noise_shifted": Variant({"weighting_scheme": "none", "timestep_shift": "resolution"}),
    "mask_weight_4": Variant({"mask_loss_weight": 4.0}),
    "teacher_equal": Variant(WITH_TOPS | {"teacher_weight": 0.5}, categories=EQUAL),
    "teacher_dominate": Variant(WITH_TOPS | {"teacher_weight": 0.5}, categories=TOPS_DOMINATE),
    "lora_attention": Variant({"lora_targets": "attention"}),
    "lora_attention_and_context": Variant({"lora_targets": "attention_and_context"}),
    "lora_double": Variant({"lora_blocks": "double"}),
    "lora_single": Variant({"lora_blocks": "single"}),
    "average": Variant({"ema_decay": 0.95}),
    "try_off_fifth": Variant({"try_off_share": 0.2}),
}
