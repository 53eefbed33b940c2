"""What the tests share: the toy's model, and its parts. Nothing here reaches the network."""

import gc
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

# Read when the libraries are imported, which the imports below do.
os.environ["HF_HUB_OFFLINE"] = "1"
gc.disable()  # until the imports are done: to look for garbage in what they make takes seconds
if "TRYON_GPU_TESTS" not in os.environ:  # set by bash tests/run.sh --gpu
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # everything else is tested on the CPU, on every machine

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from diffusers.models.attention_dispatch import attention_backend
from PIL import Image

from tryon.config import TrainConfig
from tryon.data.category import CATEGORIES, Category
from tryon.data.human_parser import Parser, load_parser
from tryon.data.sample import TryOnSample, fit_picture
from tryon.flux.load import load_transformer, load_vae
from tryon.profiles import on_toy
from tryon.toy.model import ToyFolders, toy_model, toy_parser

PROJECT = Path(__file__).resolve().parent.parent


def pytest_sessionstart() -> None:
    # What a script starts in the background ignores Ctrl-C, what nohup starts a lost terminal, and so would all that
    # the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    gc.freeze()  # what the imports made stays: to look for garbage in it again and again takes minutes in all
    gc.enable()
    if "TRYON_GPU_TESTS" in os.environ and not torch.cuda.is_available():
        pytest.exit("the GPU tests need a CUDA device and none was found: run them on a machine with a GPU", 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The one place where a test that is marked gpu is skipped."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip("needs a CUDA device: bash tests/run.sh --gpu"))


@pytest.fixture(autouse=True)
def own_attention_kernel() -> Iterator[None]:
    """diffusers keeps the choice of kernel for the whole process: a test's choice ends with the test."""
    with attention_backend("native"):
        yield


@pytest.fixture(scope="session")
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder for the toy's files and latents, shared by all tests of a session, those of all its workers."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def toy(data_cache: Path) -> ToyFolders:
    return toy_model(data_cache)


@pytest.fixture
def transformer(toy: ToyFolders) -> FluxTransformer2DModel:
    return load_transformer(toy.transformer, torch.float32)


@pytest.fixture(scope="session")
def vae(toy: ToyFolders) -> AutoencoderKL:
    return load_vae(toy.base, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="session")
def drawn_parser(data_cache: Path) -> Parser:
    """The toy's parser, which knows drawn people."""
    return load_parser(str(toy_parser(data_cache)), None, torch.device("cpu"))


def make_sample(seed: int, height: int = 96, width: int = 64, least: int = 0) -> TryOnSample:
    """A sample of noise, no pixel below `least`, with a rectangle as its mask: all that the model's side needs."""
    rng = np.random.default_rng(seed)

    def picture() -> torch.Tensor:
        pixels = rng.integers(least, 256, (height, width, 3), dtype=np.uint8)
        return fit_picture(Image.fromarray(pixels), height, width)

    mask = torch.zeros(1, height, width)
    mask[:, height // 4 : height - 3, 5 : width - 9] = 1  # its edges are no multiples of 8 or 16
    return TryOnSample(f"sample {seed}", picture(), picture(), mask, CATEGORIES[seed % 3])


FAULTS = {"injected": 0, "survived": 0}


@pytest.fixture
def faults() -> Callable[[int], AbstractContextManager[None]]:
    """A context in which so many faults are injected: they are survived where it ends without an error."""

    @contextmanager
    def inject(number: int = 1) -> Iterator[None]:
        FAULTS["injected"] += number
        yield
        FAULTS["survived"] += number

    return inject


def pytest_unconfigure() -> None:
    """The very last line of the fault run."""
    if injected := FAULTS["injected"]:
        survived = FAULTS["survived"]
        print(f"faults: {injected} injected, {survived} survived, {injected - survived} lost")


class ListSource:
    """Samples in memory as a SampleSource."""

    variants = 1
    mask_rule = None
    worn_reference_share = 0.0

    def __init__(self, samples: list[TryOnSample]):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def key(self, index: int) -> str:
        return self.samples[index].key

    def category(self, index: int) -> Category:
        return self.samples[index].category

    def name(self, index: int) -> str:
        return self.samples[index].key

    def shows_garment_alone(self, index: int) -> bool:
        return True

    def __getitem__(self, index: int) -> TryOnSample:
        return self.samples[index]


@pytest.fixture(scope="session")
def run(toy: ToyFolders, data_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the toy of one large step, so that the LoRA is seen in the picture."""
    from train_flux_inpaint import train

    config = replace(
        on_toy(TrainConfig()),
        pretrained_model_name_or_path=str(toy.base),
        pretrained_inpaint_model_name_or_path=str(toy.transformer),
        data_cache_dir=str(data_cache),
        output_dir=str(tmp_path_factory.mktemp("run")),
        height=96,
        width=64,
        lora_rank=4,
        lora_alpha=4,
        max_train_steps=1,
        gradient_accumulation_steps=1,
        lr_warmup_steps=0,
        learning_rate=0.1,
        num_validation_images=1,
        num_inference_steps=1,
    )
    return train(config, ListSource([make_sample(0)]), ListSource([make_sample(1)]))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with person.png, garment.png, mask.png and black.png, which is an empty mask."""
    rng = np.random.default_rng(0)
    for name in ("person", "garment"):
        Image.fromarray(rng.integers(0, 256, (96, 64, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    mask = Image.new("L", (64, 96))
    mask.paste(255, (10, 30, 50, 90))
    mask.save(tmp_path / "mask.png")
    Image.new("L", (64, 96)).save(tmp_path / "black.png")
    return tmp_path
