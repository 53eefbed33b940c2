"""What the machines that run the other tests lack: a GPU, and the hub."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import PROJECT
from launch import SMALL, environment, metrics, only_run
from tryon.config import CATVTON_TRANSFORMER
from tryon.flux.load import FILL_CONFIG

pytestmark = pytest.mark.e2e
TESTS = sorted(set((PROJECT / "tests").rglob("test_*.py")) - {Path(__file__)})


@pytest.mark.gpu
def test_the_toy_trains_in_bf16_on_a_gpu(tmp_path: Path, data_cache: Path) -> None:
    done = launch_on_a_gpu(
        "--mixed_precision", "bf16", "--gradient_checkpointing", "full", "--data_cache_dir", data_cache, runs=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(metrics(only_run(tmp_path))) == [1, 2]


@pytest.mark.gpu
def test_a_full_gpu_is_said_in_one_sentence(tmp_path: Path, data_cache: Path) -> None:
    done = launch_on_a_gpu("--height", "16384", "--width", "16384", "--data_cache_dir", data_cache, runs=tmp_path)
    assert done.returncode == 1
    assert "error: the GPU's memory is full" in done.stdout and "--gradient_checkpointing full" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def launch_on_a_gpu(*flags: str | Path, runs: Path) -> subprocess.CompletedProcess:
    command = [PROJECT / "train_deepfashion_lora.sh", "--quick-test", "--toy", *SMALL, "--max_train_steps", "2", *flags]
    return subprocess.run(
        ["bash", *map(str, command)], env=environment(runs), capture_output=True, text=True, check=False
    )


def run_tests(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """bash tests/run.sh as on a machine whose one GPU is hidden."""
    return subprocess.run(
        ["bash", "tests/run.sh", *arguments], cwd=PROJECT, capture_output=True, text=True, check=False,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1", **variables},
    )  # fmt: skip


@pytest.mark.slow
def test_gpu_tests_fail_where_there_is_no_gpu() -> None:
    done = run_tests("--gpu", "tests/unit/training/test_clock.py")
    assert done.returncode == 1
    assert "the GPU tests need a CUDA device and none was found" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
def test_gpu_tests_are_skipped_for_want_of_a_gpu_and_nothing_else(tmp_path: Path) -> None:
    """With a GPU that is only claimed pytest plans all of them, and runs none."""
    (tmp_path / "claimed_gpu.py").write_text(
        "import os, pytest, torch\n"
        "@pytest.hookimpl(tryfirst=True)\n"
        "def pytest_sessionstart():\n"
        "    torch.cuda.is_available = lambda: True\n"
        "def pytest_unconfigure():\n"
        "    print('visible:', os.environ['CUDA_VISIBLE_DEVICES'])\n"
    )
    marked = [str(path) for path in TESTS if "pytest.mark.gpu" in path.read_text()]
    claimed = {"PYTHONPATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": "5"}
    done = run_tests("--gpu", "--setup-plan", "-rs", "-p", "claimed_gpu", *marked, **claimed)
    shown = done.stdout + done.stderr
    assert done.returncode == 0 and "visible: 5" in shown, shown
    planned = {Path(line.split("::")[0]).name for line in shown.splitlines() if "::test_" in line}
    assert planned == {Path(path).name for path in marked}, shown
    assert "skip" not in shown.lower(), shown


@pytest.mark.network
@pytest.mark.skipif("TRYON_NETWORK_TESTS" not in os.environ, reason="TRYON_NETWORK_TESTS is not set")
def test_the_real_transformer_is_what_is_assumed(tmp_path: Path) -> None:
    read = f"m.read_transformer_config({CATVTON_TRANSFORMER!r}, None)"
    code = f"import json, tryon.flux.load as m; print(json.dumps({read}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)},
    )  # fmt: skip
    config = json.loads(done.stdout)
    assert {name: config[name] for name in FILL_CONFIG} == FILL_CONFIG
