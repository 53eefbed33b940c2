"""How like the truth a picture is, inside a mask. Pictures: [B, 3, H, W] in [-1, 1]; masks: [B, 1, H, W] of 0 and 1."""

import torch
from torch import Tensor
from torch.nn import functional

RANGE = 2.0  # between the darkest and the brightest value
WINDOW, WINDOW_SIGMA = 11, 1.5  # pixels
C1, C2 = 0.01**2, 0.03**2  # for values in [0, 1], which the formula is made for


def psnr(picture: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """[B] peak signal-to-noise ratios in dB over the masked pixels; 100 for equal ones. No mask may be empty."""
    assert mask.flatten(1).any(1).all(), "an empty mask has no error"
    error = ((picture - truth).square().mean(1, keepdim=True) * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))
    return 10 * torch.log10(RANGE**2 / error.clamp(min=RANGE**2 * 1e-10))


def ssim(picture: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """[B] structural similarities, the mean over the masked pixels and the colours; 1 for equal pictures.

    Wang et al. 2004: a Gaussian window of 11 x 11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03. Windows reach beyond the
    mask; at the picture's edge they are cut off.
    """
    assert mask.flatten(1).any(1).all(), "an empty mask has no similarity"
    # In float64: variances are differences of nearly equal numbers.
    picture, truth, mask = (picture.double() + 1) / 2, (truth.double() + 1) / 2, mask.double()
    distance = torch.arange(WINDOW, dtype=torch.float64, device=picture.device) - WINDOW // 2
    line = torch.exp(-(distance**2) / (2 * WINDOW_SIGMA**2))
    window = (line[:, None] * line)[None, None].expand(3, 1, -1, -1)
    weight = _blur(torch.ones_like(truth[:1]), window)

    def mean(values: Tensor) -> Tensor:
        return _blur(values, window) / weight

    m1, m2 = mean(picture), mean(truth)
    v1, v2 = mean(picture**2) - m1**2, mean(truth**2) - m2**2
    covariance = mean(picture * truth) - m1 * m2
    similarity = (2 * m1 * m2 + C1) * (2 * covariance + C2) / ((m1**2 + m2**2 + C1) * (v1 + v2 + C2))
    return (similarity.mean(1, keepdim=True) * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))


def _blur(values: Tensor, window: Tensor) -> Tensor:
    return functional.conv2d(values, window, padding=WINDOW // 2, groups=3)
