"""Ways to take a training step: ours, in variants, and those of other trainers. Imports nothing heavy."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """A way to take our step. settings: what differs from train_config. memory: GB of the GPU that it may use."""

    settings: dict[str, Any] = field(default_factory=dict)
    memory: float | None = None


@dataclass(frozen=True)
class Reference:
    """A way in which others take the step. encodes: the VAE encodes in every step. recomputes: every block does.
    one_by_one: clipping and AdamW take one parameter after the other."""

    encodes: bool
    recomputes: bool
    one_by_one: bool


REFERENCES = {
    "reference_script": Reference(encodes=True, recomputes=True, one_by_one=True),
    "reference_cached": Reference(encodes=False, recomputes=True, one_by_one=False),
    "reference_cached_none": Reference(encodes=False, recomputes=False, one_by_one=False),
}
H100 = {"lora_rank": 128, "lora_alpha": 128, "compile": True}  # the profile's 8 samples per step, in three ways
VARIANTS = {
    "none": Variant(),
    "every_4": Variant({"gradient_checkpointing": "4"}),
    "every_2": Variant({"gradient_checkpointing": "2"}),
    "full": Variant({"gradient_checkpointing": "full"}),
    "auto": Variant({"gradient_checkpointing": "auto"}),
    "compile": Variant({"compile": True}),
    "compile_full": Variant({"compile": True, "gradient_checkpointing": "full"}),
    "fp8": Variant({"quantization": "fp8"}),
    "int8": Variant({"quantization": "int8"}),
    "nf4": Variant({"quantization": "nf4"}),
    "fp8_full": Variant({"quantization": "fp8", "gradient_checkpointing": "full"}),
    "nf4_full": Variant({"quantization": "nf4", "gradient_checkpointing": "full"}),
    "nf4_auto": Variant({"quantization": "nf4", "gradient_checkpointing": "auto"}),
    "nf4_compile_full": Variant({"quantization": "nf4", "gradient_checkpointing": "full", "compile": True}),
    "nf4_offload": Variant({"quantization": "nf4", "gradient_checkpointing": "full", "offload": True}),
    "adamw8bit": Variant({"optimizer": "adamw8bit"}),
    "h100_1x8": Variant({**H100, "train_batch_size": 1, "gradient_accumulation_steps": 8}, memory=76),
    "h100_2x4": Variant({**H100, "train_batch_size": 2, "gradient_accumulation_steps": 4}, memory=76),
    "h100_4x2": Variant(
        {**H100, "train_batch_size": 4, "gradient_accumulation_steps": 2, "gradient_checkpointing": "2"}, memory=76
    ),
    "full_24gb": Variant({"quantization": "nf4", "gradient_checkpointing": "auto", "compile": True}, memory=24),
    "full_24gb_every_2": Variant({"quantization": "nf4", "gradient_checkpointing": "2", "compile": True}, memory=24),
    "full_16gb": Variant({"quantization": "nf4", "gradient_checkpointing": "full", "compile": True}, memory=16),
    "full_12gb": Variant({"quantization": "nf4", "gradient_checkpointing": "full", "offload": True}, memory=12),
}
