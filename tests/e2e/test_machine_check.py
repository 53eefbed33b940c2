"""The real `--check` on the toy: right on this machine, and not fit where attention is wrong."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from conftest import PROJECT
from launch import LAUNCHER, environment, launch
from tryon.flux.attention_kernels import CPU_KERNELS
from tryon.training.check import CHECKS_FILE

pytestmark = pytest.mark.e2e
# Read before any of the project's code: torch's attention as a broken driver would compute it.
WRONG_ATTENTION = """
import sys

if "deepfashion_training.train_deepfashion_lora" in sys.orig_argv:
    import torch

    right = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = lambda *inputs, **settings: 1.05 * right(*inputs, **settings)
"""


@pytest.mark.slow
def test_the_toy_is_fit_for_this_machine(tmp_path: Path, data_cache: Path) -> None:
    small = ("--height", "96", "--width", "64")
    done = launch("--check", "--toy", *small, "--price_per_hour", "2", "--data_cache_dir", data_cache, runs=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "fit for this run: everything it depends on is right"
    assert re.fullmatch(r"8,000 steps: about [\d.]+ (h|min), [\d.]+ at 2 an hour, validation and .*", lines[-2])
    table = lines[next(index for index, line in enumerate(lines) if line.startswith("checked ")) + 1 : -2]
    compared = [line for line in table if re.match(r"(attention |blocks |a LoRA)", line)]
    assert len(compared) == len(CPU_KERNELS) + 4 * 4 + 1
    assert all(line.endswith("  right") for line in [*compared, next(each for each in table if "chosen" in each)])
    assert "wrong" not in done.stdout.lower()
    assert list(tmp_path.iterdir()) == []  # no run was begun, nothing is left of the disk's trial
    (of_machine,) = json.loads((data_cache / CHECKS_FILE).read_text()).values()
    assert [kept["failed"] for kept in of_machine.values()] == [[]]


@pytest.mark.slow
def test_attention_that_is_5_percent_off_is_not_fit(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(WRONG_ATTENTION)
    done = subprocess.run(
        ["bash", str(LAUNCHER), "--check", "--toy", "--data_cache_dir", str(tmp_path / "cache")],
        cwd=PROJECT, env={**environment(tmp_path), "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    shown = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in shown, shown
    verdict = done.stdout.splitlines()[-1]
    assert verdict.startswith("NOT FIT for this run: no attention kernel computes what it should on this machine (")
    for kernel in CPU_KERNELS:
        assert re.search(rf"{kernel} wrong: output is 0.05 off with \d+ tokens and ordinary logits", verdict), verdict
