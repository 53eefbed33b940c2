"""The long part: faults injected into the real commands. `bash tests/run.sh --faults`.

All end with the same question: does the run go on to what an undisturbed one became, bit for bit?
"""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from conftest import PROJECT
from launch import (
    LAUNCHER,
    SMALL,
    assert_same_run,
    children_of,
    driver_of,
    environment,
    interrupt,
    launch,
    launch_on_a_terminal,
    metrics,
    only_run,
    read_until,
    wait_until,
)
from tryon.runs import newest_checkpoint, step_of

pytestmark = pytest.mark.faults

STEPS = 400
RUN = (
    "--quick-test", *SMALL, "--height", "96", "--width", "64", "--num_inference_steps", "1", "--lora_rank", "4",
    "--lr_scheduler", "constant", "--checkpointing_steps", "2", "--validation_steps", "1000",
)  # fmt: skip
LONG = (*RUN, "--max_train_steps", str(STEPS))
SHORT = (*RUN, "--max_train_steps", "8")
RESUME = ("--resume_from_checkpoint", "latest")


def whole(runs: Path, data_cache: Path, *flags: str) -> Path:
    """A run that nothing disturbs."""
    done = launch(*flags, "--data_cache_dir", data_cache, runs=runs, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return only_run(runs)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data_cache: Path) -> Path:
    return whole(tmp_path_factory.mktemp("short"), data_cache, *SHORT)


