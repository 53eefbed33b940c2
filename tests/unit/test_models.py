"""Loading: the layouts that exist, and what is refused in words."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from tryon.models import files_fingerprint, load_scheduler, load_text_encoders, load_transformer, load_vae
from tryon.toy.model import ToyFolders


def test_a_transformer_at_the_root_or_in_its_subfolder(toy: ToyFolders, tmp_path: Path) -> None:
    shutil.copytree(toy.transformer, tmp_path / "fill" / "transformer")
    at_root = load_transformer(str(toy.transformer), None, torch.float32)
    in_subfolder = load_transformer(str(tmp_path / "fill"), None, torch.float32)
    for expected, found in zip(at_root.parameters(), in_subfolder.parameters(), strict=True):
        assert torch.equal(expected, found)
        assert not found.requires_grad


def test_a_sharded_transformer(toy: ToyFolders, tmp_path: Path) -> None:
    whole = load_transformer(str(toy.transformer), None, torch.float32)
    whole.save_pretrained(tmp_path, max_shard_size="5MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    sharded = load_transformer(str(tmp_path), None, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), sharded.parameters(), strict=True))


def test_a_transformer_that_is_no_fill_transformer_is_refused(toy: ToyFolders, tmp_path: Path) -> None:
    config = {**json.loads((toy.transformer / "config.json").read_text()), "in_channels": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has 64 input channels, a FLUX-Fill transformer has 384"):
        load_transformer(str(tmp_path), None, torch.float32)


def test_missing_parts_are_named(toy: ToyFolders, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no config.json, neither at its root nor in transformer/"):
        load_transformer(str(tmp_path), None, torch.float32)
    with pytest.raises(ValueError, match="has no vae/config.json"):
        load_vae(str(toy.transformer), None, torch.float32)
    with pytest.raises(ValueError, match="has no tokenizer, tokenizer_2, text_encoder, text_encoder_2"):
        load_text_encoders(str(toy.transformer), None, torch.float32)
    with pytest.raises(ValueError, match="has no scheduler"):
        load_scheduler(str(toy.transformer), None)


def test_a_hub_name_without_a_hub_is_one_sentence(tmp_path: Path) -> None:
    """HF_HUB_OFFLINE is set for the tests."""
    with pytest.raises(ValueError, match="not downloaded yet and the hub cannot be reached"):
        load_transformer("somebody/something", str(tmp_path), torch.float32)
    with pytest.raises(ValueError, match="not downloaded yet and the hub cannot be reached"):
        load_vae("somebody/something", str(tmp_path), torch.float32)
    with pytest.raises(ValueError, match="neither a folder here nor a repository"):
        load_vae("/no/such/folder", str(tmp_path), torch.float32)


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "vae", "transformer"])
def test_incomplete_weights_are_refused(part: str, toy: ToyFolders, tmp_path: Path) -> None:
    """The libraries would only warn, and train on with invented weights."""
    shutil.copytree(toy.base.parent, tmp_path / "toy")
    folder = tmp_path / "toy" / (part if part == "transformer" else f"base/{part}")
    (file,) = folder.glob("*.safetensors")
    state = load_file(file)
    state.pop(sorted(key for key in state if "layer" in key or "block" in key)[0])
    save_file(state, file, {"format": "pt"})
    load = {"vae": load_vae, "transformer": load_transformer}.get(part, load_text_encoders)
    with pytest.raises(ValueError, match="are incomplete: 1 are missing"):
        load(str(folder if part == "transformer" else folder.parent), None, torch.float32)


def test_bf16_is_honoured(toy: ToyFolders) -> None:
    transformer: FluxTransformer2DModel = load_transformer(str(toy.transformer), None, torch.bfloat16)
    assert {parameter.dtype for parameter in transformer.parameters()} == {torch.bfloat16}
    assert load_vae(str(toy.base), None, torch.bfloat16).dtype == torch.bfloat16
    assert load_text_encoders(str(toy.base), None, torch.bfloat16).text_encoder_2.dtype == torch.bfloat16


def test_the_toy_is_the_same_whenever_it_is_built(toy: ToyFolders, tmp_path: Path) -> None:
    from tryon.toy.model import build_toy_model

    build_toy_model(tmp_path / "again")
    for name in ("base/vae", "base/text_encoder", "base/text_encoder_2", "transformer"):
        for path in (toy.base.parent / name).iterdir():
            assert path.read_bytes() == (tmp_path / "again" / name / path.name).read_bytes(), path


def test_a_fingerprint_follows_the_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    first = files_fingerprint(tmp_path)
    assert files_fingerprint(tmp_path) == first
    (tmp_path / "a").write_text("xy")
    assert files_fingerprint(tmp_path) != first
