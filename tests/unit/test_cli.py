"""What every script does around its main function."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from conftest import PROJECT


def test_a_signal_ends_even_what_waits_for_its_threads() -> None:
    """As a download does, which waits for the gigabytes that are under way."""
    code = """
import time
from concurrent.futures import ThreadPoolExecutor
from tryon import cli, signals

def main(argv):
    with ThreadPoolExecutor() as pool:
        pool.submit(time.sleep, 600)
        print("waiting", flush=True)
        time.sleep(600)

signals.GRACE_SECONDS = 0.5
cli.run_script(main)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=20)
    assert process.returncode == 143
    assert said == "stopped by SIGTERM\n"


def test_a_loop_finishes_its_step_at_the_first_signal_and_ends_at_the_second() -> None:
    code = """
import sys, time
from tryon import cli, signals

def main(argv):
    with signals.finishing_steps():
        print("training", flush=True)
        while not (argv and signals.asked_to_stop()):
            time.sleep(0.01)
    print("saved", flush=True)
    raise SystemExit(signals.asked_to_stop())

cli.run_script(main)
"""
    for flags, signals in ((["polite"], 1), ([], 2)):
        process = subprocess.Popen(
            [sys.executable, "-c", code, *flags], cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "training\n"
        said = ""
        for number in range(signals):
            process.send_signal(signal.SIGUSR1)
            if number == 0:
                said += process.stderr.readline()
                process.send_signal(signal.SIGUSR1)  # reaches it twice, as where all processes of a job are signalled
                time.sleep(1.2)
        process.wait(timeout=20)
        printed, rest = process.stdout.read(), process.stderr.read()  # communicate would lose what readline read ahead
        assert process.returncode == 128 + signal.SIGUSR1
        assert (said + rest).splitlines() == [
            "SIGUSR1: saving after this step; a second one stops at once", "stopped by SIGUSR1"
        ]  # fmt: skip
        assert printed == ("saved\n" if flags else "")


def test_what_ends_a_worker_is_one_sentence() -> None:
    code = """
import os, signal, torch
from tryon import cli, signals
from torch.utils.data import DataLoader, Dataset

class Latents(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        if MODE == "damaged":
            raise ValueError("the cached latents are damaged")
        if torch.utils.data.get_worker_info():
            os.kill(os.getpid(), signal.SIGKILL)

cli.run_script(lambda argv: list(DataLoader(Latents(), num_workers=1)))
"""
    for mode, sentence in (
        ("damaged", "error: the cached latents are damaged\n"),
        ("killed", "error: a process that reads data was ended from outside (DataLoader worker"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", f"MODE = {mode!r}\n{code}"], cwd=PROJECT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert done.stderr.startswith(sentence) and done.stderr.count("\n") == 1, done.stderr


def test_a_refusal_is_one_sentence_through_a_link_too(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(PROJECT)
    refused = subprocess.run(
        [sys.executable, "-m", "deepfashion_training.launch", "--nope"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "link"), "PYTHONSAFEPATH": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert refused.stderr == "error: unknown flag --nope\n"