def start(*flags: str | Path, runs: Path) -> subprocess.Popen:
    return subprocess.Popen(
        ["bash", str(LAUNCHER), *map(str, flags)], cwd=PROJECT, env=environment(runs), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def limited(runs: Path) -> dict[str, str]:
    """The environment of a start whose files cannot grow: Python would leave its own cut short beside the libraries."""
    return {**environment(runs), "PYTHONDONTWRITEBYTECODE": "1"}


def go_on(runs: Path, data_cache: Path, *flags: str | Path) -> str:
    """Resumes to the end; returns what it says."""
    done = launch(*flags, *RESUME, "--data_cache_dir", data_cache, runs=runs, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_killed_at_twenty_random_moments(faults, tmp_path: Path, data_cache: Path) -> None:
    """Every third time while a checkpoint is written."""
    expected = whole(tmp_path / "whole", data_cache, *LONG)
    rng, runs = np.random.default_rng(0), tmp_path / "killed"
    with faults(20):
        saved = 0
        for number in range(20):
            process = start(*LONG, *(RESUME if number else ()), "--data_cache_dir", data_cache, runs=runs)
            wait_until(lambda: runs.is_dir() and any(runs.iterdir()))
            run, step = only_run(runs), saved + rng.integers(3, 16)
            wait_until(lambda run=run, step=step: (run / "metrics.jsonl").is_file()
                       and max(metrics(run), default=0) >= step, 120)  # fmt: skip
            driver = driver_of(run)
            if number % 3 == 2:
                wait_until(lambda run=run: any(run.glob(".checkpoint-*.partial")), every=0.0005)
            else:
                time.sleep(rng.uniform(0, 0.3))
            os.kill(driver, signal.SIGKILL)
            said, _ = process.communicate(timeout=60)
            assert process.returncode == 1 and "was killed from outside" in said
            saved = step_of(newest_checkpoint(run))
        go_on(runs, data_cache, *LONG)
        assert_same_run(only_run(runs), expected)


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
@pytest.mark.parametrize("name", ["optimizer.safetensors", "optimizer.json", "trainer_state.json", "manifest.json",
                                  "transformer/pytorch_lora_weights.safetensors"])  # fmt: skip
def test_a_damaged_file_of_each_kind(
    faults, name: str, damage: str, undisturbed: Path, tmp_path: Path, data_cache: Path
) -> None:
    with faults():
        run = Path(shutil.copytree(undisturbed, tmp_path / undisturbed.name))
        shutil.rmtree(run / "checkpoint-8")
        file = run / "checkpoint-6" / name
        content = bytearray(file.read_bytes())
        if damage == "missing":
            file.unlink()
        elif damage == "cut":
            file.write_bytes(content[: len(content) // 2])
        else:
            content[len(content) // 2] ^= 255
            file.write_bytes(content)
        said = go_on(tmp_path, data_cache, *SHORT)
        assert "kept as checkpoint-6.damaged, going on from checkpoint-4" in said
        assert (run / "checkpoint-6.damaged").is_dir()
        assert_same_run(run, undisturbed)


def test_a_full_disk_while_a_checkpoint_is_written(faults, undisturbed: Path, tmp_path: Path, data_cache: Path) -> None:
    """Played by a limit on the size of files, here and below."""
    with faults():
        launched = launch(*RUN, "--max_train_steps", "2", "--data_cache_dir", data_cache, runs=tmp_path)
        assert launched.returncode == 0
        command = ["bash", "-c", 'ulimit -f 100; exec bash "$0" "$@"', LAUNCHER, *SHORT, *RESUME]
        full = subprocess.run(
            [*map(str, command), "--data_cache_dir", str(data_cache)], cwd=PROJECT, env=limited(tmp_path),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        run = only_run(tmp_path)
        assert full.returncode == 1, full.stdout + full.stderr
        assert "checkpoint-4 cannot be written" in full.stdout and "make room on the disk, then resume" in full.stdout
        assert "saved up to step 2: go on" in full.stdout and "Traceback" not in full.stdout + full.stderr
        assert not list(run.glob(".checkpoint-*")), "a part of a checkpoint would fill the disk"
        go_on(tmp_path, data_cache, *SHORT)
        assert_same_run(run, undisturbed)


def test_a_full_disk_while_latents_are_cached(faults, undisturbed: Path, tmp_path: Path, data_cache: Path) -> None:
    with faults():
        cache = Path(shutil.copytree(data_cache, tmp_path / "cache"))
        whole(tmp_path / "first", cache, *SHORT)  # all but the latents is there
        shutil.rmtree(cache / "latents")
        flags = [*map(str, SHORT), "--data_cache_dir", str(cache)]
        full = subprocess.run(
            ["bash", "-c", 'ulimit -f 10; exec bash "$0" "$@"', str(LAUNCHER), *flags], cwd=PROJECT,
            env=limited(tmp_path / "runs"), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert full.returncode == 1, full.stdout
        assert f"{cache}/latents/" in full.stdout and "make room, or put the cache elsewhere" in full.stdout
        assert "Traceback" not in full.stdout + full.stderr
        shutil.rmtree(tmp_path / "runs")
        assert_same_run(whole(tmp_path / "runs", cache, *SHORT), undisturbed)


def test_damaged_latents(faults, undisturbed: Path, tmp_path: Path, data_cache: Path) -> None:
    with faults(3):
        cache = Path(shutil.copytree(data_cache, tmp_path / "cache"))
        first = whole(tmp_path / "first", cache, *SHORT)
        assert_same_run(first, undisturbed)
        cut, flipped, missing = sorted((cache / "latents").rglob("*.safetensors"))[:3]
        cut.write_bytes(cut.read_bytes()[:-9])
        content = bytearray(flipped.read_bytes())
        content[-9] ^= 1
        flipped.write_bytes(content)
        missing.unlink()
        again = launch(*SHORT, "--data_cache_dir", cache, runs=tmp_path / "again")
        assert again.returncode == 0, again.stdout
        counted = re.findall(r"(\d) of \d encoded \w+ samples were damaged and are encoded again", again.stdout)
        assert sum(map(int, counted)) == 2, again.stdout
        assert_same_run(only_run(tmp_path / "again"), undisturbed)


def test_a_killed_worker(faults, undisturbed: Path, tmp_path: Path, data_cache: Path) -> None:
    with faults():
        flags = [*LONG, "--dataloader_num_workers", "1", "--data_cache_dir", data_cache]
        process, controller = launch_on_a_terminal(*flags, runs=tmp_path)
        read_until(controller, "step 10/")
        run = only_run(tmp_path)
        os.kill(children_of(driver_of(run))[0], signal.SIGKILL)
        said = read_until(controller, "go on with the same flags")
        said += read_until(controller, "closed by the launcher's end", 30)
        assert process.wait(timeout=30) == 1
        assert "a process that reads data was ended from outside" in said and "Traceback" not in said
        os.close(controller)
        step = step_of(newest_checkpoint(run))
        steps = (*RUN, "--max_train_steps", str(step + 3))
        go_on(tmp_path, data_cache, *steps)
        assert_same_run(run, whole(tmp_path / "whole", data_cache, *steps))


def test_a_worker_killed_while_it_reads_pictures(faults, tmp_path: Path, data_cache: Path) -> None:
    with faults():
        cache = Path(shutil.copytree(data_cache, tmp_path / "cache"))
        flags = (*SHORT, "--max_train_samples", "300", "--dataloader_num_workers", "1")
        expected = whole(tmp_path / "whole", cache, *flags)
        shutil.rmtree(cache / "latents")
        process = start(*flags, "--data_cache_dir", cache, runs=tmp_path / "runs")
        wait_until(lambda: any((cache / "latents").glob("*/*.safetensors")), 120)
        os.kill(children_of(driver_of(only_run(tmp_path / "runs")))[0], signal.SIGKILL)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 1 and "Traceback" not in said
        assert "a process that reads data was ended from outside" in said
        encoded = set((cache / "latents").glob("*/*"))
        assert encoded and all(file.suffix == ".safetensors" and file.name[0] != "." for file in encoded)
        shutil.rmtree(tmp_path / "runs")
        assert_same_run(whole(tmp_path / "runs", cache, *flags), expected)


def test_a_removed_output_folder(faults, tmp_path: Path, data_cache: Path) -> None:
    """The weights to come are not lost with it: they are those of an undisturbed run."""
    with faults():
        flags = (*RUN, "--max_train_steps", "60", "--checkpointing_steps", "60")
        process, controller = launch_on_a_terminal(*flags, "--data_cache_dir", data_cache, runs=tmp_path / "runs")
        read_until(controller, "step 10/60")
        run = only_run(tmp_path / "runs")
        shutil.rmtree(run.rename(tmp_path / "removed"), ignore_errors=True)  # it goes on writing
        said = read_until(controller, "finished: ")
        assert process.wait(timeout=30) == 0
        os.close(controller)
        assert f"{run} was removed while the run goes on: it is created again" in said.replace("\r\n", "")
        expected = whole(tmp_path / "whole", data_cache, *flags)
        shutil.copy(expected / "metrics.jsonl", run / "metrics.jsonl")  # its first lines are gone
        assert_same_run(run, expected)


def test_two_runs_in_one_folder(faults, tmp_path: Path, data_cache: Path) -> None:
    with faults():
        flags = (*LONG, "--checkpointing_steps", "1000", "--data_cache_dir", data_cache)
        process, controller = launch_on_a_terminal(*flags, "--output_dir", tmp_path / "run", runs=tmp_path)
        read_until(controller, "step 10/")
        second = launch(*flags, "--output_dir", tmp_path / "run", runs=tmp_path)
        assert second.returncode == 1
        assert second.stderr.startswith("error: another training, process ") and second.stderr.count("\n") == 1
        interrupt(controller)
        read_until(controller, "closed by the launcher's end", 60)
        assert process.wait(timeout=30) == 130
        os.close(controller)
        steps = ("--max_train_steps", str(step_of(newest_checkpoint(tmp_path / "run")) + 3))
        go_on(tmp_path, data_cache, *RUN, "--output_dir", tmp_path / "run", *steps)
        assert_same_run(tmp_path / "run", whole(tmp_path / "whole", data_cache, *RUN, *steps))


def test_one_of_two_processes_is_killed(faults, tmp_path: Path, data_cache: Path) -> None:
    with faults():
        flags = (*RUN, "--num_processes", "2", "--train_batch_size", "1")
        process, controller = launch_on_a_terminal(
            *flags, "--max_train_steps", "400", "--data_cache_dir", data_cache, runs=tmp_path / "parts"
        )
        read_until(controller, "step 10/")
        run, ended = only_run(tmp_path / "parts"), time.monotonic()
        os.kill(driver_of(run), signal.SIGKILL)
        read_until(controller, "closed by the launcher's end", 60)
        assert process.wait(timeout=60) == 1 and time.monotonic() - ended < 60
        os.close(controller)
        steps = ("--max_train_steps", str(step_of(newest_checkpoint(run)) + 3))
        go_on(tmp_path / "parts", data_cache, *flags, *steps)
        assert_same_run(run, whole(tmp_path / "whole", data_cache, *flags, *steps))
