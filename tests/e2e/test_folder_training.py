"""train_flux_inpaint.py's own command line, on a VITON-HD folder."""

import subprocess
import sys
from pathlib import Path

import pytest

from conftest import PROJECT
from launch import environment, metrics
from test_folders import write_viton_hd

pytestmark = pytest.mark.e2e


def test_the_loop_trains_on_a_viton_hd_folder(tmp_path: Path, data_cache: Path) -> None:
    root, run = write_viton_hd(tmp_path / "viton hd", size=(96, 128)), tmp_path / "run"
    command = [
        sys.executable, "train_flux_inpaint.py", "--toy", "--dataroot", root, "--max_train_steps", "2",
        "--gradient_accumulation_steps", "1", "--lora_rank", "4", "--num_validation_images", "1",
        "--data_cache_dir", data_cache, "--output_dir", run,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=PROJECT, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished: " in done.stdout
    assert set(metrics(run)) == {1, 2}
    assert (run / "checkpoint-2/transformer/pytorch_lora_weights.safetensors").is_file()

    refused = subprocess.run(
        [sys.executable, "train_flux_inpaint.py", "--toy", "--dataroot", tmp_path / "nowhere"],
        cwd=PROJECT, env=environment(tmp_path), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert "laid out as VITON-HD" in refused.stderr
    assert not list(tmp_path.glob("viton_hd_lora*"))
