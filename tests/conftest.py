"""What the tests share: the toy's model, and its parts. Nothing here reaches the network."""

import os
from pathlib import Path

# Read when the libraries are imported, which the imports below do.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # what is tested here is tested on the CPU, on every machine

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from PIL import Image

from tryon.models import load_transformer, load_vae
from tryon.sample import CATEGORIES, TryOnSample, fit_picture
from tryon.toy.model import ToyFolders, toy_model

PROJECT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for the toy's files and latents, shared by all tests of a session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def toy(data_cache: Path) -> ToyFolders:
    return toy_model(data_cache)


@pytest.fixture
def transformer(toy: ToyFolders) -> FluxTransformer2DModel:
    return load_transformer(str(toy.transformer), None, torch.float32)


@pytest.fixture(scope="session")
def vae(toy: ToyFolders) -> AutoencoderKL:
    return load_vae(str(toy.base), None, torch.float32)


def make_sample(seed: int, height: int = 96, width: int = 64, least: int = 0) -> TryOnSample:
    """A sample of noise, no pixel below `least`, with a rectangle as its mask: all that the model's side needs."""
    rng = np.random.default_rng(seed)

    def picture() -> torch.Tensor:
        pixels = rng.integers(least, 256, (height, width, 3), dtype=np.uint8)
        return fit_picture(Image.fromarray(pixels), height, width)

    mask = torch.zeros(1, height, width)
    mask[:, height // 4 : height - 3, 5 : width - 9] = 1  # its edges are no multiples of 8 or 16
    return TryOnSample(f"sample {seed}", picture(), picture(), mask, CATEGORIES[seed % 3])


class ListSource:
    """Samples in memory as a SampleSource."""

    def __init__(self, samples: list[TryOnSample]):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def key(self, index: int) -> str:
        return self.samples[index].key

    def __getitem__(self, index: int) -> TryOnSample:
        return self.samples[index]
