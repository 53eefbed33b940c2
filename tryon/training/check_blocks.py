"""What the checks of a machine share: the row that each gives, and the blocks that are run.

The blocks are FLUX-Fill's own, at the run's width, panels, text length, batch and rank, but few of them and with seeded
random weights: nothing is downloaded.
"""

import copy
import gc
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from tryon.config import TrainConfig
from tryon.data.sample import FillBatch
from tryon.flux.packing import count_tokens, image_ids, text_ids
from tryon.flux.placement import prepare_transformer
from tryon.training.step import batch_loss

DEPTH = 2, 3  # double and single blocks
LORA_STRENGTH = 0.02  # standard deviation of the LoRA's B
RANDOM_NUMBERS = 2**24 - 3  # a prime, so that layers which begin at the same one are rare


@dataclass(frozen=True)
class Row:
    """One line of the table. right: None where something is only told. needed: whether the run depends on it."""

    what: str
    found: str
    allowed: str = ""
    right: bool | None = None
    needed: bool = True


def random_transformer(
    transformer_config: dict[str, Any], dtype: torch.dtype, device: torch.device
) -> FluxTransformer2DModel:
    """A frozen transformer whose weights are random but the same every time, on every machine and device.

    A layer's weights are normal and keep the size of its input; biases are 0, weights of normalisations 1. Drawing
    twelve billion numbers on a CPU would take minutes: a few million are used again and again, from another one on.
    """
    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(transformer_config).to(dtype)
    transformer = transformer.to_empty(device=device).requires_grad_(False)
    numbers = torch.randn(RANDOM_NUMBERS, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    used = 0
    for name, parameter in transformer.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            continue
        flat, filled = parameter.view(-1), 0
        while filled < len(flat):
            drawn = numbers[used % len(numbers) :][: len(flat) - filled]
            torch.mul(drawn, parameter.shape[1] ** -0.5, out=flat[filled : filled + len(drawn)])
            filled, used = filled + len(drawn), used + len(drawn)
    return transformer


def random_batch(
    config: TrainConfig, transformer_config: dict[str, Any], dtype: torch.dtype, device: torch.device
) -> FillBatch:
    """A seeded micro-batch on the device."""
    generator = torch.Generator().manual_seed(1)
    size, text = config.train_batch_size, config.max_sequence_length
    image = count_tokens(config.height, config.width)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(size, *shape, generator=generator).to(device, dtype)

    return FillBatch(
        x0=numbers(image, 64),
        cond=numbers(image, transformer_config["in_channels"] - 64),
        prompt=numbers(text, transformer_config["joint_attention_dim"]),
        pooled=numbers(transformer_config["pooled_projection_dim"]),
        img_ids=image_ids(config.height // 8, 2 * config.width // 8).to(device),
        txt_ids=text_ids(text).to(device),
        categories=("upper",) * size,
        try_off=(False,) * size,
    )


def seeded_loss(transformer: FluxTransformer2DModel, config: TrainConfig, batch: FillBatch) -> Tensor:
    """The run's own loss, with noise that is the same every time."""
    device = batch.x0.device
    noise = torch.randn(batch.x0.shape, generator=torch.Generator().manual_seed(2)).to(device)
    sigma = torch.linspace(0.3, 0.9, len(batch.x0)).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.mixed_precision == "bf16"):
        return batch_loss(config, transformer, batch, sigma, noise)


def prepared(
    base: FluxTransformer2DModel, config: TrainConfig, device: torch.device
) -> tuple[FluxTransformer2DModel, list[nn.Parameter]]:
    """A copy of the blocks as training gets them, with a LoRA that does something; and what is trained."""
    collect(device)
    transformer = copy.deepcopy(base)
    parameters = prepare_transformer(transformer, config, device, None)
    strengthen_lora(transformer)
    return transformer.train(), parameters


def strengthen_lora(transformer: FluxTransformer2DModel) -> None:
    """Gives a fresh LoRA, whose B is 0, a seeded one: half of its gradients would be 0 otherwise."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "lora_B" in name:
                parameter.copy_(LORA_STRENGTH * torch.randn(parameter.shape, generator=generator))


def collect(device: torch.device) -> None:
    """Gives back the memory of earlier blocks: compiled and offloaded ones are cycles of references."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
