"""Try-on with the weights kept in other ways: what they change of the picture."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import make_sample
from test_lora import FACTS, disturb
from tryon.config import TryOnConfig
from tryon.lora import add_lora, save_lora
from tryon.models import load_transformer
from tryon.pipeline import load_try_on, try_on_batch
from tryon.runs import LORA_FILE
from tryon.toy.model import ToyFolders


@pytest.fixture
def lora(toy: ToyFolders, tmp_path: Path) -> Path:
    transformer = load_transformer(toy.transformer, torch.float32)
    disturb(add_lora(transformer, 4, 4, seed=0))
    folders = {"base": str(toy.base), "transformer": str(toy.transformer)}
    save_lora(tmp_path, transformer, replace(FACTS, **folders, max_sequence_length=16, height=96, width=64))
    return tmp_path / LORA_FILE


def picture(lora: Path, data_cache: Path, **options: object) -> Tensor:
    model = load_try_on(TryOnConfig(data_cache_dir=str(data_cache), **options), lora)
    sample = make_sample(0)
    return try_on_batch(model.pipeline, [sample], [model.prompts["upper"]], steps=2, guidance=30.0, seeds=[0])[0]


def test_offload_changes_nothing_and_quantisation_little(lora: Path, data_cache: Path) -> None:
    plain = picture(lora, data_cache)
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-5)  # rounding follows where in memory weights lie
    close(picture(lora, data_cache, offload=True), plain)
    errors = {}
    for kind in ("int8", "fp8", "nf4"):
        found = picture(lora, data_cache, quantization=kind)
        errors[kind] = (found - plain).square().mean().sqrt().item()
    assert 0 < errors["int8"] < errors["fp8"] < errors["nf4"] < 0.5, errors
    assert errors["int8"] < 0.05
    offloaded = picture(lora, data_cache, quantization="int8", offload=True)
    close(offloaded, picture(lora, data_cache, quantization="int8"))
