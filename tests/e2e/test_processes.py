"""More than one process: what they train together, the ready configurations, two machines played on one, a process that
dies."""

import math
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
from deepfashion_training.train_deepfashion_lora import main
from launch import (
    assert_same_until,
    driver_of,
    environment,
    launch,
    launch_on_a_terminal,
    metrics,
    only_run,
    read_until,
)

pytestmark = pytest.mark.e2e

CONFIGS = sorted((PROJECT / "accelerate_configs").glob("*.yaml"))
ONE = (
    "--quick-test", "--height", "96", "--width", "64", "--max_train_samples", "5", "--max_validation_samples", "2",
    "--num_validation_images", "1", "--num_inference_steps", "1", "--num_evaluation_samples", "0",
    "--lr_warmup_steps", "0", "--learning_rate", "1e-3", "--lr_scheduler", "constant",
)  # fmt: skip
FLAGS = (*ONE, "--num_processes", "2", "--train_batch_size", "1")
STEPS = ("--max_train_steps", "3")


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, data_cache: Path) -> Path:
    """A run of two machines with a process each: two launchers on this one that meet at a port."""
    run = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = [
        subprocess.Popen(
            [
                sys.executable, "-m", "accelerate.commands.launch",
                "--config_file", str(PROJECT / "accelerate_configs/multi_node.yaml"), "--machine_rank", str(rank),
                "--main_process_ip", "127.0.0.1", "--main_process_port", str(port), "--num_processes", "2",
                "--num_cpu_threads_per_process", str(math.ceil(len(os.sched_getaffinity(0)) / 2)),  # as the launcher's
                "--mixed_precision", "no", "-m", "deepfashion_training.train_deepfashion_lora", *FLAGS,
                *STEPS, "--data_cache_dir", str(data_cache), "--output_dir", str(run),
            ],
            cwd=PROJECT, env={**environment(run), "PYTHONPATH": str(PROJECT)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [machine.communicate(timeout=240)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], "\n".join(said)
    assert "finished: " in said[0]
    assert [each.count("TOY MODEL") for each in said] == [1, 0], "only the main process speaks"
    return run


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_ready_configurations_are_what_accelerate_reads(file: Path) -> None:
    config = load_config_from_file(str(file))
    said = yaml.safe_load(file.read_text())
    for name, value in said.items():
        assert str(getattr(config, name)).removeprefix("DistributedType.").removeprefix("ComputeEnvironment.") == str(
            value
        )


@pytest.mark.slow
def test_two_machines_train_what_one_process_does_with_the_doubled_batch(
    two: Path, tmp_path: Path, data_cache: Path
) -> None:
    main([*ONE, *STEPS, "--train_batch_size", "2", "--data_cache_dir", str(data_cache), "--output_dir", str(tmp_path)])
    of_two, of_one = metrics(two), metrics(tmp_path)
    assert of_two.keys() == of_one.keys() == {1, 2, 3}
    assert all(abs(of_two[step] - of_one[step]) < 1e-5 for step in of_two)


@pytest.mark.slow
def test_two_processes_go_on_exactly_and_one_that_dies_stops_the_other(
    two: Path, tmp_path: Path, data_cache: Path
) -> None:
    """On one machine. The clock ends the first part after a step of both, a kill the second."""
    flags = [*FLAGS, "--data_cache_dir", data_cache]
    first = launch(*flags, *STEPS, "--max_time", "0:00", runs=tmp_path)
    assert first.returncode == 124 and "--max_time 0:00 is over" in first.stdout
    assert "saved up to step 1: go on with the same flags" in first.stdout
    assert first.stdout.count("TOY MODEL") == 1, "only the main process speaks"
    process, controller = launch_on_a_terminal(
        *flags, "--max_train_steps", "2000", "--checkpointing_steps", "3", "--checkpoints_total_limit", "none",
        "--resume_from_checkpoint", "latest", runs=tmp_path,
    )  # fmt: skip
    read_until(controller, "step 10/")
    killed, run = time.monotonic(), only_run(tmp_path)
    os.kill(driver_of(run), signal.SIGKILL)
    said = read_until(controller, "closed by the launcher's end", 60)
    sentences = ("the others stopped with it", "another process of this training is gone")
    assert any(sentence in said for sentence in sentences) and "Traceback" not in said, said
    assert process.wait(timeout=60) == 1 and time.monotonic() - killed < 60
    os.close(controller)
    assert_same_until(run / "checkpoint-3", two)
