"""Try-on of photographs; with the weights kept in other ways, and with a LoRA in place of another."""

import json
import logging
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch._dynamo.utils import counters

from conftest import make_sample
from test_lora import FACTS, disturb
from tryon.config import TryOnConfig
from tryon.data.category import Category
from tryon.evaluation.metrics import psnr
from tryon.flux.load import load_transformer
from tryon.flux.lora import add_lora, save_lora
from tryon.flux.lora_header import FACTS_KEY, OF_ANOTHER_PROJECT, check_takes_off
from tryon.inference.dressing import Denoising, Pictures, dress
from tryon.inference.pairs_file import Request
from tryon.inference.pipeline import TryOnModel, load_try_on, same_models, swap_lora, try_on, try_on_batch
from tryon.inference.recipe import Recipe
from tryon.runs import LORA_FILE
from tryon.toy.examples import EVALUATION_SEED, DrawnData
from tryon.toy.model import ToyFolders


def write_lora(toy: ToyFolders, folder: Path, rank: int, seed: int, **facts: object) -> Path:
    """A LoRA that changes the picture, and differs from others in rank and weights. facts: those that differ."""
    transformer = load_transformer(toy.transformer, torch.float32)
    disturb(add_lora(transformer, rank, rank, seed=seed))
    of_toy = {"base": str(toy.base), "transformer": str(toy.transformer), "max_sequence_length": 16}
    save_lora(folder, transformer, replace(FACTS, **of_toy, height=96, width=64, step=seed, **facts))
    return folder / LORA_FILE


def mistaken_loras(lora: Path, folder: Path) -> list[tuple[Path, str]]:
    """Files as the LoRA's, each with something that cannot be right, and how it is refused."""
    state = load_file(lora)
    nowhere = {f"transformer.nowhere.lora_{side}.weight": torch.zeros(2, 2) for side in "AB"}
    infinite = {"transformer.transformer_blocks.0.ff.net.2.lora_B.weight": torch.full((64, 2), torch.inf)}
    half = {key: tensor for key, tensor in state.items() if "single_transformer_blocks" not in key}
    files = []
    with safe_open(lora, framework="pt") as opened:
        for mistaken, refusal in (
            (state | nowhere, "does not fit this transformer"),
            (state | infinite, "holds numbers that are not finite"),
            (half, "is incomplete: it lacks 16 layers that its header names"),
        ):
            files.append((folder / f"{len(files)}.safetensors", refusal))
            save_file(mistaken, files[-1][0], opened.metadata())
    return files


@pytest.fixture
def lora(toy: ToyFolders, tmp_path: Path) -> Path:
    return write_lora(toy, tmp_path, rank=4, seed=0)


def dressed(model: TryOnModel) -> Tensor:
    sample = make_sample(0)
    return try_on_batch(model.pipeline, [sample], [model.prompts["upper"]], steps=2, guidance=30.0, seeds=[0])[0]


def picture(lora: Path, data_cache: Path, fold: bool = False, **options: object) -> Tensor:
    return dressed(load_try_on(TryOnConfig(data_cache_dir=str(data_cache), **options), lora, fold=fold))


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

    for mistaken, refusal in mistaken_loras(other, tmp_path):
        with pytest.raises(ValueError, match=refusal):
            swap_lora(swapped, replace(config, lora_scale=0.5), mistaken)
        assert torch.equal(dressed(swapped), after), "the one before is still there, at its own strength"


