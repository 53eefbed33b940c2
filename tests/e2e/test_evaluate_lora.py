"""Scores of LoRAs by the real command, on the toy."""

import json
import re
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from evaluate_lora import main, read_settings
from test_dataset import row, write
from test_folders import write_dresscode, write_viton_hd
from tryon.config import TrainConfig
from tryon.files import write_manifest
from tryon.flux.lora_header import ADAPTER_KEY, FACTS_KEY, read_facts
from tryon.flux.prompts import TRY_OFF_PROMPT
from tryon.profiles import on_toy
from tryon.runs import find_lora
from tryon.toy.model import toy_parser

pytestmark = pytest.mark.e2e


@pytest.fixture(autouse=True)
def without_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks would be downloaded, and reading takes long."""
    for package in ("lpips", "cleanfid", "rapidocr"):
        monkeypatch.setitem(sys.modules, package, None)


def changed(run: Path, file: Path, scale: float = 1.0, **facts: object) -> Path:
    """The run's LoRA with its weights scaled and other facts in its header, as another file."""
    own = find_lora(str(run))
    with safe_open(own, framework="pt") as opened:
        adapter = opened.metadata()[ADAPTER_KEY]
    header = {"format": "pt", ADAPTER_KEY: adapter, FACTS_KEY: json.dumps(asdict(replace(read_facts(own), **facts)))}
    save_file({name: scale * tensor for name, tensor in load_file(own).items()}, file, header)
    return file


def flags_for(data_cache: Path, folder: Path, *flags: str | Path) -> list[str]:
    given = ("--data_cache_dir", data_cache, "--output_dir", folder, "--steps", "1", "--batch_size", "2", *flags)
    return [str(flag) for flag in given]


def times(files: Iterable[Path]) -> dict[Path, int]:
    """When they were written."""
    return {path: path.stat().st_mtime_ns for path in files}


