"""What fits on the GPU, known before anything large is downloaded, encoded or loaded."""

from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from tqdm import tqdm

from tryon.config import TrainConfig
from tryon.lora import add_lora


def check_training_fits(config: TrainConfig, transformer_config: dict[str, Any], device: torch.device) -> None:
    """Raises ValueError where weights, LoRA, gradients and optimiser alone need more than the GPU has free."""
    frozen, trained = count_parameters(transformer_config, config.lora_rank)
    need = training_bytes(frozen, trained, config.mixed_precision, config.optimizer)
    check_gpu_memory(
        f"training at rank {config.lora_rank} with {config.optimizer}",
        need,
        "use a GPU with more, a smaller --lora_rank, or --optimizer adamw8bit",
        device,
    )


def check_inference_fits(transformer_config: dict[str, Any], dtype: torch.dtype, device: torch.device) -> None:
    """Raises ValueError where the transformer's weights alone need more than the GPU has free."""
    frozen, _ = count_parameters(transformer_config, rank=1)
    check_gpu_memory("try-on", frozen * dtype.itemsize, "use a GPU with more", device)


def count_parameters(transformer_config: dict[str, Any], rank: int) -> tuple[int, int]:
    """Parameters of the frozen transformer and of a LoRA of this rank, counted without allocating any."""
    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(transformer_config).requires_grad_(False)
        frozen = sum(parameter.numel() for parameter in transformer.parameters())
        trained = add_lora(transformer, rank, rank, seed=0)
    return frozen, sum(parameter.numel() for parameter in trained)


def training_bytes(frozen: int, trained: int, precision: str, optimizer: str) -> int:
    """A lower bound, activations aside: frozen weights in 2 or 4 bytes; float32 LoRA weights and gradients; two moments
    in 4 bytes each, or in 1."""
    moments = 2 * (1 if optimizer == "adamw8bit" else 4)
    return frozen * (2 if precision == "bf16" else 4) + trained * (4 + 4 + moments)


def check_gpu_memory(what: str, need: int, what_helps: str, device: torch.device) -> None:
    """Raises ValueError where a CUDA device has less than `need` bytes free."""
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if need > free:
        in_words = [tqdm.format_sizeof(amount, "B") for amount in (need, free)]
        raise ValueError(
            f"{what} needs at least {in_words[0]} of GPU memory and this GPU has {in_words[1]} free: {what_helps}"
        )
