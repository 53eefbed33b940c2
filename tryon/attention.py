"""Which of torch's attention kernels is the fastest for this model on this GPU: they are tried."""

import logging

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn

logger = logging.getLogger(__name__)

CANDIDATES = ("native", "_native_flash", "_native_cudnn")  # diffusers' names; "native" is torch's own choice
ROUNDS = 10


def choose_attention(
    transformer: FluxTransformer2DModel, batch: int, tokens: int, device: torch.device, autocast: bool
) -> None:
    """Sets the attention kernel that does forward and backward pass fastest for so many samples of so many tokens, text
    and image. On a CPU there is no choice. autocast: whether the transformer runs in bfloat16 by autocast, as in
    training, or by its own dtype.

    diffusers keeps the choice for the whole process, so it is made for every model.
    """
    if device.type != "cuda":
        return
    shape = (batch, tokens, transformer.config.num_attention_heads, transformer.config.attention_head_dim)
    seconds = {}
    for name in CANDIDATES:
        try:
            seconds[name] = time_attention(name, shape, transformer.dtype, device, autocast)
        except RuntimeError:  # not built, or not for these shapes
            if name == "native":
                raise
    fastest = min(seconds, key=lambda name: seconds[name])
    transformer.set_attention_backend(fastest)
    words = ", ".join(f"{name} {1000 * each:.2f} ms" for name, each in seconds.items())
    logger.info("attention: %s (%s)", fastest, words)


def time_attention(
    name: str, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device, autocast: bool
) -> float:
    """Seconds of a forward and a backward pass on [batch, tokens, heads, head]. Raises RuntimeError where the kernel
    cannot do it."""
    query, key, value = (torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for _ in range(3))
    if autocast:  # which normalises queries and keys in float32
        query, key = query.detach().float().requires_grad_(), key.detach().float().requires_grad_()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for number in range(ROUNDS + 2):
        if number == 2:  # warm by now
            begin.record()
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            out = dispatch_attention_fn(query, key, value, backend=name)
        out.sum().backward()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000 / ROUNDS
