"""How pictures look to trained networks: LPIPS of two pictures, FID and KID of two sets of them.

The networks come with the packages of requirements-metrics.txt and download their weights. FID and KID are computed
here, from any network's features, so that they need no package beyond NumPy.
"""

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from tryon.config import first_line
from tryon.data.human_parser import load_parser, parse
from tryon.evaluation.text import Reader

logger = logging.getLogger(__name__)

INCEPTION_SIZE = 299  # pixels, of height and width
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
# What importing a package and loading its weights raise where either is missing, damaged, made for another torch, or
# cannot be downloaded.
UNAVAILABLE = (ImportError, OSError, RuntimeError)


@dataclass(frozen=True)
class Perception:
    """What could be loaded. lpips: two times [B, 3, H, W] in [-1, 1] -> [B]. features: [B, 3, H, W] in [-1, 1] ->
    [B, D]. missing: for each metric that cannot be computed, why. labels: an RGB picture -> [H, W] of places in PARTS.
    labels, read: None where they are not asked for."""

    lpips: Callable[[Tensor, Tensor], Tensor] | None
    features: Callable[[Tensor], Tensor] | None
    missing: dict[str, str]
    labels: Callable[[Image.Image], Tensor] | None = None
    read: Reader | None = None


def load_perception(
    folder: Path, device: torch.device, parser: str | None = None, cache_dir: str | None = None
) -> Perception:
    """Loads LPIPS and Inception, whose weights are kept in `folder`; LPIPS's where torch keeps its own; and the human
    parser, if one is named, from a folder or the hub (see load_parser). What cannot be loaded is named in `missing`."""
    missing, loaded = {}, {}
    for names, load in ((("lpips",), load_lpips), (("fid", "kid"), load_inception)):
        try:
            loaded[names[0]] = load(folder, device)
        except UNAVAILABLE as error:
            absent = isinstance(error, ModuleNotFoundError)
            why = "pip install -r requirements-metrics.txt" if absent else f"{first_line(error)}: see docs/messages.md"
            missing |= dict.fromkeys(names, why)
    labels = None
    if parser:
        try:
            labels = partial(parse, load_parser(parser, cache_dir, device))
        except ValueError as error:
            missing["leftovers"] = str(error)
    return Perception(loaded.get("lpips"), loaded.get("fid"), missing, labels)


def load_lpips(folder: Path, device: torch.device) -> Callable[[Tensor, Tensor], Tensor]:
    """Zhang et al. 2018 with SqueezeNet's features."""
    import lpips

    logger.info("loading LPIPS; its weights are downloaded once")
    with warnings.catch_warnings(action="ignore"):  # of what torchvision would like to be asked by other names
        network = lpips.LPIPS(net="squeeze", verbose=False).eval().to(device)

    @torch.no_grad()
    def distance(pictures: Tensor, truths: Tensor) -> Tensor:
        return network(pictures.to(device), truths.to(device)).flatten().cpu()

    return distance


def load_inception(folder: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The Inception network that FID and KID are defined with, on pictures resized as Parmar et al. 2022 ask for."""
    from cleanfid.inception_torchscript import InceptionV3W

    logger.info("loading Inception; its weights, 96 MB, are downloaded once into %s", folder)
    folder.mkdir(parents=True, exist_ok=True)
    network = InceptionV3W(str(folder), download=True).eval().to(device)

    @torch.no_grad()
    def features(pictures: Tensor) -> Tensor:
        return network(for_inception(pictures).to(device)).cpu()

    return features


def for_inception(pictures: Tensor) -> Tensor:
    """[B, 3, H, W] in [-1, 1] -> [B, 3, 299, 299] in [0, 255], bicubic with antialiasing and not rounded: resizing that
    aliases or rounds changes FID (Parmar et al. 2022)."""
    values = (pictures.float() + 1) * 127.5
    size = (INCEPTION_SIZE, INCEPTION_SIZE)
    return interpolate(values, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)


def frechet_distance(features: np.ndarray, others: np.ndarray) -> float:
    """FID, Heusel et al. 2017, of features [N, D] and [M, D], N and M at least 2:
    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), means and unbiased covariances.

    With S1 = A'A and S2 = B'B the trace of the root is the sum of the singular values of A B'. A and B are triangular
    factors of the centred features, of at most N and M rows, so that few pictures cost little.
    """
    (mean1, root1), (mean2, root2) = (_moments(each) for each in (features, others))
    shared = np.linalg.svd(root1 @ root2.T, compute_uv=False).sum()
    return float(((mean1 - mean2) ** 2).sum() + (root1**2).sum() + (root2**2).sum() - 2 * shared)


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean [D], and R [min(N, D), D] with R'R the covariance."""
    assert len(features) >= 2, "one picture has no covariance"
    features = features.astype(np.float64)
    centred = features - features.mean(0)
    return features.mean(0), np.linalg.qr(centred / np.sqrt(len(features) - 1), mode="r")


def kernel_distance(
    features: np.ndarray, others: np.ndarray, subsets: int = KID_SUBSETS, size: int = KID_SUBSET_SIZE
) -> float:
    """KID, Binkowski et al. 2018, of features [N, D] and [M, D], N and M at least 2: the unbiased estimate of the
    squared maximum mean discrepancy under the kernel (x y / D + 1)^3, the mean over random subsets of `size` features,
    or of all where there are fewer. The subsets are always the same. It may be negative; published values are 1000
    times it.
    """
    size = min(size, len(features), len(others))
    assert size >= 2, "one picture has no kernel distance"
    rng = np.random.default_rng(0)
    distances = []
    for _ in range(subsets if size < max(len(features), len(others)) else 1):
        one = features[rng.choice(len(features), size, replace=False)].astype(np.float64)
        two = others[rng.choice(len(others), size, replace=False)].astype(np.float64)
        within = sum(kernel.sum() - np.trace(kernel) for kernel in (_kernel(one, one), _kernel(two, two)))
        distances.append(within / (size * (size - 1)) - 2 * _kernel(one, two).mean())
    return float(np.mean(distances))


def _kernel(features: np.ndarray, others: np.ndarray) -> np.ndarray:
    return (features @ others.T / features.shape[1] + 1) ** 3
