"""More than one process: the ready configurations, two machines played on one, a process that dies."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from conftest import PROJECT
from launch import driver_of, environment, launch, launch_on_a_terminal, metrics, only_run, read_until

pytestmark = pytest.mark.e2e

CONFIGS = sorted((PROJECT / "accelerate_configs").glob("*.yaml"))
FLAGS = (
    "--quick-test", "--num_processes", "2", "--train_batch_size", "1", "--height", "96", "--width", "64",
    "--max_train_samples", "5", "--max_validation_samples", "2", "--num_validation_images", "1",
    "--num_inference_steps", "1", "--num_evaluation_samples", "0", "--lr_warmup_steps", "0",
)  # fmt: skip


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_ready_configurations_are_what_accelerate_reads(file: Path) -> None:
    config = load_config_from_file(str(file))
    said = yaml.safe_load(file.read_text())
    for name, value in said.items():
        assert str(getattr(config, name)).removeprefix("DistributedType.").removeprefix("ComputeEnvironment.") == str(
            value
        )


def test_two_machines_train_what_one_does(tmp_path: Path, data_cache: Path) -> None:
    """Two launchers on one machine that meet at a port."""
    one = launch(*FLAGS, "--max_train_steps", "3", "--data_cache_dir", data_cache, runs=tmp_path / "one")
    assert one.returncode == 0, one.stdout + one.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = [
        subprocess.Popen(
            [
                sys.executable, "-m", "accelerate.commands.launch",
                "--config_file", str(PROJECT / "accelerate_configs/multi_node.yaml"), "--machine_rank", str(rank),
                "--main_process_ip", "127.0.0.1", "--main_process_port", str(port), "--num_processes", "2",
                "--mixed_precision", "no", "-m", "deepfashion_training.train_deepfashion_lora", *FLAGS,
                "--max_train_steps", "3", "--data_cache_dir", str(data_cache), "--output_dir", str(tmp_path / "two"),
            ],
            cwd=PROJECT, env={**environment(tmp_path), "PYTHONPATH": str(PROJECT)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [machine.communicate(timeout=240)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(said)
    assert "finished: " in said[0]
    of_one, of_two = metrics(only_run(tmp_path / "one")), metrics(tmp_path / "two")
    assert of_one.keys() == of_two.keys() == {1, 2, 3}
    assert all(abs(of_one[step] - of_two[step]) < 1e-5 for step in of_one)


def test_a_process_that_dies_stops_the_others(tmp_path: Path, data_cache: Path) -> None:
    process, controller = launch_on_a_terminal(
        *FLAGS, "--max_train_steps", "2000", "--data_cache_dir", data_cache, runs=tmp_path
    )
    read_until(controller, "step 10/")
    killed = time.monotonic()
    os.kill(driver_of(only_run(tmp_path)), signal.SIGKILL)
    said = read_until(controller, "closed by the launcher's end", 60)
    sentences = ("the others stopped with it", "another process of this training is gone")
    assert any(sentence in said for sentence in sentences) and "Traceback" not in said, said
    assert process.wait(timeout=60) == 1 and time.monotonic() - killed < 60
    os.close(controller)
