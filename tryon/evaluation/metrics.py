"""How like the truth a picture is, inside a mask. Pictures: [B, 3, H, W] in [-1, 1]; masks: [B, 1, H, W] of 0 and 1."""

import torch
from torch import Tensor

RANGE = 2.0  # between the darkest and the brightest value
WINDOW, WINDOW_SIGMA = 11, 1.5  # pixels
C1, C2 = 0.01**2, 0.03**2  # for values in [0, 1], which the formula is made for


def psnr(picture: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """[B] peak signal-to-noise ratios in dB over the masked pixels; 100 for equal ones. No mask may be empty."""
    assert mask.flatten(1).any(1).all(), "an empty mask has no error"
    error = ((picture - truth).square().mean(1, keepdim=True) * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))
    return 10 * torch.log10(RANGE**2 / error.clamp(min=RANGE**2 * 1e-10))


def ssim(picture: Tensor, truth: Tensor, *masks: Tensor) -> tuple[Tensor, ...]:
    """[B] structural similarities for each mask: the mean over its pixels and the colours; 1 for equal pictures.

    Wang et al. 2004: a Gaussian window of 11 x 11 pixels with sigma 1.5, K1 = 0.01, K2 = 0.03. Windows reach beyond the
    mask; at the picture's edge they are cut off.
    """
    assert all(mask.flatten(1).any(1).all() for mask in masks), "an empty mask has no similarity"
    # In float64: variances are differences of nearly equal numbers.
    picture, truth = (picture.double() + 1) / 2, (truth.double() + 1) / 2
    rows, columns = _blur(truth.shape[-2], truth.device), _blur(truth.shape[-1], truth.device)

    def mean(values: Tensor) -> Tensor:
        return rows @ values @ columns.mT

    m1, m2 = mean(picture), mean(truth)
    v1, v2 = mean(picture**2) - m1**2, mean(truth**2) - m2**2
    covariance = mean(picture * truth) - m1 * m2
    similarity = (2 * m1 * m2 + C1) * (2 * covariance + C2) / ((m1**2 + m2**2 + C1) * (v1 + v2 + C2))
    similarity = similarity.mean(1, keepdim=True)
    return tuple((similarity * mask).sum((1, 2, 3)) / mask.double().sum((1, 2, 3)) for mask in masks)


def interior(mask: Tensor) -> Tensor:
    """The mask of the whole picture, of a mask's shape: all pixels but those so near the edge that SSIM's window would
    be cut off, which published scores leave out."""
    whole, edge = torch.zeros_like(mask), WINDOW // 2
    whole[..., edge:-edge, edge:-edge] = 1
    return whole


def _blur(size: int, device: torch.device) -> Tensor:
    """[size, size] float64: what it is multiplied with is blurred by the window, cut off at the edges."""
    place = torch.arange(size, dtype=torch.float64, device=device)
    distance = place[:, None] - place
    weight = torch.exp(-(distance**2) / (2 * WINDOW_SIGMA**2)) * (distance.abs() <= WINDOW // 2)
    return weight / weight.sum(1, keepdim=True)
