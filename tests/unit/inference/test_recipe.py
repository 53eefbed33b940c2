"""How a picture was made is written into it, and read as the command line that makes it again."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from tryon.config import TryOnConfig
from tryon.inference.pairs_file import Request
from tryon.inference.recipe import KEY, Recipe, is_made, of_result, read_recipe, recipe_of, save_picture, with_request
from tryon_inference_lora import PictureConfig, read_settings

SEEDS = range(5, 7)


@pytest.fixture
def request_and_recipe(pictures: Path) -> tuple[Request, Recipe]:
    """A try-on of files in the folder, and what its results share."""
    lora = pictures / "my lora.safetensors"
    lora.write_text("weights")
    settings = TryOnConfig(lora_scale=0.1, cache="first_block:0.05", height=96, offload=True, cache_dir="/somewhere")
    flags = PictureConfig(lora=(str(lora), "base"), category="upper", steps=4, guidance_scale=1e-4)
    request = Request(pictures / "person.png", pictures / "garment.png", None, None, "lower", pictures / "out.png")
    return request, recipe_of({str(lora): lora}, asdict(settings) | asdict(flags))


@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_a_picture_carries_its_recipe(request_and_recipe: tuple[Request, Recipe], tmp_path: Path, kind: str) -> None:
    request, recipe = request_and_recipe
    recipe, file = with_request(recipe, request), tmp_path / f"out.{kind}"
    save_picture(picture := Image.new("RGB", (8, 8), "red"), file, recipe)
    assert read_recipe(file) == recipe
    assert recipe.fingerprints.keys() == {"lora", "image", "garment"} and recipe.versions.keys() >= {"tryon", "torch"}
    assert recipe.loras == (f"{tmp_path.name}/my lora.safetensors", "base")
    assert recipe.flags["category"] == "lower", "the line's own"
    assert not recipe.flags.keys() & {"cache_dir", "data_cache_dir", "mask", "output_grid"}
    if kind == "png":
        assert (np.asarray(Image.open(file)) == np.asarray(picture)).all()
    assert not list(tmp_path.glob(".out*")), "what is written beside is put in its place"


def test_a_picture_without_a_recipe_has_none(tmp_path: Path) -> None:
    (tmp_path / "words.png").write_text("no picture")
    for number, text in enumerate(("", "[]", '{"flags": {}}', '{"flags": {"lora": []}, "loras": [], "of": "later"}')):
        info = PngImagePlugin.PngInfo()
        info.add_text(KEY, text)
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png", pnginfo=info)
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.jpg")
    assert read_recipe(tmp_path / "nowhere.png") is None
    with pytest.raises(ValueError, match="--again .*nowhere.png is no file$"):
        read_settings(["--again", str(tmp_path / "nowhere.png")])
    for file in tmp_path.iterdir():
        assert read_recipe(file) is None, file
        with pytest.raises(ValueError, match="does not say how it was made: give a picture that was written here"):
            read_settings(["--again", str(file)])


def test_a_recipe_is_read_as_flags_among_which_those_given_count(
    request_and_recipe: tuple[Request, Recipe], pictures: Path
) -> None:
    request, recipe = request_and_recipe
    recipe = replace(recipe, flags=recipe.flags | {"lora": recipe.flags["lora"][:1], "toy": True})
    again = pictures / "seed 5.png"
    save_picture(Image.new("RGB", (8, 8)), again, of_result(with_request(recipe, request), 5, request.output))

    config, flags, fingerprints = read_settings(["--again", str(again)])
    assert config == TryOnConfig(toy=True, lora_scale=0.1, cache="first_block:0.05", height=96, offload=True)
    person, garment = (str(pictures / f"{name}.png") for name in ("person", "garment"))
    assert flags == PictureConfig(
        lora=recipe.flags["lora"], again=str(again), image=person, garment=garment, category="lower", steps=4,
        guidance_scale=1e-4, seed=5, output_tryon=str(pictures / "seed 5-again.png"),
    )  # fmt: skip
    assert fingerprints.keys() == {"lora", "image", "garment"}

    other = ["--lora", "a", "base", "--lora", "b", "--garment", person, "--seed", "8"]
    config, flags, fingerprints = read_settings(["--again", str(again), *other])
    assert not config.toy, "that follows from the LoRA"
    assert (flags.lora, flags.seed, flags.garment, flags.output_tryon) == (("a", "base", "b"), 8, person, None)
    assert flags.output_grid == str(pictures / "seed 5-compared.png"), "several are compared"
    assert fingerprints.keys() == {"image"}, "what is given may be anything"
    _, flags, _ = read_settings(["--again", str(again), "--pairs", "pairs.csv"])
    assert (flags.image, flags.garment, flags.output_tryon, flags.steps) == (None, None, None, 4)

    for name, asked, output in (
        ("again", [], "output_tryon"),
        ("again-seed6", ["--num_results", "2"], "output_tryon"),
        ("compared", other, "output_grid"),
    ):
        taken = pictures / f"seed 5-{name}.png"
        taken.touch()
        with pytest.raises(ValueError, match=f"{taken.name} is there already: name another file with --{output}"):
            read_settings(["--again", str(again), *asked])
        read_settings(["--again", str(again), *asked, f"--{output}", str(taken)])
        taken.unlink()

    request.person.unlink()
    with pytest.raises(ValueError, match="--image .*person.png is no file"):
        read_settings(["--again", str(again)])
    (recipe,) = (read_recipe(again),)
    save_picture(Image.new("RGB", (8, 8)), again, replace(recipe, flags=recipe.flags | {"colour": "red"}))
    with pytest.raises(ValueError, match="unknown flag --colour"):
        read_settings(["--again", str(again)])


def test_results_are_made_while_content_and_settings_are_the_same(
    request_and_recipe: tuple[Request, Recipe], pictures: Path
) -> None:
    request, shared = request_and_recipe

    def made(request: Request = request, shared: Recipe = shared) -> bool:
        return is_made(with_request(shared, request), request.output, SEEDS)

    for seed in SEEDS:
        assert not made()
        file = pictures / f"out-seed{seed}.png"
        save_picture(Image.new("RGB", (8, 8)), file, of_result(with_request(shared, request), seed, file))
    assert made()
    moved = request.person.rename(pictures / "ada.png")
    assert not made() and made(replace(request, person=moved)), "the content counts"
    assert not made(replace(request, person=moved, category="upper"))
    assert not made(replace(request, person=moved, mask=pictures / "mask.png"))
    assert not made(replace(request, person=moved), replace(shared, flags=shared.flags | {"steps": 5}))
    assert made(replace(request, person=moved), replace(shared, versions={}))
    Image.open(request.garment).rotate(180).save(request.garment)
    assert not made(replace(request, person=moved))
    assert json.dumps(shared.flags), "a recipe is JSON"
