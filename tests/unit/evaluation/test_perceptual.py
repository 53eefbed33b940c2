"""FID, KID and their resizing against values known from their formulas. No network is needed."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm

from tryon.evaluation.perceptual import (
    INCEPTION_SIZE,
    for_inception,
    frechet_distance,
    kernel_distance,
    load_perception,
)


def normal(count: int, mean: np.ndarray, root: np.ndarray, seed: int) -> np.ndarray:
    """[count, D] features whose mean is exactly this, and whose covariance is exactly root' root."""
    drawn = np.random.default_rng(seed).normal(size=(count, len(mean)))
    drawn -= drawn.mean(0)
    white = np.linalg.qr(drawn)[0] * np.sqrt(count - 1)
    return white @ root + mean


def test_fid_of_gaussians_is_the_closed_form() -> None:
    one, two = np.array([1.0, 2.0, 0.5]), np.array([3.0, 1.0, 0.25])
    features, others = normal(40, np.zeros(3), np.diag(one), 0), normal(25, np.array([2.0, 0, 1]), np.diag(two), 1)
    assert frechet_distance(features, others) == pytest.approx(5 + ((one - two) ** 2).sum())
    rng = np.random.default_rng(2)
    root1, root2 = rng.normal(size=(2, 3, 3))  # covariances that do not commute
    s1, s2 = root1.T @ root1, root2.T @ root2
    expected = np.trace(s1 + s2 - 2 * sqrtm(s1 @ s2)).real
    assert frechet_distance(normal(9, one, root1, 3), normal(8, one, root2, 4)) == pytest.approx(expected)


def test_fid_of_a_set_with_itself_is_nothing() -> None:
    rng = np.random.default_rng(0)
    for count, width in ((50, 7), (5, 30)):  # also of fewer pictures than features
        features = rng.normal(size=(count, width)).astype(np.float32)
        assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
        assert frechet_distance(features, features[::-1] + 1) == pytest.approx(width, rel=1e-4)


def test_kid_of_a_small_example() -> None:
    features, others = np.array([[1.0, 0], [0, 1]]), np.array([[1.0, 1], [0, 0]])
    # Within each set the kernel is 1; between them it is 1.5 ** 3 and 1, twice each.
    assert kernel_distance(features, others) == pytest.approx(1 + 1 - 2 * (1.5**3 + 1) / 2)


def test_kid_is_unbiased_and_always_the_same() -> None:
    rng = np.random.default_rng(0)
    features, others = rng.normal(size=(60, 4)), rng.normal(size=(50, 4))
    # Two samples of one distribution: near nothing, where an estimate with the diagonals would be near 0.15.
    assert kernel_distance(features, others, size=20) == pytest.approx(0, abs=0.05)
    assert kernel_distance(features, others + 1) > 1
    assert kernel_distance(features, others, size=20) == kernel_distance(features, others, size=20)
    assert kernel_distance(features, others, size=20) != kernel_distance(features, others, size=21)


@pytest.mark.parametrize("size", [(500, 380), (96, 64)])
def test_pictures_are_resized_as_pillow_does_in_float(size: tuple[int, int]) -> None:
    values = np.random.default_rng(1).integers(0, 256, (3, *size)).astype(np.float32)
    resized = for_inception(torch.from_numpy(values)[None] / 127.5 - 1)[0].numpy()
    for channel, found in zip(values, resized, strict=True):
        expected = Image.fromarray(channel).resize((INCEPTION_SIZE, INCEPTION_SIZE), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(expected).clip(0, 255) - found).max() < 0.01
    assert (resized != resized.round()).mean() > 0.5


def test_what_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for package in ("lpips", "cleanfid"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    perception = load_perception(tmp_path, torch.device("cpu"))
    assert perception.lpips is None and perception.features is None
    assert set(perception.missing) == {"lpips", "fid", "kid"}
    assert all("pip install -r requirements-metrics.txt" in why for why in perception.missing.values())
