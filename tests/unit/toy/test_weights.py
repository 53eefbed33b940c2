"""The toy's shipped weights: that they are what their manifest says, and what VAE, text encoders and parser can do."""

import colorsys
import json
from hashlib import sha256
from itertools import combinations, product
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file

from tryon.data.category import CATEGORIES, Category
from tryon.data.human_parser import Parser
from tryon.files import MANIFEST
from tryon.flux.encode import decode_latents, encode_pictures
from tryon.flux.prompt_cache import cache_prompts
from tryon.flux.prompts import TRY_OFF_PROMPT, prompts_of
from tryon.toy.examples import DrawnData, labelled_person
from tryon.toy.model import WEIGHTS, ToyFolders, build_once, toy_name
from tryon.toy.pretrain.parser import measure_parser
from tryon.toy.pretrain.vae import draw_diptychs, measure_vae


def test_weights_are_what_their_manifest_says() -> None:
    manifest = json.loads((WEIGHTS / MANIFEST).read_text())
    files = sorted(WEIGHTS.glob("*.safetensors"))
    names = [file.name for file in files]
    assert names == sorted(manifest) == ["parser.safetensors", "transformer.safetensors", "vae.safetensors"]
    for file in files:
        facts = manifest[file.name]
        assert facts["sha256"] == sha256(file.read_bytes()).hexdigest()
        assert facts.keys() >= {"command", "seed", "steps", "hardware", "minutes", "measured"}
        assert file.stat().st_size < 16e6
        assert all(tensor.dtype == torch.float16 for tensor in load_file(file).values())
    assert sum(file.stat().st_size for file in files) <= 20e6


def test_a_parser_does_not_rename_the_toy(tmp_path: Path) -> None:
    """LoRAs know the toy by this name."""
    for name in ("vae", "transformer"):
        (tmp_path / f"{name}.safetensors").symlink_to(WEIGHTS / f"{name}.safetensors")
    assert toy_name(tmp_path) == toy_name()


@pytest.mark.parametrize("category", CATEGORIES)
def test_drawings_come_through_the_vae(category: Category, vae: AutoencoderKL) -> None:
    measured = measure_vae(vae, draw_diptychs(DrawnData(12, 5, (category,), 192, 144), category))
    assert measured["psnr"] >= 29 and measured["psnr_inside"] >= 23


@torch.no_grad()
def test_flat_colours_come_through_the_vae(vae: AutoencoderKL) -> None:
    """A patch of each hue, pale and strong, dark and light, on white."""
    errors = []
    for hue, saturation, value in product(range(8), (0.4, 1.0), (0.4, 1.0)):
        colour = torch.tensor(colorsys.hsv_to_rgb(hue / 8, saturation, value))
        picture = torch.ones(3, 96, 96)
        picture[:, 24:72, 24:72] = 2 * colour[:, None, None] - 1
        seen = decode_latents(vae, encode_pictures(vae, picture[None]))[0, :, 32:64, 32:64].clamp(-1, 1).mean((1, 2))
        errors.append(((seen + 1) / 2 - colour).abs().max().item())
    assert max(errors) < 0.1 and sum(errors) / len(errors) < 0.04, errors


def test_the_text_encoders_tell_the_prompts_apart(toy: ToyFolders, tmp_path: Path) -> None:
    prompts = [*prompts_of("category", TRY_OFF_PROMPT).values()]
    cached = cache_prompts(prompts, toy.base, 16, torch.float32, torch.device("cpu"), tmp_path)
    for one, other in combinations((cached[prompt] for prompt in prompts), 2):
        assert (one.embeds - other.embeds).std() > 0.3 * one.embeds.std()
        assert (one.pooled - other.pooled).std() > 0.1 * one.pooled.std()


def test_the_parser_knows_the_parts_of_drawn_people(drawn_parser: Parser) -> None:
    """Of all categories, views and sizes."""
    measured = measure_parser(drawn_parser, [labelled_person(9, index) for index in range(60)])
    assert measured["accuracy"] >= 0.98 and measured["iou"] >= 0.9 and measured["iou_worn"] >= 0.9


def test_of_two_that_build_one_folder_the_faster_is_kept(tmp_path: Path) -> None:
    folder = tmp_path / "data"

    def build(staging: Path) -> None:
        staging.mkdir()
        folder.mkdir()
        (folder / "built").write_text("by another process")

    build_once(folder, build)
    assert [file.name for file in folder.iterdir()] == ["built"]
    with pytest.raises(NotADirectoryError):
        build_once(tmp_path / "other", lambda staging: (folder / "built" / "below").mkdir())
