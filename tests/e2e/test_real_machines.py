"""What the machines that run the other tests lack: a GPU, and the hub."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import PROJECT
from launch import SMALL, environment, metrics, only_run
from tryon.config import CATVTON_TRANSFORMER
from tryon.models import FILL_CONFIG

pytestmark = pytest.mark.e2e


@pytest.mark.gpu
@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="there is no NVIDIA GPU")
def test_the_toy_trains_in_bf16_on_a_gpu(tmp_path: Path, data_cache: Path) -> None:
    done = launch_on_a_gpu(
        "--mixed_precision", "bf16", "--gradient_checkpointing", "full", "--data_cache_dir", data_cache, runs=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(metrics(only_run(tmp_path))) == [1, 2]


@pytest.mark.gpu
@pytest.mark.skipif(shutil.which("nvidia-smi") is None, reason="there is no NVIDIA GPU")
def test_a_full_gpu_is_said_in_one_sentence(tmp_path: Path, data_cache: Path) -> None:
    done = launch_on_a_gpu("--height", "16384", "--width", "16384", "--data_cache_dir", data_cache, runs=tmp_path)
    assert done.returncode == 1
    assert "error: the GPU's memory is full" in done.stdout and "--gradient_checkpointing full" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def launch_on_a_gpu(*flags: str | Path, runs: Path) -> subprocess.CompletedProcess:
    command = [PROJECT / "train_deepfashion_lora.sh", "--quick-test", "--toy", *SMALL, "--max_train_steps", "2", *flags]
    variables = environment(runs)
    del variables["CUDA_VISIBLE_DEVICES"]
    return subprocess.run(["bash", *map(str, command)], env=variables, capture_output=True, text=True, check=False)


@pytest.mark.network
@pytest.mark.skipif("TRYON_NETWORK_TESTS" not in os.environ, reason="TRYON_NETWORK_TESTS is not set")
def test_the_real_transformer_is_what_is_assumed(tmp_path: Path) -> None:
    code = (
        f"import json, tryon.models as m; print(json.dumps(m.read_transformer_config({CATVTON_TRANSFORMER!r}, None)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)},
    )  # fmt: skip
    config = json.loads(done.stdout)
    assert {name: config[name] for name in FILL_CONFIG} == FILL_CONFIG
