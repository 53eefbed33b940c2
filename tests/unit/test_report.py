"""The run's page: made of its folder alone, needing nothing else."""

import json
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from PIL import Image

from tryon.config import on_toy, quick_test, save_json
from tryon.report import write_environment, write_report


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 40 steps, seen twice, in which somebody gave data and a rank of their own."""
    folder = tmp_path / "deepfashion_lora_quick_test_<1>"
    folder.mkdir()
    config = replace(on_toy(quick_test()), lora_rank=5, max_train_steps=40, output_dir=str(folder))
    save_json(folder / "config.json", {**asdict(config), "dataset_name": "a & b"})
    write_environment(folder, "a GPU")
    lines = [{"step": step, "train/loss": 1 / step, "train/seconds": 0.5} for step in range(1, 41)]
    lines += [{"step": step, "time/forward": 3.0, "time/validation": 1.0} for step in (20, 40)]
    lines += [{"step": step, "validation/loss": 0.2, "validation/loss_upper": 0.1} for step in (0, 40)]
    lines += [{"step": step, "drawn/upper": 8 * step, "drawn/full": step} for step in (20, 40)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 41, "tr')
    (folder / "validation").mkdir()
    for step, colour in ((0, "red"), (40, "blue")):
        Image.new("RGB", (8, 8), colour).save(folder / "validation" / f"step-{step:06d}.png")
    return folder


def test_the_page_says_what_the_folder_holds(run: Path) -> None:
    page = write_report(run).read_text()
    assert "<h1>deepfashion_lora_quick_test_&lt;1&gt;</h1>" in page and "<td>a &amp; b</td>" in page
    assert "40 of 40, 8 samples each" in page and "none yet" in page
    assert "5 (profile: 16)" in page and "a GPU" in page
    assert "6.0 s, 75 %" in page and "2.0 s, 25 %" in page and "0.5 s" in page
    assert re.search(r"<th>upper</th><td>320</td>.*<th>full</th><td>40</td>", page)
    assert page.count("<svg") == 1 and "step-000040.png" in page and "step-000000.png" not in page
    assert not re.search(r"<(script|link|iframe)|(src|href)=.https?://|url\(http", page), (
        "it must open without a network"
    )


def test_scores_and_their_pictures_take_the_validations_place(run: Path) -> None:
    columns = {name: {"psnr": 20.5, "ssim": 0.7} for name in ("before", "after")}
    save_json(run / "evaluation.json", {"seed": 0, "length_ok": None, "lower": {"paired": columns}})
    shutil.copy(run / "validation" / "step-000000.png", run / "evaluation-paired.png")
    page = write_report(run).read_text()
    assert "<td>lower, paired</td><td class='number'>20.50 / 0.700</td>" in page
    assert "evaluation-paired.png" in page and "step-000040.png" not in page


def test_a_run_that_has_just_begun_has_a_page_and_another_folder_has_none(run: Path, tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "environment.json"):
        (run / name).unlink()
    shutil.rmtree(run / "validation")
    page = write_report(run).read_text()
    assert "0 of 40" in page and "<svg" not in page and "Where time went" not in page
    with pytest.raises(ValueError, match="holds no config.json"):
        write_report(tmp_path)
