"""What steps and try-ons are timed with, of the toy's or the full size: the models, random pictures and a prompt."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel

from tryon.config import TrainConfig
from tryon.data.sample import PromptEmbedding, TryOnSample
from tryon.flux.load import FILL_CONFIG, load_transformer, load_vae
from tryon.profiles import full, on_toy, quick_test
from tryon.toy.model import toy_model
from tryon.training.check_blocks import random_transformer

VAE_CONFIG = {  # FLUX.1-dev's
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
CPU = torch.device("cpu")


def train_config(size: Literal["toy", "full"], batch: int | None, rank: int | None) -> TrainConfig:
    """The profile whose step is timed, nothing recomputed, quantised or compiled. batch: samples per step; the quick
    test's on the toy, else 1, if None. rank: of the LoRA; the profile's if None."""
    profile = on_toy(quick_test()) if size == "toy" else full()
    batch = batch or (profile.train_batch_size if size == "toy" else 1)
    rank = rank or profile.lora_rank
    return replace(
        profile, train_batch_size=batch, gradient_accumulation_steps=1, lora_rank=rank, lora_alpha=rank,
        gradient_checkpointing="none", quantization="none", compile=False,
    )  # fmt: skip


def make_transformer(config: TrainConfig, device: torch.device = CPU) -> FluxTransformer2DModel:
    """The transformer, frozen, in the device's memory: the toy's, or the full size with seeded random weights."""
    if config.toy:
        return load_transformer(toy_model(Path(config.data_cache_dir)).transformer, torch.float32).to(device)
    return random_transformer(FILL_CONFIG, torch.bfloat16, device)


def make_vae(config: TrainConfig, device: torch.device) -> AutoencoderKL:
    """The toy's VAE, or FLUX's with torch's own first weights, seeded."""
    if config.toy:
        return load_vae(toy_model(Path(config.data_cache_dir)).base, torch.float32, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL.from_config(VAE_CONFIG)
    return vae.requires_grad_(False).eval().to(device, torch.bfloat16)


def make_samples(config: TrainConfig) -> list[TryOnSample]:
    """A batch of random pictures, the person's lower half hidden."""
    generator, size = torch.Generator().manual_seed(0), (3, config.height, config.width)
    mask = torch.zeros(1, *size[1:])
    mask[:, config.height // 2 :] = 1

    def picture() -> torch.Tensor:
        return torch.rand(size, generator=generator) * 2 - 1

    return [TryOnSample(str(i), picture(), picture(), mask, "upper") for i in range(config.train_batch_size)]


def make_prompt(config: TrainConfig, transformer_config: dict[str, Any], dtype: torch.dtype) -> PromptEmbedding:
    generator = torch.Generator().manual_seed(1)
    widths = transformer_config["joint_attention_dim"], transformer_config["pooled_projection_dim"]
    return PromptEmbedding(
        torch.randn(config.max_sequence_length, widths[0], generator=generator).to(dtype),
        torch.randn(widths[1], generator=generator).to(dtype),
    )
