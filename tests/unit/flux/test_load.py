"""Loading: the layouts that exist, and what is refused in words."""

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from tryon.files import files_fingerprint
from tryon.flux.load import (
    FILL_CONFIG,
    ModelFiles,
    fetch_models,
    load_text_encoders,
    load_transformer,
    load_vae,
    read_transformer_config,
)
from tryon.toy.model import ToyFolders

LOADERS = {"vae": partial(load_vae, device=torch.device("cpu")), "transformer": load_transformer}


def test_a_transformer_at_the_root_or_in_its_subfolder(toy: ToyFolders, tmp_path: Path) -> None:
    shutil.copytree(toy.transformer, tmp_path / "fill" / "transformer")
    at_root = load_transformer(toy.transformer, torch.float32)
    files = fetch_models(str(toy.base), str(tmp_path / "fill"), None)
    assert files == ModelFiles(toy.base, tmp_path / "fill" / "transformer")
    in_subfolder = load_transformer(files.transformer, torch.float32)
    for expected, found in zip(at_root.parameters(), in_subfolder.parameters(), strict=True):
        assert torch.equal(expected, found)
        assert not found.requires_grad


def test_a_sharded_transformer(toy: ToyFolders, tmp_path: Path) -> None:
    whole = load_transformer(toy.transformer, torch.float32)
    whole.save_pretrained(tmp_path, max_shard_size="5MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    sharded = load_transformer(tmp_path, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), sharded.parameters(), strict=True))


@pytest.mark.parametrize("config_beside", [True, False])
def test_a_transformer_in_a_single_file(config_beside: bool, toy: ToyFolders, tmp_path: Path) -> None:
    file = tmp_path / "my fill.safetensors"
    shutil.copy(toy.transformer / "diffusion_pytorch_model.safetensors", file)
    if not config_beside:  # then it is taken for a full-size one, which it is not
        assert read_transformer_config(str(file), None) == FILL_CONFIG
        with pytest.raises(ValueError, match=r"the weights in .*my fill.safetensors cannot be loaded \(.*shape"):
            load_transformer(file, torch.float32)
        return
    shutil.copy(toy.transformer / "config.json", tmp_path)
    assert fetch_models(str(toy.base), str(file), None).transformer == file
    whole = load_transformer(toy.transformer, torch.float32)
    single = load_transformer(file, torch.float32)
    for (name, expected), found in zip(whole.named_parameters(), single.parameters(), strict=True):
        assert torch.equal(expected, found) and not found.requires_grad, name
    state = load_file(file)
    state.pop("x_embedder.bias")
    save_file(state, file)
    with pytest.raises(ValueError, match=r"are incomplete: 1 are missing.*x_embedder.bias"):
        load_transformer(file, torch.float32)
    file.write_text("no weights")
    with pytest.raises(ValueError, match="my fill.safetensors cannot be loaded"):
        load_transformer(file, torch.float32)


def test_a_transformer_that_is_no_fill_transformer_is_refused(toy: ToyFolders, tmp_path: Path) -> None:
    config = {**json.loads((toy.transformer / "config.json").read_text()), "in_channels": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has 64 input channels, a FLUX-Fill transformer has 384"):
        fetch_models(str(toy.base), str(tmp_path), None)


def test_missing_parts_are_named(toy: ToyFolders, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no config.json, neither at its root nor in transformer/"):
        fetch_models(str(toy.base), str(tmp_path), None)
    with pytest.raises(ValueError, match="has no tokenizer, tokenizer_2, text_encoder, text_encoder_2, vae, scheduler"):
        fetch_models(str(toy.transformer), str(toy.transformer), None)


def test_a_hub_name_without_a_hub_is_one_sentence(toy: ToyFolders, tmp_path: Path) -> None:
    """HF_HUB_OFFLINE is set for the tests."""
    with pytest.raises(ValueError, match="not downloaded yet, and the hub cannot be reached"):
        fetch_models(str(toy.base), "somebody/something", str(tmp_path))
    with pytest.raises(ValueError, match="not downloaded yet, and the hub cannot be reached"):
        fetch_models("somebody/something", str(toy.transformer), str(tmp_path))
    with pytest.raises(ValueError, match="neither a folder here nor a repository"):
        fetch_models("/no/such/folder", str(toy.transformer), str(tmp_path))


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "vae", "transformer"])
def test_incomplete_weights_are_refused(part: str, toy: ToyFolders, tmp_path: Path) -> None:
    """The libraries would only warn, and train on with invented weights."""
    shutil.copytree(toy.base.parent, tmp_path / "toy")
    folder = tmp_path / "toy" / (part if part == "transformer" else f"base/{part}")
    (file,) = folder.glob("*.safetensors")
    state = load_file(file)
    state.pop(sorted(key for key in state if "layer" in key or "block" in key)[0])
    save_file(state, file, {"format": "pt"})
    load = LOADERS.get(part, load_text_encoders)
    with pytest.raises(ValueError, match="are incomplete: 1 are missing"):
        load(folder if part == "transformer" else folder.parent, torch.float32)


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "vae", "transformer"])
def test_cut_or_missing_weights_are_refused(part: str, toy: ToyFolders, tmp_path: Path) -> None:
    shutil.copytree(toy.base.parent, tmp_path / "toy")
    folder = tmp_path / "toy" / (part if part == "transformer" else f"base/{part}")
    (file,) = folder.glob("*.safetensors")
    load = LOADERS.get(part, load_text_encoders)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=f"the weights in {folder} cannot be loaded"):
        load(folder if part == "transformer" else folder.parent, torch.float32)
    file.unlink()
    with pytest.raises(ValueError, match=f"the weights in {folder} cannot be loaded"):
        load(folder if part == "transformer" else folder.parent, torch.float32)


