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
    flags = ("--quick-test", "--toy", "--mixed_precision", "bf16", "--gradient_checkpointing", "full", *SMALL)
    command = [PROJECT / "train_deepfashion_lora.sh", *flags, "--max_train_steps", "2", "--data_cache_dir", data_cache]
    variables = environment(tmp_path)
    del variables["CUDA_VISIBLE_DEVICES"]
    done = subprocess.run(["bash", *command], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(metrics(only_run(tmp_path))) == [1, 2]


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