def test_a_folded_lora_dresses_alike_and_is_swapped_to_the_last_bit(
    lora: Path, toy: ToyFolders, data_cache: Path, tmp_path: Path
) -> None:
    config = TryOnConfig(data_cache_dir=str(data_cache))
    model = load_try_on(config, lora, fold=True)
    transformer = model.pipeline.transformer
    before = dressed(model)
    assert not [name for name, _ in transformer.named_parameters() if "lora_" in name]
    torch.testing.assert_close(before, picture(lora, data_cache), rtol=0, atol=1e-4)

    other = write_lora(toy, tmp_path / "other", rank=2, seed=1)
    for mistaken, refusal in mistaken_loras(other, tmp_path):
        with pytest.raises(ValueError, match=refusal):
            swap_lora(model, config, mistaken)
        assert torch.equal(dressed(model), before), "it is still there"

    swapped = swap_lora(model, config, other)
    assert torch.equal(dressed(swapped), picture(other, data_cache, fold=True))
    half = swap_lora(swapped, replace(config, lora_scale=0.5), other)
    assert torch.equal(dressed(half), picture(other, data_cache, fold=True, lora_scale=0.5))
    swap_lora(half, replace(config, lora_scale=0), other)
    untouched = load_transformer(toy.transformer, torch.float32).state_dict()
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in transformer.state_dict().items())


def test_quantised_and_offloaded_weights_keep_the_lora_in_layers_of_its_own(lora: Path, data_cache: Path) -> None:
    for options in ({"quantization": "int8"}, {"offload": True}):
        model = load_try_on(TryOnConfig(data_cache_dir=str(data_cache), **options), lora, fold=True)
        assert model.originals is None
        assert torch.equal(dressed(model), picture(lora, data_cache, **options))


def test_a_picture_that_is_not_finite_is_never_a_file(lora: Path, data_cache: Path, tmp_path: Path) -> None:
    """Each of the LoRA's weights is finite, what they compute is not."""
    with safe_open(lora, framework="pt") as file:
        save_file({key: torch.full_like(each, 3e38) for key, each in load_file(lora).items()}, lora, file.metadata())
    model = load_try_on(TryOnConfig(data_cache_dir=str(data_cache)), lora)
    picture, mask = Image.new("RGB", (64, 96), "grey"), Image.new("L", (64, 96), 255)
    request = Request(tmp_path, tmp_path, None, None, "upper", tmp_path / "out.png")
    opened, how = Pictures(picture, picture, mask, "upper"), Denoising(1, 30.0, range(2))
    with pytest.raises(ValueError, match="the picture came out with numbers that are not finite: give another LoRA"):
        dress(model, opened, how, request, Recipe({}, {}, (), {}))
    assert not list(tmp_path.glob("out*"))


DRAWN = DrawnData(1, EVALUATION_SEED, ("upper",), 96, 80)[0]  # of those that the toy knows


def drawn(model: TryOnModel, cache: float | None, **more: object) -> Tensor:
    """DRAWN in a top, [1, 3, H, W/2], in enough steps to skip some."""
    settings = {"steps": 8, "guidance": 30.0, "seeds": [0], "cache": cache, **more}
    return try_on_batch(model.pipeline, [DRAWN], [model.prompts["upper"]], **settings)


def mild_lora(toy: ToyFolders, folder: Path) -> Path:
    """A LoRA that changes the picture, and leaves it one."""
    transformer = load_transformer(toy.transformer, torch.float32)
    disturb(add_lora(transformer, 4, 4, seed=0))
    folders = {"base": str(toy.base), "transformer": str(toy.transformer)}
    save_lora(folder, transformer, replace(FACTS, **folders, max_sequence_length=16, prompt="category"))
    return folder / LORA_FILE


@pytest.mark.parametrize(
    ("fold", "options"),
    [(True, {}), (False, {"offload": True})],
    ids=["folded", "in layers, offloaded"],
)
def test_a_cache_skips_steps_and_leaves_nothing_behind(
    toy: ToyFolders, data_cache: Path, tmp_path: Path, fold: bool, options: dict
) -> None:
    lora = mild_lora(toy, tmp_path)
    config = TryOnConfig(data_cache_dir=str(data_cache), cache="first_block", lora_scale=0.1, **options)
    model = load_try_on(config, lora, fold=fold)
    assert model.cache == 0.1
    plain, cached = drawn(model, None), drawn(model, model.cache)
    assert 30 < psnr(cached, plain, DRAWN.mask[None]).item() < 60, "near, but steps were skipped"

    class Enough(Exception):
        pass

    def stop(step: int) -> None:
        if step == 3:
            raise Enough

    with pytest.raises(Enough):
        drawn(model, model.cache, each_step=stop)
    assert torch.equal(drawn(model, model.cache), cached), "a picture that was stopped is of no use to the next"
    assert torch.equal(drawn(model, None), plain)


