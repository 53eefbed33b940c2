"""The benches run, and say what they are to say. How fast anything is, is not asserted."""

import json
from pathlib import Path

import pytest

from benchmarks import inference, train_step

pytestmark = pytest.mark.e2e


def test_a_step_beside_the_reference_has_its_loss_and_a_ratio(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "step.json"
    flags = "--batch 2 --rank 4 --steps 2 --warm_up 1 --variants none,nf4_offload --json"
    train_step.main([*flags.split(), str(file)])
    shown = capsys.readouterr().out
    result = json.loads(file.read_text())
    reference, plain, offloaded = result["rows"]
    assert plain["loss"] == pytest.approx(reference["loss"], rel=1e-5)
    assert offloaded["loss"] == pytest.approx(reference["loss"], rel=0.3)
    assert {"VAE", "forward", "backward", "optimiser"} == reference["parts"].keys()
    assert {"data", "transfer", "forward", "backward", "optimiser"} == plain["parts"].keys()
    best = min(row["median"] for row in (plain, offloaded))
    assert result["ratio"] == pytest.approx(reference["median"] / best)
    assert f"{result['ratio']:.2f} times as fast as the reference step" in shown


def test_try_on_beside_the_stock_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "inference.json"
    flags = "--size toy --denoising_steps 8 --pictures 1 --variants nf4,first_block:0.1,none --json"
    inference.main([*flags.split(), str(file)])
    shown = capsys.readouterr().out
    result = json.loads(file.read_text())
    stock, *ours = result["rows"]
    rows = {row["name"]: row for row in ours}
    assert stock["name"] == "stock" and list(rows) == ["eager", "first_block:0.1", "none", "nf4"]
    assert rows["none"]["ratio"] == pytest.approx(stock["median"] / rows["none"]["median"])
    assert rows["eager"]["psnr"] == [pytest.approx(100)] and rows["none"]["psnr"][0] > 80
    assert 15 < rows["nf4"]["psnr"][0] < 60 and 30 < rows["first_block:0.1"]["psnr"][0] < 60
    assert rows["none"]["computed"] == [8] > rows["first_block:0.1"]["computed"]
    assert rows["eager"]["truth"][0] > 18, "a picture, and no noise, is what they are compared with"
    assert all(name in shown for name in ("stock", *rows))
