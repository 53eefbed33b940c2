"""How FLUX lays latents and masks out as tokens: pure reshapes. Letters as in sample.py.

One token covers 2 x 2 latents, that is 16 x 16 pixels. Everything here equals what FluxFillPipeline does, which
tests/unit/flux/test_parity.py shows with difference 0.
"""

import torch
from torch import Tensor

PIXELS_PER_TOKEN = 16
MASK_CHANNELS = PIXELS_PER_TOKEN**2  # of a token: a pixel of the mask each


def count_tokens(height: int, width: int) -> int:
    """Image tokens of a diptych of two panels of height x width pixels."""
    return (height // PIXELS_PER_TOKEN) * (2 * width // PIXELS_PER_TOKEN)


def pack_latents(x: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, L, 4C]; h and w even."""
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, 4 * c)


def unpack_latents(x: Tensor, h: int, w: int) -> Tensor:
    """[B, L, 4C] -> [B, C, h, w]: the inverse of pack_latents."""
    b, _, c4 = x.shape
    return x.reshape(b, h // 2, w // 2, c4 // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c4 // 4, h, w)


def pack_mask(m: Tensor) -> Tensor:
    """[B, 1, H, W] -> [B, L, 256]: each 8 x 8 block of pixels becomes 64 channels, then packed as latents are."""
    b, _, height, width = m.shape
    blocks = m.reshape(b, height // 16, 2, 8, width // 16, 2, 8)
    return blocks.permute(0, 1, 4, 3, 6, 2, 5).reshape(b, -1, 256)


def image_ids(h: int, w: int) -> Tensor:
    """[L, 3] float32 position ids (0, row, column) of the tokens of h x w latents."""
    ids = torch.zeros(h // 2, w // 2, 3)
    ids[..., 1] = torch.arange(h // 2)[:, None]
    ids[..., 2] = torch.arange(w // 2)[None, :]
    return ids.reshape(-1, 3)


def text_ids(length: int) -> Tensor:
    """[length, 3] float32 zeros: text has no position in FLUX."""
    return torch.zeros(length, 3)
