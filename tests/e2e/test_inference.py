"""The inference command line, on a LoRA trained on the toy."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from test_human_parser import write_parser
from tryon.config import TOY_NOTICE
from tryon.data.human_parser import ATR, UNSURE
from tryon.data.masks import agnostic_mask
from tryon.data.sample import to_picture
from tryon.flux.lora_header import ADAPTER_KEY, FACTS_KEY, read_facts
from tryon.flux.prompts import TRY_OFF_PROMPT
from tryon.inference.recipe import read_recipe
from tryon.runs import find_lora
from tryon.toy import draw
from tryon.toy.examples import EVALUATION_SEED, DrawnData
from tryon.toy.model import ToyFolders
from tryon_inference_lora import main

pytestmark = pytest.mark.e2e


def flags_for(folder: Path, data_cache: Path, *flags: str | Path) -> list[str]:
    """The needed flags, output apart, then `flags`, of which a repeated one counts."""
    needed = (
        "--image", folder / "person.png", "--mask", folder / "mask.png", "--garment", folder / "garment.png",
        "--data_cache_dir", data_cache,
    )  # fmt: skip
    return [str(flag) for flag in (*needed, *flags)]


@pytest.fixture(scope="module")
def by_rule(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's LoRA, as if its masks had been rectangles."""
    return with_rule(run, "rectangle", tmp_path_factory.mktemp("loras"))


def with_rule(run: Path, rule: str, folder: Path) -> Path:
    return with_facts(run, folder / f"{rule}.safetensors", mask_rule=rule)


def with_facts(run: Path, copy: Path, **facts: str) -> Path:
    """The run's LoRA, as if it had been trained otherwise."""
    file = find_lora(str(run))
    header = {"format": "pt", FACTS_KEY: json.dumps(asdict(replace(read_facts(file), **facts)))}
    with safe_open(file, framework="pt") as opened:
        header[ADAPTER_KEY] = opened.metadata()[ADAPTER_KEY]
    save_file(load_file(file), copy, header)
    return copy


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"))