def test_try_on_uses_the_cache_that_was_asked_for(lora: Path, data_cache: Path) -> None:
    model = load_try_on(TryOnConfig(data_cache_dir=str(data_cache), cache="first_block:1"), lora)
    noise = np.random.default_rng(0).integers(0, 256, (96, 64, 3), dtype=np.uint8)
    person, mask = Image.fromarray(noise), Image.new("L", (64, 96), 255)
    settings = {"steps": 4, "guidance": 30.0, "seeds": [0]}
    (cached,) = try_on(model, person, person, mask, "upper", **settings)
    (plain,) = try_on(replace(model, cache=None), person, person, mask, "upper", **settings)
    assert (np.asarray(cached) != np.asarray(plain)).any()


def test_compiled_blocks_are_cached_and_not_compiled_again_for_a_folded_lora(
    toy: ToyFolders, data_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without code being generated, which takes minutes: what is traced, and how often, is the same."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    mild, other = mild_lora(toy, tmp_path / "mild"), write_lora(toy, tmp_path / "other", rank=2, seed=1)
    config = TryOnConfig(data_cache_dir=str(data_cache), lora_scale=0.1)
    eager, model = (load_try_on(replace(config, compile=each), mild, fold=True) for each in (False, True))
    for cache in (None, 0.1):
        torch.testing.assert_close(drawn(model, cache), drawn(eager, cache), rtol=0, atol=1e-4)
    with safe_open(other, framework="pt") as file:
        header = file.metadata()
    header[FACTS_KEY] = json.dumps(asdict(replace(model.facts, step=2)))
    save_file(load_file(other), other, header)
    compiled = counters["stats"]["unique_graphs"]
    assert compiled > 0
    swapped = swap_lora(model, config, other)
    assert not torch.equal(drawn(swapped, None), drawn(eager, None))
    drawn(swapped, 0.1)
    assert counters["stats"]["unique_graphs"] == compiled
    torch.compiler.reset()


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
    assert not same_models(model, OF_ANOTHER_PROJECT)
    unknown = replace(model, facts=OF_ANOTHER_PROJECT)
    assert not same_models(unknown, OF_ANOTHER_PROJECT), "their layers may differ"


def test_garments_that_a_lora_leaves_to_the_model_are_dressed_without_it(
    lora: Path, toy: ToyFolders, data_cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = TryOnConfig(data_cache_dir=str(data_cache))
    partial_lora = write_lora(toy, tmp_path / "partial", rank=4, seed=0, base_categories=("upper",))
    with caplog.at_level(logging.INFO):
        model, folded = load_try_on(config, partial_lora, fold=True), load_try_on(config, lora, fold=True)
    assert caplog.text.count("upper-body garments are dressed without the LoRA, which was not trained on them") == 1
    assert model.originals is None, "it could not be switched off"
    assert not same_models(folded, model.facts), "it would be folded"
    person = Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 64, 3), dtype=np.uint8))
    mask = Image.new("L", person.size, 255)

    def result(model: TryOnModel, category: Category) -> np.ndarray:
        return np.asarray(try_on(model, person, person, mask, category, steps=2, guidance=30.0, seeds=[0])[0])

    plain, whole = load_try_on(replace(config, lora_scale=0), lora), load_try_on(config, lora)
    for _ in range(2):  # what is switched off is switched on again
        assert np.array_equal(result(model, "upper"), result(plain, "upper"))
        assert np.array_equal(result(model, "lower"), result(whole, "lower"))
    assert not np.array_equal(result(whole, "upper"), result(plain, "upper"))
    with pytest.raises(ValueError, match="not learnt to take upper-body garments off, as it was trained with --base_"):
        check_takes_off(replace(model.facts, try_off_prompt="a {garment}"), "upper")


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
