"""The benches run, and say what they are to say. How fast anything is, is not asserted."""

import gc
import json
import os
import subprocess
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import FluxTransformer2DModel

from benchmarks import inference, models, step_timing, train_step
from benchmarks.step_variants import VARIANTS, Variant
from conftest import PROJECT
from tryon.flux.load import FILL_CONFIG
from tryon.training.check_blocks import random_transformer

pytestmark = pytest.mark.e2e
CPU = torch.device("cpu")
SHORT = ("--batch", "2", "--rank", "4", "--steps", "2", "--warm_up", "1")


@pytest.mark.slow
def test_steps_beside_those_of_others_have_their_losses(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "step.json"
    references = "reference_script", "reference_cached", "reference_cached_none"
    names = [*references, "none", "full_12gb"]
    train_step.main([*SHORT, "--variants", ",".join(names), "--json", str(file)])
    shown, result = capsys.readouterr().out, json.loads(file.read_text())
    rows = {row["name"]: row for row in result["rows"]}
    assert list(rows) == names and not result["failed"]
    for name in references:
        assert rows[name]["losses"] == pytest.approx(rows["none"]["losses"], rel=1e-5)  # three steps, updates included
        ratio = rows[name]["median"] / rows["none"]["median"]
        assert result["ratios"]["none"][name] == pytest.approx(ratio)
        assert f"none is {ratio:.2f} times as fast as {name}" in shown
    assert rows["full_12gb"]["losses"] == pytest.approx(rows["none"]["losses"], rel=0.3)
    ours = {"data", "transfer", "forward", "backward", "optimiser"}
    assert {"VAE", *ours} - {"data"} == rows["reference_script"]["parts"].keys()
    assert ours - {"data"} == rows["reference_cached"]["parts"].keys() and ours == rows["none"]["parts"].keys()
    recomputing = {name for name, row in rows.items() if row["recomputed"] == "every block"}
    assert recomputing == {"reference_script", "reference_cached", "full_12gb"}
    assert result["versions"]["torch"] == torch.__version__ and "CPU" in result["machine"]


def test_a_variant_that_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VARIANTS, "broken", Variant({"lora_rank": 0}))
    accumulated = Variant({"train_batch_size": 1, "gradient_accumulation_steps": 2})
    monkeypatch.setitem(VARIANTS, "accumulated", accumulated)
    monkeypatch.setattr(step_timing, "no_compiler", lambda device: "no C++ compiler")
    file = tmp_path / "step.json"
    with pytest.raises(ValueError, match="there are no figures of broken, compile"):
        train_step.main([*SHORT, "--variants", "broken,compile,none,accumulated", "--json", str(file)])
    result = json.loads(file.read_text())
    assert "`r` should be a positive integer" in result["failed"]["broken"]
    assert result["failed"]["compile"] == "nothing can be compiled here: no C++ compiler"
    assert [(row["name"], row["samples"]) for row in result["rows"]] == [("none", 2), ("accumulated", 2)]


def test_a_variants_weights_are_gone_before_the_next_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """With bf16 accelerate wraps the model's own method around it: a cycle of references."""
    made = []

    def noted(*given: Any) -> FluxTransformer2DModel:
        transformer = models.make_transformer(*given)
        made.append(weakref.ref(transformer))
        return transformer

    AcceleratorState._reset_state()
    try:
        config = replace(models.train_config("toy", 1, 4), mixed_precision="bf16")
        bench = step_timing.make_bench(config, 1, 1)
        monkeypatch.setattr(step_timing, "make_transformer", noted)
        gc.disable()  # it would come by now and then
        step_timing.time_variant("none", config, bench, None)
        step_timing.free_memory(bench)
    finally:
        gc.enable()
        AcceleratorState._reset_state()
    assert [each() for each in made] == [None]


def test_a_row_is_written_before_the_next_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "step.json"

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(step_timing, "time_reference", cut_off)
    with pytest.raises(KeyboardInterrupt):
        train_step.main([*SHORT, "--variants", "none,reference_cached", "--json", str(file)])
    assert [row["name"] for row in json.loads(file.read_text())["rows"]] == ["none"]


def test_random_weights_are_the_same_every_time_and_keep_activations_in_range() -> None:
    shapes = {**FILL_CONFIG, "num_attention_heads": 1, "joint_attention_dim": 64}  # all 57 blocks, but narrow
    transformer = random_transformer(shapes, torch.float32, CPU)
    again = random_transformer(shapes, torch.float32, CPU)
    torch.manual_seed(0)
    image, text = torch.randn(1, 24, 384), torch.randn(1, 8, 64)
    attention = transformer.transformer_blocks[0].attn
    assert not torch.equal(attention.to_q.weight, attention.to_k.weight)

    def predict(model: torch.nn.Module) -> torch.Tensor:
        return model(
            image, text, torch.ones(1, 768), torch.full((1,), 0.5), torch.zeros(24, 3), torch.zeros(8, 3), torch.ones(1)
        ).sample

    assert 0.2 < predict(transformer).std() < 5
    assert torch.equal(predict(transformer), predict(again))


def test_the_vaes_random_weights_are_the_same_every_time() -> None:
    config = models.train_config("full", batch=None, rank=None)
    one = models.make_vae(config, CPU).state_dict()
    torch.rand(1)  # from torch's own generator, which must not matter
    other = models.make_vae(config, CPU).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_gpu_sh_on_the_toy(tmp_path: Path) -> None:
    """The machine's own python3 is one that cannot run the first of two parts."""
    machine = tmp_path / "bin"
    machine.mkdir()
    python = machine / "python3"
    python.write_text(f'#!/bin/sh\ncase "$*" in *inference*) exit 3 ;; esac\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    variables = {**os.environ, "PATH": f"{machine}:{os.environ['PATH']}", "SIZE": "toy"}
    command = ["bash", str(PROJECT / "benchmarks" / "gpu.sh"), "--any_versions"]
    chosen = [*command, "--only", "quantised", "--only", "inference", str(tmp_path / "measured")]
    done = subprocess.run(chosen, env=variables, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 1 and "no complete figures of inference" in done.stderr, done.stdout + done.stderr
    measured = {path.name: path.read_text() for path in (tmp_path / "measured").iterdir()}
    assert measured.keys() == {"machine.txt", "inference.txt", "quantised.txt", "quantised.json"}
    assert f"torch {torch.__version__}" in measured["machine.txt"]
    assert "exit code 3" in measured["inference.txt"] and "exit code 0" in measured["quantised.txt"]
    assert [row["name"] for row in json.loads(measured["quantised.json"])["rows"]] == ["fp8", "int8"]

    done = subprocess.run([*command, "--only", "all"], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "--only all is not known: name one of check" in done.stderr


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
