"""How much arithmetic a training step is, and how fast steps of its kind were on this machine."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tryon.config import TrainConfig, replace_json
from tryon.geometry import count_tokens

SPEEDS = "speeds.json"  # in the data cache
ATTENTION_BACKWARD = 2.5  # times the forward pass: it recomputes the scores, https://arxiv.org/abs/2205.14135
# Dense bfloat16 with float32 accumulation, TFLOP/s, by the makers' data sheets.
PEAK_TFLOPS = {
    "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "A100": 312, "L40S": 362, "RTX 4090": 165,
    "RTX 3090": 71,
}  # fmt: skip
# What two runs must share for the one's speed to be the other's.
SAME_SPEED = (
    "toy", "height", "width", "max_sequence_length", "mixed_precision", "num_processes", "train_batch_size",
    "gradient_accumulation_steps", "gradient_checkpointing", "quantization", "offload", "compile", "optimizer",
    "lora_rank",
)  # fmt: skip


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one sample's step; a multiplication and an addition are two."""

    forward: float
    backward: float
    recomputed: float

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.recomputed


def step_flops(config: TrainConfig, transformer_config: dict[str, Any], every: int | None) -> Flops:
    """Of the transformer's blocks; all else, the LoRA with it, is a few percent.

    Each block has 12 D^2 weights for every token (attention 4 D^2, feed-forward 8 D^2; a single block the same), and
    4 N^2 D operations of attention over N tokens. Weights that are frozen need no gradients, so the linear layers'
    backward pass is as much as their forward pass. every: as in training_memory.
    """
    width = transformer_config["num_attention_heads"] * transformer_config["attention_head_dim"]
    blocks = transformer_config["num_layers"] + transformer_config["num_single_layers"]
    tokens = count_tokens(config.height, config.width) + config.max_sequence_length
    linear, attention = blocks * 24.0 * width**2 * tokens, blocks * 4.0 * width * tokens**2
    recomputed = len(range(blocks)[::every]) / blocks if every else 0.0
    return Flops(
        forward=linear + attention,
        backward=linear + ATTENTION_BACKWARD * attention,
        recomputed=recomputed * (linear + attention),
    )


def device_name(device: torch.device) -> str:
    """The GPU's name, or "CPU"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def peak_flops(device: torch.device) -> float | None:
    """Operations per second that the data sheet promises of the device's bfloat16; None where it is not known."""
    name = device_name(device)
    return next((1e12 * peak for kind, peak in PEAK_TFLOPS.items() if re.search(rf"\b{kind}\b", name)), None)


def remember_speed(config: TrainConfig, device: torch.device, seconds: float) -> None:
    """Keeps seconds per optimiser step for later plans. config: with quantization resolved."""
    file = Path(config.data_cache_dir) / SPEEDS
    speeds = json.loads(file.read_text()) if file.is_file() else {}
    replace_json(file, {**speeds, kind_of_step(config, device): round(seconds, 4)})


def remembered_speed(config: TrainConfig, device: torch.device) -> float | None:
    """Seconds per optimiser step that a run of this kind took on such a device; None where there was none."""
    file = Path(config.data_cache_dir) / SPEEDS
    return json.loads(file.read_text()).get(kind_of_step(config, device)) if file.is_file() else None


def kind_of_step(config: TrainConfig, device: torch.device) -> str:
    """Names the device and all of the configuration that decides how long a step takes."""
    return ", ".join([device_name(device), *(f"{name} {getattr(config, name)}" for name in SAME_SPEED)])
