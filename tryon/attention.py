"""Which of the attention kernels that are there is the fastest for this model on this GPU: they are tried."""

import logging

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn

from tryon.config import TrainConfig
from tryon.geometry import count_tokens

logger = logging.getLogger(__name__)

# diffusers' names. "native" is torch's own choice; the last two need packages of their own.
CANDIDATES = ("native", "_native_flash", "_native_cudnn", "flash", "_flash_3")
ROUNDS = 10


def choose_attention(transformer: FluxTransformer2DModel, config: TrainConfig, device: torch.device) -> None:
    """Sets the attention kernel that does forward and backward pass fastest at the training's shapes. On a CPU there is
    no choice."""
    if device.type != "cuda":
        return
    heads, head = transformer.config.num_attention_heads, transformer.config.attention_head_dim
    tokens = count_tokens(config.height, config.width) + config.max_sequence_length
    dtype = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
    shape = (config.train_batch_size, tokens, heads, head)
    seconds = {name: time for name in CANDIDATES if (time := time_attention(name, shape, dtype, device)) is not None}
    fastest = min(seconds, key=lambda name: seconds[name])
    if fastest != "native":
        transformer.set_attention_backend(fastest)
    words = ", ".join(
        f"{name} {1000 * time:.2f} ms" for name, time in sorted(seconds.items(), key=lambda each: each[1])
    )
    logger.info("attention: %s (%s)", fastest, words)


def time_attention(
    name: str, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> float | None:
    """Seconds of a forward and a backward pass on [batch, tokens, heads, head]; None where the kernel cannot do it."""
    query, key, value = (torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for _ in range(3))
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    try:
        for round in range(ROUNDS + 2):
            if round == 2:  # warm by now
                begin.record()
            dispatch_attention_fn(query, key, value, backend=name).sum().backward()
    except (RuntimeError, ValueError, TypeError, ImportError):  # not built, not installed, or not for these shapes
        return None
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000 / ROUNDS
