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
    flags = "--size toy --denoising_steps 1 --pictures 1 --variants none,nf4 --json"
    inference.main([*flags.split(), str(file)])
    shown = capsys.readouterr().out
    result = json.loads(file.read_text())
    assert {"stock", "none", "nf4"} <= result.keys() and "times as fast as the stock pipeline" in shown