def test_bf16_is_honoured(toy: ToyFolders) -> None:
    transformer: FluxTransformer2DModel = load_transformer(toy.transformer, torch.bfloat16)
    assert {parameter.dtype for parameter in transformer.parameters()} == {torch.bfloat16}
    assert load_vae(toy.base, torch.bfloat16, torch.device("cpu")).dtype == torch.bfloat16
    assert load_text_encoders(toy.base, torch.bfloat16).text_encoder_2.dtype == torch.bfloat16


def test_the_toy_is_the_same_whenever_it_is_built(toy: ToyFolders, tmp_path: Path) -> None:
    from tryon.toy.model import WEIGHTS, build_toy_model

    build_toy_model(tmp_path / "again", WEIGHTS)
    for name in ("base/vae", "base/text_encoder", "base/text_encoder_2", "transformer"):
        for path in (toy.base.parent / name).iterdir():
            assert path.read_bytes() == (tmp_path / "again" / name / path.name).read_bytes(), path


def test_a_fingerprint_follows_the_content_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "here" / "a.safetensors"
    file.parent.mkdir()
    file.write_bytes(bytes(1000))
    first = files_fingerprint(file.parent)
    os.utime(file, (1, 1))
    shutil.copytree(file.parent, tmp_path / "there")
    (tmp_path / "there" / "README.md").touch()
    (tmp_path / "there" / "pictures").mkdir()
    assert files_fingerprint(file.parent) == files_fingerprint(tmp_path / "there") == first
    for large in (False, True):
        monkeypatch.setattr("tryon.files.WHOLE_FILE", 10 if large else 2**28)
        monkeypatch.setattr("tryon.files.PLACE_SIZE", 4)
        before = files_fingerprint(file.parent)
        file.write_bytes(bytes(996) + b"last")
        assert files_fingerprint(file.parent) != before
        file.write_bytes(bytes(1001))
        assert files_fingerprint(file.parent) != before
        file.write_bytes(bytes(1000))
        assert files_fingerprint(file.parent) == before
