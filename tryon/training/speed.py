"""How much arithmetic a training step is, and how fast steps of its kind were on this machine."""

import json
import re
from pathlib import Path
from typing import Any

import torch

from tryon.config import TrainConfig
from tryon.files import replace_json
from tryon.flux.packing import count_tokens

SPEEDS = "speeds.json"  # in the data cache
ATTENTION_BACKWARD = 2.5  # times the forward pass: it recomputes the scores, https://arxiv.org/abs/2205.14135
# GB of memory that a GPU is sold with, and TFLOP/s of dense bfloat16 with float32 accumulation, by its data sheet.
GPUS = {
    "RTX 4070 Ti": (12, 80), "RTX 4080": (16, 97), "RTX 3090": (24, 71), "RTX 4090": (24, 165), "RTX 5090": (32, 209),
    "L40S": (48, 362), "A100": (80, 312), "H100 PCIe": (80, 756), "H100": (80, 989), "H100 NVL": (94, 835),
    "H200": (141, 989),
}  # fmt: skip
# Shares of it, compiled and not: what `python -m benchmarks.train_step --size full --variants none,compile` reached on
# an H200 (2026-11-27 and 2026-11-26; bf16 weights, nothing recomputed), and the least and the most that are expected
# elsewhere.
MEASURED_SHARE = {True: 0.45, False: 0.32}
SHARE_OF_PEAK = {True: (0.35, 0.45), False: (0.25, 0.35)}
# What two runs must share for the one's speed to be the other's.
SAME_SPEED = (
    "toy", "height", "width", "max_sequence_length", "mixed_precision", "num_processes", "train_batch_size",
    "gradient_accumulation_steps", "gradient_checkpointing", "quantization", "offload", "compile", "optimizer",
    "lora_rank", "teacher_weight",
)  # fmt: skip


def step_flops(config: TrainConfig, transformer_config: dict[str, Any], every: int | None) -> float:
    """Floating-point operations of one sample's step in the transformer's blocks, where a multiplication and an
    addition are two; everything else, the LoRA included, is a few percent more.

    Each block has 12 D^2 weights for every token (attention 4 D^2, feed-forward 8 D^2; a single block the same), and
    4 N^2 D operations of attention over N tokens. Weights that are frozen need no gradients, so the linear layers'
    backward pass is as much as their forward pass. A teacher is one more forward pass, counted for every sample as
    categories are not known. every: as in training_memory.
    """
    width = transformer_config["num_attention_heads"] * transformer_config["attention_head_dim"]
    blocks = transformer_config["num_layers"] + transformer_config["num_single_layers"]
    tokens = count_tokens(config.height, config.width) + config.max_sequence_length
    linear, attention = blocks * 24.0 * width**2 * tokens, blocks * 4.0 * width * tokens**2
    recomputed = len(range(blocks)[::every]) / blocks if every else 0.0
    forward, backward = linear + attention, linear + ATTENTION_BACKWARD * attention
    taught = forward if config.teacher_weight else 0.0
    return forward + backward + recomputed * forward + taught


def device_name(device: torch.device) -> str:
    """The GPU's name, or "CPU"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def peak_of(name: str) -> float | None:
    """Operations per second in bfloat16 that the data sheet promises of a GPU with this full name; None where it is not
    known. A variant, such as SUPER or Laptop, has another speed and is not known by its plain name."""
    variant = r"(?! (?:Ti|SUPER|Laptop|PCIe|NVL|D)\b)"
    return next((1e12 * peak for kind, (_, peak) in GPUS.items() if re.search(rf"\b{kind}\b{variant}", name)), None)


def peaks_of(gpu: torch.device | float) -> dict[str, float]:
    """{name: peak in operations per second} of the device, or of the GPUs that are sold with this many GB. If none is
    known a GPU of 100 TFLOP/s is assumed."""
    if isinstance(gpu, torch.device):
        known = {name: peak} if (peak := peak_of(name := device_name(gpu))) else {}
    else:
        known = {kind: 1e12 * peak for kind, (memory, peak) in GPUS.items() if memory == gpu}
    return known or {"a GPU of 100 TFLOP/s in bf16": 1e14}


def estimated_hours(flops: float, peak: float, compiled: bool) -> tuple[float, float]:
    """The least and the most hours that this many operations are likely to take on a GPU with this peak, in operations
    per second."""
    least, most = SHARE_OF_PEAK[compiled]
    return flops / (most * peak) / 3600, flops / (least * peak) / 3600


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