def result_of(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def test_base_and_loras_on_drawings_and_going_on_after_an_interruption(
    run: Path, data_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "scores"
    weaker = changed(run, tmp_path / "weaker.safetensors", 0.5, base_categories=("upper",))
    flags = flags_for(data_cache, folder, "--num_samples", "1", "--lora", run)
    monkeypatch.setenv("TRAIN_TERMINAL", "1")
    main(flags)
    said, shown = capsys.readouterr()
    assert re.search(r"scoring: .*\d/12 \[\d\d:\d\d<\d\d:\d\d", shown), "what, how many of how many, time left"
    monkeypatch.delenv("TRAIN_TERMINAL")
    assert "TOY MODEL" in said and "3 paired, 3 unpaired" in said and "LPIPS, FID, KID (pip install -r" in said
    assert f"LoRA: {find_lora(str(run))}, step 1" in said and "*" not in said, "of three pairs nothing is marked"
    assert all(f"{folder}/{name}" in said for name in ("worst-paired.png", "worst-unpaired.png", "evaluation.html"))
    whole = result_of(folder)
    assert set(whole["not_computed"]) == {"lpips", "fid", "kid"}
    for kind in ("paired", "unpaired"):
        scores = whole["scores"][kind]
        assert list(scores) == ["upper", "lower", "full", "all"] and scores["all"]["cases"] == 3
        base, lora, difference = (scores["all"][name] for name in ("base", "LoRA", "LoRA - base"))
        assert base["psnr"]["low"] <= base["psnr"]["mean"] <= base["psnr"]["high"] < 40
        assert difference["psnr"]["mean"] == pytest.approx(lora["psnr"]["mean"] - base["psnr"]["mean"], abs=1e-9)
        assert difference["psnr"]["mean"] != 0 and base["changed_outside"] == lora["changed_outside"] == 0
    lines = [json.loads(line) for line in (folder / "measured.jsonl").read_text().splitlines() if line]
    assert len(lines) == 12
    rows = [line[9:] for line in said.splitlines() if line[9:].startswith(("category", "upper (1)"))]
    names = 2 * ["measure", "PSNR, mask"]
    assert len({line.index(name) for line, name in zip(rows, names, strict=True)}) == 1
    assert "|" not in said and "**" not in said and "##" not in said, "no Markdown"
    assert "LoRA: 3 unpaired pairs cannot say whether it is better" in said
    text = (folder / "evaluation.md").read_text()
    assert "| upper (1) | base |" in text and str(find_lora(str(run))) in text
    assert "Not computed: LPIPS, FID, KID (pip install" in text and "A star" not in text
    page = (folder / "evaluation.html").read_text()
    assert "cannot say whether it is better" in page and page.count('src="data:image/jpeg;base64,') == 2

    # As it was after the first picture of the LoRA's first batch, with a line that was cut short.
    kept = [line for line in (folder / "measured.jsonl").read_text().splitlines() if line][:3]
    assert [json.loads(line)["model"] == "base" for line in kept] == [True, True, False]
    (folder / "measured.jsonl").write_text("\n".join([*kept, kept[0][:30]]))
    (folder / "evaluation.json").unlink()
    done = times(folder / "pictures" / line["model"] / f"{line['kind']}-{line['case']:05d}.png" for line in lines[:3])

    def stopped(*args: object) -> None:
        raise SystemExit(130)

    with monkeypatch.context() as signalled, pytest.raises(SystemExit):
        signalled.setattr("tryon.evaluation.score.measure", stopped)
        main(flags)
    assert f"what is measured so far is kept in {folder}: the same command goes on" in capsys.readouterr().out
    main(flags)
    assert result_of(folder) == whole
    assert times(done) == done, "what was measured was not done again"
    assert not (folder / "earlier").exists(), "the same comparison"

    done = times((folder / "pictures").glob("*/*.png"))
    page = (folder / "evaluation.html").read_text()
    main([*flags, str(weaker)])
    kept = folder / "earlier" / "1"
    assert result_of(kept) == whole and (kept / "evaluation.html").read_text() == page
    assert sorted(path.name for path in kept.iterdir()) == [
        "evaluation.html", "evaluation.json", "evaluation.md", "worst-paired.png", "worst-unpaired.png",
    ]  # fmt: skip
    both = result_of(folder)
    assert both["scores"]["paired"]["all"]["LoRA 1"] == whole["scores"]["paired"]["all"]["LoRA"]
    assert both["scores"]["paired"]["all"]["LoRA 2"]["psnr"] not in (
        both["scores"]["paired"]["all"]["LoRA 1"]["psnr"], both["scores"]["paired"]["all"]["base"]["psnr"],
    )  # fmt: skip
    assert [lora["base_categories"] for lora in both["loras"].values()] == [[], ["upper"]]
    upper = both["scores"]["paired"]["upper"]
    assert upper["LoRA 2"]["psnr"] == upper["base"]["psnr"] != upper["LoRA 1"]["psnr"]
    assert Image.open(folder / "worst-unpaired.png").width == 24 + 7 * (64 + 4)
    page, text = ((folder / f"evaluation.{kind}").read_text() for kind in ("html", "md"))
    assert "LoRA 1" not in page + text, "called by their names"
    assert f'<th class="number">{run.name}</th>' in page and '<th class="number">weaker - base</th>' in page
    assert f"| {run.name} - base |" in text and "- weaker: `" in text and "weaker: 3 unpaired pairs cannot say" in text
    sentence = "weaker: upper-body garments are dressed without the LoRA, which was not trained on them."
    assert sentence in page and sentence in text
    assert times(done) == done

    with pytest.raises(ValueError, match="holds scores of other settings: seed was 0 and is 1: give the same, or name"):
        main([*flags, "--seed", "1"])

    lines = (folder / "measured.jsonl").read_text().replace('"changed_outside": 0.0', '"changed_outside": 0.5', 1)
    (folder / "measured.jsonl").write_text(lines)
    with pytest.raises(ValueError, match="^base changed pixels outside of the masks"):
        main(flags)
    assert result_of(folder)["scores"]["paired"]["all"]["base"]["changed_outside"] == 0.5


def test_more_samples_go_on_and_come_to_what_they_would_have_alone(
    run: Path, data_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "scores"
    main(flags_for(data_cache, folder, "--lora", run, "--num_samples", "1", "--batch_size", "1"))
    done = times((folder / "pictures").glob("*/*.png"))
    assert len(done) == 12
    main(flags_for(data_cache, folder, "--lora", run, "--num_samples", "2", "--batch_size", "1"))
    assert len(times((folder / "pictures").glob("*/*.png"))) == 24
    assert times(done) == done, "what was measured was not done again"
    alone = tmp_path / "alone"
    main(flags_for(data_cache, alone, "--lora", run, "--num_samples", "2", "--batch_size", "1"))
    assert result_of(folder) == result_of(alone)
    main(flags_for(data_cache, folder, "--lora", run, "--num_samples", "1", "--batch_size", "1"))
    assert result_of(folder)["scores"]["paired"]["all"]["cases"] == 3
    capsys.readouterr()


def test_on_other_data_the_unpaired_truth_is_not_known(run: Path, data_cache: Path, tmp_path: Path) -> None:
    name = write(tmp_path / "data", [row(item, "front") for item in range(30)])
    copy = shutil.copytree(run, tmp_path / "run")
    changed(run, find_lora(str(copy)), guidance_scale=5.0)
    write_manifest(copy / "checkpoint-1")
    trained = {**asdict(on_toy(TrainConfig())), "dataset_name": name, "max_validation_samples": 2, "seed": 4}
    (copy / "config.json").write_text(json.dumps({**trained, "data_cache_dir": "gone"}))
    main(["--lora", str(copy / ".." / copy.name), "--data_cache_dir", str(data_cache)])
    report = (copy / "report.html").read_text()
    assert "Use checkpoint-1, the newest: 2 paired pairs cannot say whether" in report
    assert "<h2>Scores by evaluate_lora.py</h2>" in report and (copy / "evaluate_lora.json").is_file()
    result = result_of(copy / "scores")
    assert (result["settings"]["steps"], result["settings"]["guidance_scale"]) == (1, 5)
    assert result["settings"]["data"].startswith(name) and ".." not in str(result)
    scores = result["scores"]
    assert scores["paired"]["all"]["cases"] == 2, "those that the run held back"
    assert "psnr" in scores["paired"]["all"]["LoRA"] and "psnr" not in scores["unpaired"]["all"]["LoRA"]
    assert scores["unpaired"]["all"]["on_edges"]["mean"] > 0
    assert Image.open(copy / "scores" / "worst-unpaired.png").width == 24 + 5 * (64 + 4), "without a truth"
    text = (copy / "scores" / "evaluation.md").read_text()
    assert "Nothing was computed: there is no truth." in text and "Outside the masks no pixel changed." in text

    other = shutil.copytree(copy, tmp_path / "other")
    file = changed(run, find_lora(str(other)), guidance_scale=5.0, step=2)
    write_manifest(other / "checkpoint-1")
    (other / "config.json").write_text(json.dumps({**trained, "seed": 5}))
    with pytest.raises(
        ValueError, match=r"other/.* was trained on another split of .* \(seed 5 instead of 4\) and may"
    ):
        main(["--lora", str(copy), str(file), "--data_cache_dir", str(data_cache)])

    (other / "config.json").write_text(json.dumps({**trained, "init_lora": str(find_lora(str(copy)))}))
    (copy / "config.json").write_text(json.dumps({**trained, "seed": 6}))
    with pytest.raises(ValueError, match=r"/run/checkpoint-1/.* was trained on another split of .* \(seed 6 instead"):
        main(["--lora", str(file), "--data_cache_dir", str(data_cache)])

    unseen = flags_for(data_cache, tmp_path / "c", "--lora", run, "--dataset_name", name, "--num_samples", "none")
    main(unseen)
    assert result_of(tmp_path / "c")["scores"]["paired"]["all"]["cases"] == 3, "a tenth of the items"

    write_viton_hd(tmp_path / "viton", count=2)
    parser = ("--parser", toy_parser(data_cache))
    both_tasks = changed(run, tmp_path / "both.safetensors", try_off_prompt=TRY_OFF_PROMPT)
    main(flags_for(data_cache, tmp_path / "b", "--lora", both_tasks, "--dataroot", tmp_path / "viton", *parser))
    result = result_of(tmp_path / "b")
    taken_off = result["scores"].pop("try-off")["upper"]
    assert taken_off["cases"] == 2 and "marked" in taken_off["LoRA - base"]["psnr"]
    assert "leftovers" not in taken_off["LoRA"] and (tmp_path / "b" / "worst-try-off.png").is_file()
    for kind in ("paired", "unpaired"):
        assert 0 <= result["scores"][kind]["upper"]["LoRA"]["leftovers"]["mean"] <= 1
        assert "leftovers" not in scores[kind]["all"]["LoRA"], "nobody asked for them"
    assert result["settings"]["data"] == str(tmp_path / "viton")
    assert result["scores"]["paired"]["upper"]["cases"] == result["scores"]["unpaired"]["upper"]["cases"] == 2
    dressed = np.asarray(Image.open(next((tmp_path / "b" / "pictures" / "base").glob("unpaired-00000.png"))))
    assert dressed.shape == (96, 64, 3)

    write_dresscode(tmp_path / "dresscode")
    folders = {"dataroot": str(tmp_path / "dresscode"), "train_data_list": "train_pairs.txt"}
    (copy / "config.json").write_text(json.dumps({**asdict(on_toy(TrainConfig())), **folders}))
    flags = ("--lora", copy, "--dataroot", tmp_path / "dresscode", "--validation_data_list")
    with pytest.raises(ValueError, match=r"was trained on train_pairs.txt, which has \d+ persons of those that are"):
        main(flags_for(data_cache, tmp_path / "d", *flags, "train_pairs.txt"))
    main(flags_for(data_cache, tmp_path / "d", *flags, "test_pairs_paired.txt"))


def test_what_is_refused(run: Path, data_cache: Path, tmp_path: Path) -> None:
    flags = flags_for(data_cache, tmp_path / "scores", "--lora", run)
    taller = changed(run, tmp_path / "taller.safetensors", height=128, prompt="fixed")
    elsewhere = changed(run, tmp_path / "elsewhere.safetensors", base="somebody/flux", transformer="somebody/fill")
    for more, message in (
        ([find_lora(str(run))], "is the same file as .*: name each LoRA once"),
        ([taller], "taller.safetensors cannot be compared with .*: it was trained with prompt fixed instead of "
                   "category, height 128 instead of 96: score it by itself"),
        (["--validation_data_list", "test_pairs.txt"], "--validation_data_list is for VITON-HD and DressCode folders"),
        (["--text"], "--text needs an engine that reads .*: pip install -r requirements-metrics.txt, or leave it out"),
        (["--num_samples", "none"], "--num_samples none is for data sets, and drawings are endless: give a number"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            main([*flags, *map(str, more)])
    with pytest.raises(ValueError, match="what the first LoRA was trained on is not known: give --dataset_name or"):
        main(flags_for(data_cache, tmp_path / "scores", "--lora", elsewhere))
    assert not (tmp_path / "scores").exists()
    for argv, message in (
        ([], "--lora is missing"),
        (["--lora", "no such run"], "--lora no such run does not exist: name a run"),
        (["--lora", "a/b", "--dataset_name", "c/d", "--dataroot", "nowhere"], "give either .* is no folder"),
        (["--lora", "a/b", "--dataset_name", "./nowhere/at/all"], "neither a folder nor a hub name"),
        (["--lora", "a/b", "--dataset_name", "c/d", "--validation_data_list", "e"], "leave it out beside"),
        (["--lora", "a/b", "--num_samples", "0"], "--num_samples 0 is too small"),
        (["--lora", "a/b", "--cache", "first_block"], "--cache first_block changes pictures"),
    ):
        with pytest.raises(ValueError, match=message):
            read_settings(argv)
