"""The inference command line, on a LoRA trained on the toy."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from conftest import ListSource, make_sample
from train_flux_inpaint import train
from tryon.config import TrainConfig, on_toy
from tryon.runs import find_lora
from tryon.toy.model import ToyFolders
from tryon_inference_lora import main

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def run(toy: ToyFolders, data_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one large step, so that the LoRA is seen in the picture."""
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
    rng = np.random.default_rng(0)
    for name in ("person", "garment"):
        Image.fromarray(rng.integers(0, 256, (96, 64, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    mask = Image.new("L", (64, 96))
    mask.paste(255, (10, 30, 50, 90))
    mask.save(tmp_path / "mask.png")
    Image.new("L", (64, 96)).save(tmp_path / "black.png")
    return tmp_path


def flags_for(folder: Path, data_cache: Path, *flags: str | Path) -> list[str]:
    """The needed flags, output apart, then `flags`, of which a repeated one counts."""
    needed = (
        "--image", folder / "person.png", "--mask", folder / "mask.png", "--garment", folder / "garment.png",
        "--steps", "2", "--data_cache_dir", data_cache,
    )  # fmt: skip
    return [str(flag) for flag in (*needed, *flags)]


def test_a_person_is_dressed_and_the_lora_is_used(run: Path, pictures: Path, data_cache: Path) -> None:
    out, plain, diptych = pictures / "out.png", pictures / "plain.png", pictures / "diptych.png"
    flags = flags_for(pictures, data_cache, "--lora", run, "--category", "lower")
    main([*flags, "--output_tryon", str(out), "--output_diptych", str(diptych)])
    person, dressed = (np.asarray(Image.open(path).convert("RGB")) for path in (pictures / "person.png", out))
    hidden = np.asarray(Image.open(pictures / "mask.png")) > 0
    assert (person == dressed)[~hidden].all()
    assert (person != dressed)[hidden].any(-1).mean() > 0.9
    assert Image.open(diptych).size == (128, 96)

    main([*flags, "--output_tryon", str(plain), "--lora_scale", "0", "--toy"])
    assert (np.asarray(Image.open(plain)) != dressed).any()


def test_what_is_refused(run: Path, pictures: Path, data_cache: Path, toy: ToyFolders) -> None:
    out = ("--output_tryon", pictures / "out.png")
    state = load_file(find_lora(str(run)))
    state["transformer.nowhere.lora_A.weight"] = next(iter(state.values())).clone()
    save_file(state, pictures / "odd.safetensors")
    toy_flags = ("--base", toy.base, "--transformer", toy.transformer)
    (pictures / "words.png").write_text("no picture")
    for flags, message in (
        (("--lora", run, *out), "say --category upper, lower or full"),
        (("--lora", run, "--category", "upper", *out, "--mask", pictures / "black.png"), "the mask has no white in it"),
        (("--lora", run, *out, "--garment", pictures / "words.png"), "cannot be read as a picture"),
        (("--lora", pictures / "odd.safetensors", *out, *toy_flags, "--height", "96", "--width", "64"), "does not fit"),
        (("--lora", run, "--image", "nowhere.png"), "--output_tryon is missing; --image nowhere.png is no file"),
    ):
        with pytest.raises(ValueError, match=message):
            main(flags_for(pictures, data_cache, *flags))
    assert not (pictures / "out.png").exists()
