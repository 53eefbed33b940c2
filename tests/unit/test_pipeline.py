"""Try-on of photographs; with the weights kept in other ways, and with a LoRA in place of another."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from conftest import make_sample
from test_lora import FACTS, disturb
from tryon.config import TryOnConfig
from tryon.lora import add_lora, save_lora
from tryon.models import load_transformer
from tryon.pipeline import TryOnModel, load_try_on, same_models, swap_lora, try_on, try_on_batch
from tryon.runs import LORA_FILE
from tryon.toy.model import ToyFolders


def write_lora(toy: ToyFolders, folder: Path, rank: int, seed: int) -> Path:
    """A LoRA that changes the picture, and differs from others in rank and weights."""
    transformer = load_transformer(toy.transformer, torch.float32)
    disturb(add_lora(transformer, rank, rank, seed=seed))
    folders = {"base": str(toy.base), "transformer": str(toy.transformer)}
    save_lora(folder, transformer, replace(FACTS, **folders, max_sequence_length=16, height=96, width=64, step=seed))
    return folder / LORA_FILE


@pytest.fixture
def lora(toy: ToyFolders, tmp_path: Path) -> Path:
    return write_lora(toy, tmp_path, rank=4, seed=0)


def dressed(model: TryOnModel) -> Tensor:
    sample = make_sample(0)
    return try_on_batch(model.pipeline, [sample], [model.prompts["upper"]], steps=2, guidance=30.0, seeds=[0])[0]


def picture(lora: Path, data_cache: Path, **options: object) -> Tensor:
    return dressed(load_try_on(TryOnConfig(data_cache_dir=str(data_cache), **options), lora))


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


@pytest.mark.parametrize("options", [{}, {"quantization": "int8", "offload": True}], ids=["plain", "int8, offloaded"])
def test_a_swapped_lora_is_the_loaded_one(
    lora: Path, toy: ToyFolders, data_cache: Path, tmp_path: Path, options: dict
) -> None:
    config = TryOnConfig(data_cache_dir=str(data_cache), **options)
    model = load_try_on(config, lora)
    before = dressed(model)
    other = write_lora(toy, tmp_path / "other", rank=2, seed=1)
    swapped = swap_lora(model, config, other)
    assert (swapped.lora, swapped.facts.step) == (other, 1)
    after = dressed(swapped)
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(after, picture(other, data_cache, **options), rtol=0, atol=1e-5)

    (tmp_path / "odd").mkdir()
    odd = tmp_path / "odd" / LORA_FILE
    with safe_open(other, framework="pt") as file:
        save_file({**load_file(other), "transformer.nowhere.lora_A.weight": torch.zeros(2, 2)}, odd, file.metadata())
    with pytest.raises(ValueError, match="does not fit this transformer"):
        swap_lora(swapped, config, odd)
    assert torch.equal(dressed(swapped), after), "the one before is still there"


@pytest.mark.parametrize("gone", ["/gone/FLUX.1-dev", "FLUX.1-dev"])
def test_models_that_are_nowhere_are_named(gone: str, lora: Path, data_cache: Path) -> None:
    """A LoRA that was shared knows a folder of its maker's by its last part alone."""
    with pytest.raises(ValueError, match=f"{gone} is neither here nor a hub name: name the models .* with --base and"):
        load_try_on(TryOnConfig(base=gone, data_cache_dir=str(data_cache)), lora)


def test_a_lora_is_swapped_only_on_the_models_it_was_trained_for(lora: Path, data_cache: Path) -> None:
    model = load_try_on(TryOnConfig(data_cache_dir=str(data_cache)), lora)
    assert same_models(model, replace(model.facts, step=9, height=64, mask_rule="hull"))
    for other in ({"transformer": "another"}, {"prompt": "category"}, {"max_sequence_length": 32}):
        assert not same_models(model, replace(model.facts, **other))
    assert not same_models(model, None)
    assert not same_models(replace(model, facts=None), None), "nobody knows which layers the two have"


def test_several_seeds_of_a_photograph_in_one_batch(lora: Path, data_cache: Path) -> None:
    model = load_try_on(TryOnConfig(data_cache_dir=str(data_cache)), lora)
    noise = np.random.default_rng(0).integers(0, 256, (70, 301, 3), dtype=np.uint8)
    person, mask = Image.fromarray(noise), Image.new("L", (301, 70))
    mask.paste(255, (200, 20, 230, 60))
    done: list[int] = []
    settings = {"steps": 3, "guidance": 30.0, "each_step": done.append}
    first, second = try_on(model, person, person, mask, "upper", seeds=[4, 5], **settings)
    assert done == [1, 2, 3] and first.size == person.size
    alone = try_on(model, person, person, mask, "upper", seeds=[5], **settings)[0]
    assert np.abs(np.asarray(second).astype(int) - np.asarray(alone)).max() <= 1
    hidden = np.asarray(mask) > 0
    for result in (first, second):
        changed = (np.asarray(result) != noise).any(-1)
        assert not changed[~hidden].any() and changed[hidden].mean() > 0.9

    class Enough(Exception):
        pass

    def stop(step: int) -> None:
        raise Enough

    with pytest.raises(Enough):
        try_on(model, person, person, mask, "upper", seeds=[4], steps=3, guidance=30.0, each_step=stop)
    with pytest.raises(ValueError, match="the mask has no white in it"):
        try_on(model, person, person, Image.new("L", (301, 70)), "upper", seeds=[4], **settings)
