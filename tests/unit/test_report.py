"""The run's page: made of its folder alone, needing nothing else."""

import json
import logging
import re
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from PIL import Image

from tryon.config import MaskConfig, on_toy, quick_test
from tryon.files import save_json
from tryon.report import write_data, write_environment, write_report
from tryon.runs import own_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 40 steps, seen twice, in which somebody gave data and a rank of their own."""
    folder = tmp_path / "deepfashion_lora_quick_test_<1>"
    folder.mkdir()
    config = replace(on_toy(quick_test()), lora_rank=5, lora_alpha=5, max_train_steps=40, output_dir=str(folder))
    masks = MaskConfig(mask_left=0.1)
    save_json(folder / "config.json", {**asdict(config), "dataset_name": "a & b", **asdict(masks)})
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
    assert "5 (default: 16)" in page and "0.1 (default: 0.0)" in page and page.count("mask_") == 1
    assert "lora_alpha" not in page, "it is the rank, as always"
    assert "a GPU" in page
    assert "6.0 s, 75 %" in page and "2.0 s, 25 %" in page and "0.5 s" in page
    cells = "".join(f'<td class="number">{count}</td>' for count in (320, 0, 40))
    assert f"<tr><td>sampled by step 40</td>{cells}</tr>" in page
    assert "<h2>Warnings</h2>" not in page, "there were none"
    assert page.count("<svg") == 1 and "step-000040.png" in page and "step-000000.png" not in page
    assert not re.search(r"<(script|link|iframe)|(src|href)=.https?://|url\(http", page), (
        "it must open without a network"
    )


def test_data_and_warnings_are_those_of_the_run(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_data(run, {"training, garment from flat": {"upper": 1200}, "validation": {"full": 3}})
    config = replace(on_toy(quick_test()), output_dir=str(run), resume_from_checkpoint=None)
    with caplog.at_level(logging.INFO), own_run(config, True):
        logging.getLogger("tryon.training.latent_cache").warning("warning: skipped: %s", "a < b\nTraceback")
        logging.getLogger("tryon.training.latent_cache").info("nothing to worry about")
    logging.getLogger("tryon.training.latent_cache").warning("of something else")
    page = write_report(run).read_text()
    assert '<td>training, garment from flat</td><td class="number">1,200</td>' in page
    assert '<td>validation</td><td class="number">0</td><td class="number">0</td><td class="number">3</td>' in page
    assert re.search(r"<li>\d\d:\d\d:\d\d skipped: a &lt; b</li>", page) and page.count("<li>") == 1

    (run / "warnings.log").write_text("".join(f"12:00:00 warning {number}\n" for number in range(25)))
    page = write_report(run).read_text()
    assert "warning 19</li>" in page and "warning 20" not in page and "... and 5 more in warnings.log" in page


def value(mean: float, cases: int = 4) -> dict[str, float]:
    return {"mean": mean, "low": mean - 1, "high": mean + 1, "cases": cases}


# As runs wrote them before evaluation.json had a version, and as evaluate_lora.py did.
OF_OLDER_RUN = {
    "seed": 0, "vae_psnr": 29.9, "length_ok": 0.75,
    "lower": {
        "paired": {"before": {"psnr": 14.63, "ssim": 0.504}, "after": {"psnr": 20.5, "ssim": 0.7},
                   "fill": {"psnr": 10.06, "ssim": 0.461}, "vae": {"psnr": 27.22, "ssim": 0.874}},
    },
}  # fmt: skip
OF_OLDER_COMMAND = {
    "settings": {"data": "drawings", "seed": 0},
    "loras": {"LoRA": {"file": "runs/a/lora.safetensors", "sha256": "0", "step": 9}},
    "not_computed": {"lpips": "No module named 'lpips'"},
    "scores": {
        "paired": {
            each: {
                "cases": 4, "on_edges": value(0.2),
                "base": {"psnr": value(14.63), "ssim": value(0.504), "changed_outside": 0.0},
                "LoRA": {"psnr": value(20.5), "ssim": value(0.7), "changed_outside": 0.0},
                "LoRA - base": {"psnr": {**value(5.87), "marked": False}, "ssim": {**value(0.196), "marked": False}},
            }
            for each in ("lower", "all")
        },
        "unpaired": {each: {"cases": 4, "base": {"changed_outside": 0.0}, "LoRA": {"changed_outside": 0.0}}
                     for each in ("lower", "all")},
    },
}  # fmt: skip


def test_scores_of_today_and_of_both_older_forms_are_shown(run: Path) -> None:
    today = json.loads(json.dumps({"version": 2, **OF_OLDER_COMMAND}))
    of_lower = today["scores"]["paired"]["lower"]
    of_lower |= {
        "fill": {"psnr": value(10.06), "ssim": value(0.461)},
        "vae": {"psnr": value(27.22), "ssim": value(0.874)},
    }
    today["scores"]["unpaired"]["all"]["LoRA"]["length_right"] = value(0.75)
    models = '<td class="number">14.63 / 0.504</td><td class="number">20.50 / 0.700</td>'
    bounds = '<td class="number">10.06 / 0.461</td><td class="number">27.22 / 0.874</td>'
    for scores, cells, length in (
        (today, models + bounds, True), (OF_OLDER_RUN, models + bounds, True), (OF_OLDER_COMMAND, models, False),
    ):  # fmt: skip
        save_json(run / "evaluation.json", scores)
        page = write_report(run).read_text()
        assert f"<tr><td>lower, paired</td>{cells}</tr>" in page and "unpaired</td>" not in page
        assert '<th class="number">base</th><th class="number">LoRA</th>' in page and "all, paired" not in page
        assert ("Length of trousers for shorts and the reverse: right in 75%." in page) == length
        assert "<code>base</code>: the model without this LoRA" in page


def test_pictures_of_scored_pairs_take_the_validations_place(run: Path) -> None:
    shutil.copy(run / "validation" / "step-000000.png", run / "evaluation-paired.png")
    page = write_report(run).read_text()
    assert "evaluation-paired.png" in page and "step-000040.png" not in page


def test_a_toys_page_says_so(run: Path) -> None:
    words = "<strong>Toy model</strong>: it dresses drawn people, not people in photographs."
    assert words in write_report(run).read_text()
    settings = json.loads((run / "config.json").read_text())
    save_json(run / "config.json", {**settings, "toy": False})
    assert words not in write_report(run).read_text()


def test_a_run_that_has_just_begun_has_a_page_and_another_folder_has_none(run: Path, tmp_path: Path) -> None:
    for name in ("metrics.jsonl", "environment.json"):
        (run / name).unlink()
    shutil.rmtree(run / "validation")
    page = write_report(run).read_text()
    assert "0 of 40" in page and "<svg" not in page and "Where time went" not in page
    with pytest.raises(ValueError, match="holds no config.json"):
        write_report(tmp_path)
