"""Which attention kernel a transformer uses: the fastest that is right on this machine, or the safest."""

import logging
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel

from tryon.flux.attention_kernels import (
    Attention,
    best_kernel,
    compare_kernels,
    in_words,
    one_at_a_time,
    remembered_kernels,
)

logger = logging.getLogger(__name__)

# Where a gradient was not finite. On CUDA not the plainest one: that one's memory grows with the tokens' square.
SAFEST_KERNEL = {"cpu": "_native_math", "cuda": "_native_efficient"}


def choose_attention(
    transformer: FluxTransformer2DModel, batch: int, tokens: int, device: torch.device, cache: Path
) -> None:
    """Sets the fastest attention kernel that is right for `batch` samples of `tokens` text and image tokens.

    On a CPU it is torch's own choice. On CUDA the kernels are compared, a few seconds, where `cache` does
    not hold what was found before. diffusers keeps the choice for the whole process, so it is made for every model.
    Raises ValueError where no kernel is right.
    """
    if device.type != "cuda":
        transformer.set_attention_backend("native")
        return
    config = transformer.config
    asked = Attention(batch, tokens, config.num_attention_heads, config.attention_head_dim, transformer.dtype)
    with one_at_a_time(cache):  # processes of one run start together
        reports = remembered_kernels(asked, device, cache) or compare_kernels(asked, device, cache)
    fastest = best_kernel(reports, device)
    transformer.set_attention_backend(fastest)
    logger.info("attention: %s, the fastest of the right ones (%s)", fastest, "; ".join(map(in_words, reports)))


def fall_back(transformer: FluxTransformer2DModel) -> bool:
    """Sets the safest kernel of the transformer's device. False where it is in use already."""
    if uses_safest(transformer):
        return False
    transformer.set_attention_backend(SAFEST_KERNEL[transformer.device.type])
    return True


def uses_safest(transformer: FluxTransformer2DModel) -> bool:
    """Whether the safest kernel is in use."""
    return attention_in_use(transformer) == SAFEST_KERNEL[transformer.device.type]


def attention_in_use(transformer: FluxTransformer2DModel) -> str:
    """diffusers' name of the kernel that the transformer's blocks use."""
    backend = transformer.transformer_blocks[0].attn.processor._attention_backend
    return "native" if backend is None else backend.value