def test_a_photograph_of_any_size_is_dressed_and_the_lora_is_used(
    run: Path, pictures: Path, data_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(1)
    person = Image.fromarray(rng.integers(0, 256, (517, 803, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6  # a portrait that the camera wrote lying on its side
    person.save(pictures / "person.png", exif=turned)
    mask = Image.new("L", (517, 803))
    mask.paste(255, (100, 200, 400, 803))
    mask.save(pictures / "mask.png")

    out, grid = pictures / "out.png", pictures / "grid.png"
    flags = flags_for(pictures, data_cache, "--lora", run, "--category", "lower")
    main([*flags, "--output_tryon", str(out), "--output_grid", str(grid), "--num_results", "2", "--seed", "4"])
    upright, hidden = np.asarray(person.rotate(-90, expand=True)), np.asarray(mask) > 0
    results = [pixels(pictures / f"out-seed{seed}.png") for seed in (4, 5)]
    for result in results:
        assert result.shape == (803, 517, 3)
        assert (result == upright)[~hidden].all(), "nothing outside the mask changes, not by one level"
        assert (result != upright)[hidden].any(-1).mean() > 0.9
    assert (results[0] != results[1]).any()
    assert Image.open(grid).size == (24 + 5 * 68, 24 + 100) and not out.exists()
    said = capsys.readouterr().out
    assert "TOY MODEL, because the LoRA was trained on it" in said and "loading " in said
    assert said.count(TOY_NOTICE) == 1, "not for each picture"
    assert "dressing, 1 step at guidance 30" in said, "as the LoRA was trained"
    assert "this LoRA was trained for" not in said and "the mask is white over" not in said

    plain = pictures / "plain.png"
    Image.new("L", (517, 803), 255).save(pictures / "white.png")
    main(
        [
            *flags,
            "--output_tryon",
            str(plain),
            "--steps",
            "2",
            "--guidance_scale",
            "7",
            "--mask",
            str(pictures / "white.png"),
        ]
    )
    said = capsys.readouterr().out
    assert (
        "white.png: the mask is white over 100% of the picture: all of that" in said
        and "dressing, 2 steps at guidance 7" in said
    )
    main([*flags, "--output_tryon", str(plain), "--seed", "4", "--lora_scale", "0", "--toy"])
    assert (pixels(plain) != results[0]).any()


def test_the_mask_is_made_by_the_rule_of_the_training(
    run: Path, by_rule: Path, pictures: Path, data_cache: Path, tmp_path: Path
) -> None:
    out, worn = pictures / "out.png", Image.new("L", (64, 96))
    worn.paste(255, (20, 40, 44, 60))
    worn.save(pictures / "worn.png")
    flags = flags_for(pictures, data_cache, "--category", "lower", "--output_tryon", out, "--steps", "1")
    del flags[flags.index("--mask") : flags.index("--mask") + 2]
    of_worn = [*flags, "--worn", str(pictures / "worn.png")]
    with pytest.raises(ValueError, match="was trained with masks that its data set had: give a --mask"):
        main([*of_worn, "--lora", str(run)])
    main([*of_worn, "--lora", str(by_rule)])
    region = torch.from_numpy(np.array(worn) > 0)[None]
    hidden = agnostic_mask(region, "lower", unsure=UNSURE)[0].numpy()
    person, dressed = pixels(pictures / "person.png"), pixels(out)
    assert (person == dressed)[~hidden].all() and (person != dressed)[hidden].any(-1).mean() > 0.9

    parser = write_parser(tmp_path / "parser", ATR)
    with pytest.raises(ValueError, match="--parser is not needed for the rectangles that this LoRA was trained with"):
        main([*of_worn, "--lora", str(by_rule), "--parser", parser])
    main([*of_worn, "--lora", str(with_rule(run, "hull", tmp_path)), "--parser", parser])
    assert (person != pixels(out)).any()


def test_drawn_pictures_are_at_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw.main([str(tmp_path / "drawn")])
    assert (
        f"{tmp_path}/drawn/person-1.png and {tmp_path}/drawn/garment-1.png: --category lower" in capsys.readouterr().out
    )
    assert {Image.open(file).size for file in (tmp_path / "drawn").iterdir()} == {(576, 768)}
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file cannot be written"):
        draw.main([str(tmp_path / "file")])


def test_a_category_is_enough(
    by_rule: Path, data_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The toy's parser finds what a drawn person wears."""
    data = DrawnData(2, EVALUATION_SEED, ("upper", "lower"), 192, 144)
    sample = data[1]
    to_picture(sample.person).save(tmp_path / "person.png")
    to_picture(sample.garment).save(tmp_path / "garment.png")
    flags = flags_for(tmp_path, data_cache, "--lora", by_rule, "--category", "lower", "--steps", "1")
    del flags[flags.index("--mask") : flags.index("--mask") + 2]
    out = tmp_path / "out.png"
    main([*flags, "--output_tryon", str(out)])
    changed = (pixels(tmp_path / "person.png") != pixels(out)).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    made = f"made a mask: rows {rows[0] + 1} to 192 of 192, columns {columns[0] + 1} to {columns[-1] + 1} of 144"
    assert made in capsys.readouterr().out
    true = sample.mask[0].bool().numpy()
    assert (changed & true).sum() / (changed | true).sum() > 0.85
    with pytest.raises(ValueError, match="no mask can be made and nothing given back: no/parser is .*, or give a mask"):
        main([*flags, "--output_tryon", str(out), "--parser", "no/parser"])

    capsys.readouterr()
    given = Image.new("L", (144, 192))
    given.paste(255, (0, 0, 144, 90))
    given.save(tmp_path / "mask.png")
    main([*flags, "--output_tryon", str(tmp_path / "given.png"), "--mask", str(tmp_path / "mask.png")])
    said = capsys.readouterr().out
    assert (
        "mask.png: the mask is white over 100% of face and hair above the clothes, as the parser sees them: they are"
        in said
    )
    assert "of the lower-body garment that is worn, as the parser sees it, lies outside the mask and will" in said

    back, again = tmp_path / "back.png", tmp_path / "back-again.png"
    main([*flags, "--output_tryon", str(back), "--give_back"])
    kept = (pixels(tmp_path / "person.png") == pixels(back)).all(-1)
    assert kept[~changed].all() and kept[changed].mean() > 0.1
    old = np.asarray(data.truth(1).masks["lower"]) > 0
    assert kept[old].mean() < 0.1, "the old garment is gone"
    assert "give_back" not in read_recipe(out).flags
    main(["--again", str(back), "--data_cache_dir", str(data_cache)])
    assert np.array_equal(pixels(back), pixels(again))


def test_pairs_of_a_file_are_dressed_and_bad_lines_listed(
    run: Path, pictures: Path, data_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "words.png").write_text("no picture")
    (pictures / "pairs.csv").write_text(
        "person,garment,mask,category,output\n"
        "person.png,garment.png,mask.png,lower,made/first.png\n"
        "words.png,garment.png,mask.png,lower,made/second.png\n"
        "person.png,garment.png,mask.png,trousers,made/third.png\n"
        "person.png,garment.png,,upper,made/fourth.png\n"
        "person.png,,mask.png,upper,made/fifth.png\n"
        "person.png,garment.png,mask.png\n"
        "person.png,garment.png,mask.png,full,made/last.jpg\n"
    )
    flags = ["--lora", str(run), "--pairs", str(pictures / "pairs.csv"), "--steps", "1"]
    flags += ["--data_cache_dir", str(data_cache), "--output_grid", str(pictures / "grid.png")]
    with pytest.raises(ValueError, match="5 of 7 pairs were not dressed, as is said above: line 3, 4, 5, 6, 7"):
        main(flags)
    assert sorted(path.name for path in (pictures / "made").iterdir()) == ["first.png", "last.jpg"]
    assert Image.open(pictures / "grid.png").size == (24 + 4 * 68, 24 + 2 * 100)
    said = capsys.readouterr().out
    assert "2 of 2: person.png in garment.png" in said
    problems = ("line 3: the person", "line 4: the category trousers is none of", "line 5: this LoRA was trained with "
                "masks", "line 6: its garment is empty", "line 7: it has not as many cells")  # fmt: skip
    for problem in problems:
        assert said.count(problem) == 1 and said.index(problem) < said.index("dressing, 1 step"), "before the models"

    lines = (pictures / "pairs.csv").read_text().splitlines()
    (pictures / "pairs.csv").write_text("\n".join([lines[0], lines[3].replace("third", "alone")]))
    with pytest.raises(ValueError, match="^1 of 1 pair was not dressed, as is said above: line 2$"):
        main(flags)
    said = capsys.readouterr().out
    assert said.count("the category trousers is none of") == 1 and "TOY MODEL" not in said, "nothing was loaded for it"

    Image.new("L", (96, 64), 255).save(pictures / "lying.png")
    bad = [lines[1].replace("mask.png", f"{mask}.png").replace("first", mask) for mask in ("lying", "black")]
    for number, rest in ((2, bad[:1]), (3, bad)):
        (pictures / "pairs.csv").write_text("\n".join([*lines[:2], *rest]))
        with pytest.raises(ValueError, match=f"^{number - 1} of {number} pairs w.* not dressed, .*: line 3"):
            main(flags[:-2])
        said = capsys.readouterr().out
        assert "1 of them made already" in said and "another shape" in said and "loading" not in said, said
    assert "line 4: the mask" in said, "seen only when it is decoded"


def test_pairs_that_are_made_already_are_not_made_again(
    run: Path, pictures: Path, data_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "pairs.csv").write_text(
        "person,garment,mask,category,output\n"
        "person.png,garment.png,mask.png,lower,made/first.png\n"
        "person.png,person.png,mask.png,full,made/last.jpg\n"
    )
    flags = ["--lora", str(run), "--pairs", str(pictures / "pairs.csv"), "--data_cache_dir", str(data_cache)]
    first, last = pictures / "made" / "first.png", pictures / "made" / "last.jpg"
    main(flags)

    def made_by(*more: str) -> tuple[bool, bool]:
        """Whether the two results are made by the command."""
        before = [file.stat().st_ino for file in (first, last)]
        capsys.readouterr()
        main([*flags, *more])
        return tuple(file.stat().st_ino != was for file, was in zip((first, last), before, strict=True))

    assert made_by() == (False, False)
    said = capsys.readouterr().out
    assert "2 pairs, 2 of them made already" in said and "loading" not in said
    Image.open(pictures / "garment.png").rotate(180).save(pictures / "garment.png")
    assert made_by("--output_grid", str(pictures / "grid.png")) == (True, False)
    said = capsys.readouterr().out
    assert "2 pairs, 1 of them made already" in said and "2 of 2: person.png in garment.png" in said
    assert Image.open(pictures / "grid.png").size == (24 + 4 * 68, 24 + 2 * 100), "with the row that was there"
    last.write_bytes(last.read_bytes()[:30])
    assert made_by("--steps", "1") == (False, True)


def test_a_picture_is_made_again_from_what_it_carries(
    run: Path, pictures: Path, data_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora, out, cache = pictures / "lora.safetensors", pictures / "out.png", ["--data_cache_dir", str(data_cache)]
    shutil.copyfile(find_lora(str(run)), lora)
    flags = flags_for(pictures, data_cache, "--lora", lora, "--category", "lower", "--seed", "3", "--steps", "2")
    main([*flags, "--output_tryon", str(out), "--lora_scale", "0.5", "--quantization", "int8"])
    assert read_recipe(out).flags["toy"], "as the LoRA was trained on it"
    capsys.readouterr()
    main(["--again", str(out), *cache])
    assert "TOY MODEL: a tiny model" in capsys.readouterr().out, "nobody has asked for it"
    assert (pixels(pictures / "out-again.png") == pixels(out)).all()
    (pictures / "out-again.png").unlink()
    other = pictures / "other.webp"
    main(["--again", str(out), *cache, "--lora_scale", "1.5", "--output_tryon", str(other)])
    assert (pixels(other) != pixels(out)).any()
    assert (recipe := read_recipe(other)).flags["lora_scale"] == 1.5 and recipe.flags["quantization"] == "int8"

    Image.open(pictures / "garment.png").rotate(180).save(pictures / "garment.png")
    with pytest.raises(ValueError, match="out.png was made with another --garment than .*garment.png is now: put the"):
        main(["--again", str(out), *cache])
    lora.unlink()
    with pytest.raises(ValueError, match="lora.safetensors does not exist: name a run"):
        main(["--again", str(out), *cache])


def test_several_loras_are_compared_in_a_row(
    run: Path, by_rule: Path, pictures: Path, data_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid, out = pictures / "grid.png", pictures / "out.png"
    flags = flags_for(pictures, data_cache, "--category", "lower", "--seed", "3")
    main([*flags, "--lora", "base", str(run), "--lora", str(by_rule), "--output_grid", str(grid)])
    assert f"guidance 30: base; {run.name}, step 1; {by_rule.parent.name}/rectangle" in capsys.readouterr().out
    garment, _, _, base, own, other = (pixels(grid)[24:120, x : x + 64] for x in range(24, 24 + 6 * 68, 68))
    assert (garment == pixels(pictures / "garment.png")).all()
    labels = [pixels(grid)[:24, x : x + 64] for x in range(24, 24 + 6 * 68, 68)]
    assert all((label[:, [0, -1]] == 255).all() and (label < 200).any() for label in labels), "none is cut off"
    assert (own == other).all() and (own != base).any(), "its header alone is another"
    main([*flags, "--lora", str(run), "--lora_scale", "0", "--output_tryon", str(out)])
    assert (pixels(out) == base).all()
    assert read_recipe(grid).loras == ("base", f"{run.name}, step 1", f"{by_rule.parent.name}/rectangle.safetensors")
    main(["--again", str(grid), "--data_cache_dir", str(data_cache)])
    assert (pixels(pictures / "grid-again.png") == pixels(grid)).all()


def test_what_somebody_wears_is_painted_as_a_product(
    run: Path, pictures: Path, data_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = with_facts(run, pictures / "both.safetensors", try_off_prompt=TRY_OFF_PROMPT)
    person, out, cache = pictures / "person.png", pictures / "out.png", ["--data_cache_dir", str(data_cache)]
    Image.open(person).resize((200, 300)).save(person)
    flags = ["--take_off", str(person), "--output", str(out), *cache]
    main([*flags, "--lora", str(lora), "--category", "lower", "--num_results", "2", "--seed", "3"])
    assert "taking off, 1 step at guidance 30" in capsys.readouterr().out
    lower, other = (pixels(pictures / f"out-seed{seed}.png") for seed in (3, 4))
    assert lower.shape == (96, 64, 3) and (lower != other).any(-1).mean() > 0.9
    main([*flags, "--lora", str(lora), "--category", "upper", "--seed", "3"])
    assert (pixels(out) != lower).any(-1).mean() > 0.5, "the prompt says which garment"
    main(["--again", str(out), *cache])
    assert (pixels(pictures / "out-again.png") == pixels(out)).all()
    main(["--again", str(out), "--category", "lower", "--output", str(pictures / "lower.png"), *cache])
    assert np.abs(pixels(pictures / "lower.png").astype(int) - lower).max() <= 1

    with pytest.raises(
        ValueError, match="this LoRA has not learnt to take garments off: give one trained with --try_off"
    ):
        main([*flags, "--lora", str(run), "--category", "lower"])
    more = ["--image", str(person), "--give_back", "--output_grid", "grid.png", "--output", "garment.gif"]
    wrong = "--image has no use with --take_off.*; --give_back has .*; --output_grid has .*; --category is missing; "
    wrong += "--take_off works with"
    with pytest.raises(ValueError, match=f"{wrong} one LoRA.*; --output garment.gif must end in"):
        main([*flags, "--lora", str(lora), str(run), *more])
    with pytest.raises(ValueError, match="--output would overwrite --take_off .*person.png"):
        main([*flags, "--lora", str(lora), "--category", "lower", "--output", str(person)])
    with pytest.raises(ValueError, match="--output is for --take_off: name the file with --output_tryon"):
        main(flags_for(pictures, data_cache, "--lora", run, "--category", "lower", "--output", out))


def test_what_is_refused(run: Path, pictures: Path, data_cache: Path, toy: ToyFolders) -> None:
    out = ("--output_tryon", pictures / "out.png")
    state = load_file(find_lora(str(run)))
    nowhere = {f"transformer.nowhere.lora_{side}.weight": torch.zeros(4, 4) for side in "AB"}
    save_file(state | nowhere, pictures / "odd.safetensors")
    save_file({**state, min(state): torch.full_like(state[min(state)], torch.nan)}, pictures / "nan.safetensors")
    with safe_open(find_lora(str(run)), framework="pt") as opened:
        half = {key: tensor for key, tensor in state.items() if "single_transformer_blocks" not in key}
        save_file(half, pictures / "half.safetensors", opened.metadata())
    toy_flags = ("--base", toy.base, "--transformer", toy.transformer)
    (pictures / "words.png").write_text("no picture")
    shutil.copytree(run / "checkpoint-1", pictures / "checkpoint-1")
    damaged = bytearray(find_lora(str(pictures / "checkpoint-1")).read_bytes())
    damaged[-1] ^= 1
    find_lora(str(pictures / "checkpoint-1")).write_bytes(damaged)
    Image.new("RGBA", (64, 96), (255, 255, 255, 0)).save(pictures / "clear.png")
    Image.new("L", (96, 64), 255).save(pictures / "lying.png")
    (pictures / "odd.csv").write_text("person,garment,output,colour\na,b,c,d\n")
    (pictures / "short.csv").write_text("person,garment\na,b\n")
    (pictures / "none.csv").write_text("person,garment,output\n")
    (pictures / "twice.csv").write_text("person,garment,output\na,b,c.png\n\na,b,./c.png \n")
    (pictures / "seeds.csv").write_text("person,garment,output\na,b,c.png\nc-seed1.png,b,d.png\n")
    for flags, message in (
        (("--lora", run, *out), "say --category upper, lower or full"),
        (("--lora", run, "--category", "upper", *out, "--mask", pictures / "black.png"), "its largest value is 0 of"),
        (("--lora", run, "--category", "upper", *out, "--mask", pictures / "clear.png"), "the mask has no white in it"),
        (("--lora", run, "--category", "upper", *out, "--mask", pictures / "lying.png"), "another shape"),
        (("--lora", run, *out, "--output_grid", pictures / "out.png"), "would overwrite --output_grid .*out.png: name"),
        (("--lora", run, "--output_grid", pictures / "mask.png"), "--output_grid would overwrite --mask .*mask.png"),
        (("--lora", "base", *out), "--lora base is the model of another LoRA: name that one too"),
        (("--lora", "base", run, *out), "several LoRAs are compared in --output_grid: leave --output_tryon out"),
        (("--lora", run, "--output_tryon", pictures / "person.png"), "would overwrite --image .*person.png: name"),
        (
            ("--lora", run, *out, "--output_grid", pictures / "out-seed1.png", "--num_results", "2"),
            "would overwrite --output_grid .*out-seed1.png: name",
        ),
        (("--lora", run, "--category", "upper", *out, "--garment", pictures / "words.png"), "words.png cannot be used"),
        (("--lora", run.parent / "nowhere", *out), "nowhere does not exist: name a run"),
        (("--lora", pictures / "odd.safetensors", *out, *toy_flags, "--height", "96", "--width", "64"), "does not fit"),
        (("--lora", pictures / "nan.safetensors", *out, *toy_flags), "holds numbers that are not finite"),
        (("--lora", pictures / "half.safetensors", "--category", "upper", *out), "is incomplete: it lacks 16 layers"),
        (("--lora", pictures / "checkpoint-1", "--category", "upper", *out), "weights.safetensors is damaged"),
        (("--lora", run, *out, "--worn", pictures / "mask.png"), "either --mask or --worn"),
        (("--lora", run, *out, "--parser", "some/parser"), "--parser has no use with --mask"),
        (("--lora", run, *out, "--give_back"), "--give_back is without --category"),
        (("--lora", run, "--image", "nowhere.png"), "--output_tryon is missing; --image nowhere.png is no file"),
        (("--lora", run, "--pairs", pictures / "odd.csv"), "--image is for a single try-on: leave it out with --pairs"),
    ):
        with pytest.raises(ValueError, match=message):
            main(flags_for(pictures, data_cache, *flags))
    for name, message in (
        ("odd", "has the column colour: there may be person, garment, mask, category, output"),
        ("short", "has no column output"),
        ("none", "has no line below its first"),
        ("twice", "line 4 of .*twice.csv writes .*c-seed0.png, which line 2 reads or writes too"),
        ("seeds", "line 2 of .*seeds.csv writes .*c-seed1.png, which line 3 reads or writes too"),
        ("nowhere", "cannot be read"),
    ):
        with pytest.raises(ValueError, match=message):
            main(["--lora", str(run), "--pairs", str(pictures / f"{name}.csv"), "--num_results", "2"])
    assert not (pictures / "out.png").exists()
