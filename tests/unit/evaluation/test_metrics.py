"""Metrics against values known from their formulas."""

import pytest
import torch
from scipy.ndimage import gaussian_filter

from tryon.evaluation.metrics import C1, C2, interior, psnr, ssim


def flat(value: float, size: int = 24) -> torch.Tensor:
    return torch.full((1, 3, size, size), value)


def half_mask(size: int = 24) -> torch.Tensor:
    mask = torch.zeros(1, 1, size, size)
    mask[..., : size // 2] = 1
    return mask


def test_psnr_of_a_known_error() -> None:
    truth, everywhere = flat(0.0), torch.ones(1, 1, 24, 24)
    assert psnr(flat(0.2), truth, everywhere).item() == pytest.approx(20)  # 20 log10(2 / 0.2)
    assert psnr(truth, truth, everywhere).item() == pytest.approx(100)
    two = psnr(torch.cat([flat(0.2), flat(0.02)]), truth.expand(2, -1, -1, -1), everywhere.expand(2, -1, -1, -1))
    assert two.tolist() == pytest.approx([20, 40])


def test_ssim_of_flat_pictures_is_their_luminance_term() -> None:
    expected = (2 * 0.75 * 0.4 + C1) / (0.75**2 + 0.4**2 + C1)  # of the same values between 0 and 1
    assert ssim(flat(0.5), flat(-0.2), half_mask())[0].item() == pytest.approx(expected, abs=1e-7)


def test_ssim_falls_with_the_structure() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(1, 3, 24, 24, generator=generator) * 2 - 1
    noise = torch.randn(truth.shape, generator=generator)
    values = [ssim(truth + amount * noise, truth, half_mask())[0].item() for amount in (0, 0.1, 0.3, 1)]
    assert values[0] == pytest.approx(1, abs=1e-5)
    assert values == sorted(values, reverse=True) and values[-1] < 0.6
    assert ssim(-truth, truth, half_mask())[0].item() < 0


@pytest.mark.parametrize("metric", [psnr, lambda *given: ssim(*given)[0]], ids=["psnr", "ssim"])
def test_only_what_is_masked_counts(metric) -> None:
    generator = torch.Generator().manual_seed(1)
    truth = torch.rand(1, 3, 24, 24, generator=generator) * 2 - 1
    damaged = truth.clone()
    damaged[..., 18:] = 0  # farther from the mask than any window reaches
    expected = metric(truth, truth, half_mask()).item()
    assert metric(damaged, truth, half_mask()).item() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(AssertionError):
        metric(damaged, truth, torch.zeros(1, 1, 24, 24))


def test_the_whole_picture_is_scored_as_papers_do() -> None:
    """Between 0 and 1, and where no window is cut off: computed by SciPy's filter."""
    generator = torch.Generator().manual_seed(2)
    truth = torch.rand(1, 3, 20, 28, generator=generator) * 2 - 1
    picture = (truth + 0.4 * torch.randn(truth.shape, generator=generator)).clamp(-1, 1)
    a, b = ((each[0].double().numpy() + 1) / 2 for each in (picture, truth))

    def mean(values):
        return gaussian_filter(values, sigma=(0, 1.5, 1.5), truncate=3.5)

    m1, m2 = mean(a), mean(b)
    v1, v2, covariance = mean(a * a) - m1**2, mean(b * b) - m2**2, mean(a * b) - m1 * m2
    expected = (2 * m1 * m2 + C1) * (2 * covariance + C2) / ((m1**2 + m2**2 + C1) * (v1 + v2 + C2))
    assert ssim(picture, truth, interior(truth[:, :1]))[0].item() == pytest.approx(
        expected[:, 5:-5, 5:-5].mean(), abs=1e-9
    )
