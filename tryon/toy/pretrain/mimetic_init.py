"""First weights from which the toy's transformer learns in a tenth of the steps that random ones take."""

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

LATENT_CHANNELS, MASK_CHANNELS = 64, 256  # of a token: 64 noisy and 64 masked latents, then the mask
ATTENTION_BIAS = 3.0
QUERY_KEY_SCALE = 1.5  # of the normalised queries and keys; a larger one makes attention sharper


def mimetic_init(transformer: FluxTransformer2DModel, panel_columns: int) -> None:
    """Gives a new transformer two things that any try-on model has to find out.

    The velocity noise - x_0 contains the noise, which its input shows: the noisy latents pass unchanged to the output.
    And what a person wears is in the other panel, panel_columns tokens away: at first each head looks mostly at one
    place, there or close by. Such a start by the structure that trained models end up with was proposed by Trockman and
    Kolter, "Mimetic Initialization of Self-Attention Layers", 2023.
    """
    config = transformer.config
    width = config.num_attention_heads * config.attention_head_dim
    assert width >= 3 * LATENT_CHANNELS, "the three parts of a token need a third of the width each"
    across, there = panel_columns, -panel_columns
    places = [(0, there), (0, there), (0, 0), (0, 1), (-1, 0), (0, across)]  # rows down and columns right
    with torch.no_grad():
        into, out = torch.zeros(width, config.in_channels), torch.zeros(LATENT_CHANNELS, width)
        rest = width - 2 * LATENT_CHANNELS
        into[: 2 * LATENT_CHANNELS, : 2 * LATENT_CHANNELS] = torch.eye(2 * LATENT_CHANNELS)
        into[-rest:, -MASK_CHANNELS:] = torch.randn(rest, MASK_CHANNELS) / MASK_CHANNELS**0.5
        out[:, :LATENT_CHANNELS] = torch.eye(LATENT_CHANNELS)
        for layer, weight in ((transformer.x_embedder, into), (transformer.proj_out, out)):
            layer.weight.copy_(weight)
            layer.bias.zero_()
        towards = [places[head % len(places)] for head in range(config.num_attention_heads)]
        queries = torch.cat([_turned(place, config.axes_dims_rope) for place in towards])
        keys = torch.cat([_turned((0, 0), config.axes_dims_rope) for _ in towards])
        for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
            for layer, bias in ((block.attn.to_q, queries), (block.attn.to_k, keys)):
                layer.weight.mul_(0.5)
                layer.bias.copy_(ATTENTION_BIAS * bias)
            block.attn.norm_q.weight.fill_(QUERY_KEY_SCALE)
            block.attn.norm_k.weight.fill_(QUERY_KEY_SCALE)


def _turned(place: tuple[int, int], axes: tuple[int, int, int]) -> Tensor:
    """[sum(axes)]: the query of a head that looks at this place, as rotary embedding turns the key (1, 0, 1, 0, ...)
    found there. Nothing on the first axis, which is the same for all image tokens."""
    parts = [torch.zeros(axes[0])]
    for offset, size in zip(place, axes[1:], strict=True):
        angles = offset * 10000 ** (-torch.arange(0, size, 2) / size)
        parts.append(torch.stack([angles.cos(), angles.sin()], 1).flatten())
    return torch.cat(parts)
