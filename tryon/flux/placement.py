"""The transformer made ready for training: its LoRA, how its frozen weights are kept, what is recomputed, compiled."""

import logging
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from tryon.config import Quantization, TrainConfig
from tryon.flux.attention import choose_attention
from tryon.flux.compiler import compile_blocks
from tryon.flux.lora import add_lora, load_lora
from tryon.flux.memory import (
    free_before_training,
    recomputed_every,
    training_memory,
    transformer_costs,
    which_recompute,
)
from tryon.flux.offload import checkpoint_blocks, offload_blocks
from tryon.flux.packing import count_tokens
from tryon.flux.quantize import quantize_blocks
from tryon.flux.training_blocks import (
    cast_lora_together,
    casts_lora,
    share_inputs,
    shares_inputs,
    use_training_blocks,
)
from tryon.units import gigabytes

logger = logging.getLogger(__name__)


def prepare_transformer(
    transformer: FluxTransformer2DModel, config: TrainConfig, device: torch.device, init_lora: Path | None
) -> list[nn.Parameter]:
    """Gives the transformer, which lies in the host's memory, its LoRA, and brings it to the device as the
    configuration says: quantised block by block, so that the whole never has to fit there. Returns what is trained.

    config must be resolved, see memory.resolved. init_lora: a LoRA's file that training starts from.
    """
    where = config.lora_targets, config.lora_blocks
    parameters = add_lora(transformer, config.lora_rank, config.lora_alpha, config.seed, config.lora_dropout, *where)
    if init_lora:
        load_lora(transformer, init_lora)
    count = sum(parameter.numel() for parameter in parameters) / 1e6
    logger.info("LoRA: rank %d, %.1f M parameters", config.lora_rank, count)
    tokens = count_tokens(config.height, config.width) + config.max_sequence_length
    cache = Path(config.data_cache_dir)
    choose_attention(transformer, config.train_batch_size, tokens, device, cache)  # while the GPU has room
    quantise(transformer, config.quantization, config.offload, device)
    use_training_blocks(transformer)
    place(transformer, config.offload, device)
    if shares_inputs(config):
        share_inputs(transformer)
    if casts_lora(config):
        cast_lora_together(transformer, torch.bfloat16)
    if not config.offload:
        recompute(transformer, config, device)
    if config.compile:
        compile_blocks(transformer)
    return parameters


def quantise(
    transformer: FluxTransformer2DModel, quantization: Quantization, offload: bool, device: torch.device
) -> None:
    """Quantises the blocks, which lie in the host's memory with their LoRA, where that is wanted: one by one on the
    device, so that the whole never has to fit there. quantization: resolved."""
    if quantization != "none":
        quantize_blocks(transformer, quantization, device, torch.device("cpu") if offload else device)
        logger.info("frozen weights: %s", quantization)


def place(transformer: FluxTransformer2DModel, offload: bool, device: torch.device) -> None:
    """Brings the transformer to the device, or its blocks one by one when they run, where it is to be offloaded."""
    if offload:
        offload_blocks(transformer, device)
        logger.info("frozen weights: in the host's memory, fetched block by block")
    else:
        transformer.to(device)


def recompute(transformer: FluxTransformer2DModel, config: TrainConfig, device: torch.device) -> None:
    """Lets as many blocks recompute their activations as the configuration says, and says which where it chose."""
    if config.gradient_checkpointing == "none":
        return
    costs = transformer_costs(config, dict(transformer.config))
    free = free_before_training(config, costs, device)
    every = recomputed_every(config, costs, free)
    if every:
        checkpoint_blocks(transformer, every)
    if config.gradient_checkpointing == "auto":
        need = training_memory(config, costs, every).on(device)
        in_words = which_recompute(every), gigabytes(need), gigabytes(free)
        logger.info("%s recomputes its activations: planned %s of %s", *in_words)
