"""The inference command line, on a LoRA trained on the toy."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from test_parsing import write_parser
from tryon.lora import ADAPTER_KEY, FACTS_KEY, read_facts
from tryon.masks import agnostic_mask
from tryon.parsing import ATR
from tryon.runs import find_lora
from tryon.toy.model import ToyFolders
from tryon_inference_lora import main

pytestmark = pytest.mark.e2e


def flags_for(folder: Path, data_cache: Path, *flags: str | Path) -> list[str]:
    """The needed flags, output apart, then `flags`, of which a repeated one counts."""
    needed = (
        "--image", folder / "person.png", "--mask", folder / "mask.png", "--garment", folder / "garment.png",
        "--steps", "2", "--data_cache_dir", data_cache,
    )  # fmt: skip
    return [str(flag) for flag in (*needed, *flags)]


def test_a_person_is_dressed_and_the_lora_is_used(
    run: Path, pictures: Path, data_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plain, diptych = pictures / "out.png", pictures / "plain.png", pictures / "diptych.png"
    flags = flags_for(pictures, data_cache, "--lora", run, "--category", "lower")
    main([*flags, "--output_tryon", str(out), "--output_diptych", str(diptych)])
    person, dressed = (np.asarray(Image.open(path).convert("RGB")) for path in (pictures / "person.png", out))
    hidden = np.asarray(Image.open(pictures / "mask.png")) > 0
    assert (person == dressed)[~hidden].all()
    assert (person != dressed)[hidden].any(-1).mean() > 0.9
    assert Image.open(diptych).size == (128, 96)
    said = capsys.readouterr().out
    assert "TOY MODEL, because the LoRA was trained on it" in said and "loading " in said and "2 steps" in said
    assert "this LoRA was trained for" not in said and "white all over" not in said

    Image.new("L", (64, 96), 255).save(pictures / "white.png")
    main([*flags, "--output_tryon", str(plain), "--steps", "1", "--mask", str(pictures / "white.png")])
    assert "the mask is white all over" in capsys.readouterr().out
    main([*flags, "--output_tryon", str(plain), "--lora_scale", "0", "--toy"])
    assert (np.asarray(Image.open(plain)) != dressed).any()


def test_the_mask_is_made_from_what_is_worn_by_the_rule_of_the_training(
    run: Path, pictures: Path, data_cache: Path, tmp_path: Path
) -> None:
    out, worn = pictures / "out.png", Image.new("L", (64, 96))
    worn.paste(255, (20, 40, 44, 60))
    worn.save(pictures / "worn.png")
    flags = flags_for(
        pictures, data_cache, "--category", "lower", "--output_tryon", out, "--worn", pictures / "worn.png"
    )
    del flags[flags.index("--mask") : flags.index("--mask") + 2]
    with pytest.raises(ValueError, match="was trained with masks that its data set had: give a --mask"):
        main([*flags, "--lora", str(run)])
    state, facts = load_file(find_lora(str(run))), read_facts(find_lora(str(run)))
    for rule, name in (("rectangle", "by_rule"), ("hull", "by_body")):
        header = {"format": "pt", FACTS_KEY: json.dumps(asdict(replace(facts, mask_rule=rule)))}
        with safe_open(find_lora(str(run)), framework="pt") as file:
            header[ADAPTER_KEY] = file.metadata()[ADAPTER_KEY]
        save_file(state, tmp_path / f"{name}.safetensors", header)
    main([*flags, "--lora", str(tmp_path / "by_rule.safetensors")])
    hidden = agnostic_mask(torch.from_numpy(np.array(worn) > 0)[None], "lower")[0].numpy()
    person, dressed = (np.asarray(Image.open(path).convert("RGB")) for path in (pictures / "person.png", out))
    assert (person == dressed)[~hidden].all() and (person != dressed)[hidden].any(-1).mean() > 0.9

    with pytest.raises(ValueError, match="--parser has no use: this LoRA was trained with rectangles"):
        main([*flags, "--lora", str(tmp_path / "by_rule.safetensors"), "--parser", "somebody/parser"])

    by_body = [*flags, "--lora", str(tmp_path / "by_body.safetensors")]
    with pytest.raises(ValueError, match="the mask rule hull needs to know the person's parts: name a parser"):
        main(by_body)
    main([*by_body, "--parser", write_parser(tmp_path / "parser", ATR)])
    assert (person != np.asarray(Image.open(out).convert("RGB"))).any()


def test_what_is_refused(run: Path, pictures: Path, data_cache: Path, toy: ToyFolders) -> None:
    out = ("--output_tryon", pictures / "out.png")
    state = load_file(find_lora(str(run)))
    state["transformer.nowhere.lora_A.weight"] = next(iter(state.values())).clone()
    save_file(state, pictures / "odd.safetensors")
    toy_flags = ("--base", toy.base, "--transformer", toy.transformer)
    (pictures / "words.png").write_text("no picture")
    shutil.copytree(run / "checkpoint-1", pictures / "checkpoint-1")
    damaged = bytearray(find_lora(str(pictures / "checkpoint-1")).read_bytes())
    damaged[-1] ^= 1
    find_lora(str(pictures / "checkpoint-1")).write_bytes(damaged)
    Image.new("RGBA", (64, 96), (255, 255, 255, 0)).save(pictures / "clear.png")
    for flags, message in (
        (("--lora", run, *out), "say --category upper, lower or full"),
        (("--lora", run, "--category", "upper", *out, "--mask", pictures / "black.png"), "the mask has no white in it"),
        (("--lora", run, "--category", "upper", *out, "--mask", pictures / "clear.png"), "the mask has no white in it"),
        (("--lora", run, *out, "--output_diptych", pictures / "out.png"), "name the same file"),
        (("--lora", run, *out, "--garment", pictures / "words.png"), "words.png cannot be used"),
        (("--lora", pictures / "odd.safetensors", *out, *toy_flags, "--height", "96", "--width", "64"), "does not fit"),
        (("--lora", pictures / "checkpoint-1", "--category", "upper", *out), "weights.safetensors is damaged"),
        (("--lora", run, *out, "--worn", pictures / "mask.png"), "either --mask or --worn; --worn needs to know"),
        (("--lora", run, "--image", "nowhere.png"), "--output_tryon is missing; --image nowhere.png is no file"),
    ):
        with pytest.raises(ValueError, match=message):
            main(flags_for(pictures, data_cache, *flags))
    assert not (pictures / "out.png").exists()
