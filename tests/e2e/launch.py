"""Starts the real launcher as a user does, and reads what it leaves."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file

from conftest import PROJECT
from tryon.runs import newest_checkpoint, step_of

LAUNCHER = PROJECT / "train_deepfashion_lora.sh"
TOKEN = "hf_plantedbythetests"  # it must turn up nowhere
# As little work as a whole run can have.
SMALL = (
    "--max_train_samples", "6", "--max_validation_samples", "2", "--num_validation_images", "1",
    "--num_evaluation_samples", "0", "--train_batch_size", "2",
)  # fmt: skip


def environment(runs: Path) -> dict[str, str]:
    """The caller's environment, with the runs elsewhere and no thread of the tests' own settings in it."""
    kept = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "TRAIN_TERMINAL"}}
    return {**kept, "RUNS_DIR": str(runs), "HF_HUB_OFFLINE": "1", "HF_TOKEN": TOKEN}


def launch(*flags: str | Path, runs: Path, cwd: Path = PROJECT, timeout: int = 240) -> subprocess.CompletedProcess:
    """Runs train_deepfashion_lora.sh to its end."""
    command = ["bash", str(LAUNCHER), *map(str, flags)]
    return subprocess.run(
        command, cwd=cwd, env=environment(runs), capture_output=True, text=True, timeout=timeout, check=False
    )


def launch_on_a_terminal(
    *flags: str | Path, runs: Path, temporary: Path = Path("/tmp")
) -> tuple[subprocess.Popen, int]:
    """start_on_a_terminal for the launcher. temporary: where its pipe is made."""
    variables = {**environment(runs), "TMPDIR": str(temporary)}
    return start_on_a_terminal(["bash", str(LAUNCHER), *map(str, flags)], variables)


def start_on_a_terminal(
    command: list[str], variables: dict[str, str], ignored: Sequence[signal.Signals] = ()
) -> tuple[subprocess.Popen, int]:
    """Starts the command in a session of its own with a terminal, as an interactive shell does. Returns it and the
    terminal's other end. ignored: signals that are ignored from the start, as by nohup."""
    controller, terminal = pty.openpty()

    def like_an_interactive_shell() -> None:
        os.close(os.open(os.ttyname(0), os.O_RDWR))  # makes it the controlling terminal
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the tests themselves run in the background
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)

    process = subprocess.Popen(
        command, cwd=PROJECT, env=variables, stdin=terminal, stdout=terminal, stderr=terminal,
        start_new_session=True, preexec_fn=like_an_interactive_shell,
    )  # fmt: skip
    os.close(terminal)
    return process, controller


def read_until(controller: int, words: str, seconds: float = 120) -> str:
    """What the terminal shows until `words` come up, or until it is closed."""
    shown, end = "", time.monotonic() + seconds
    while words not in shown:
        assert time.monotonic() < end, f"{words!r} did not come up in:\n{shown}"
        try:
            shown += os.read(controller, 65536).decode(errors="replace")
        except OSError:  # the terminal is closed
            break
    return shown


def only_run(runs: Path) -> Path:
    folders = [path for path in runs.iterdir() if path.is_dir()]
    assert len(folders) == 1, folders
    return folders[0]


def metrics(run: Path, name: str = "train/loss") -> dict[int, float]:
    """One curve of a run: {step: value}."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if name in line}


def assert_same_run(run: Path, other: Path) -> None:
    """Newest checkpoint and logged losses of both are the same to the last bit."""
    assert newest_checkpoint(run).name == newest_checkpoint(other).name
    assert_same_until(newest_checkpoint(run), other)
    assert metrics(run) == metrics(other)


def assert_same_until(checkpoint: Path, other: Path) -> None:
    """The checkpoint, and what its run logged until then, are the other run's to the last bit."""
    run, second = checkpoint.parent, other / checkpoint.name
    names = sorted(str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(second)) for path in second.rglob("*") if path.is_file())
    for name in names:
        if name.endswith(".safetensors"):
            expected, found = load_file(checkpoint / name), load_file(second / name)
            assert expected.keys() == found.keys()
            assert all(torch.equal(expected[key], found[key]) for key in expected), name
        elif name != "manifest.json":
            assert json.loads((checkpoint / name).read_text()) == json.loads((second / name).read_text()), name
    for curve in ("train/loss", "train/learning_rate", "train/grad_norm"):
        logged, expected = (
            {step: value for step, value in metrics(each, curve).items() if step <= step_of(checkpoint)}
            for each in (run, other)
        )
        assert logged == expected and logged, curve


def processes_with(word: str) -> list[int]:
    """Ids of the processes on this machine whose command line holds the word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word in path.read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                found.append(int(path.parent.name))
        except OSError:  # it ended meanwhile
            continue
    return [pid for pid in found if pid != os.getpid()]


def driver_of(run: Path) -> int:
    """Id of a process that trains into the run's folder: none of its workers."""
    found = [
        pid
        for pid in processes_with(f"--output_dir {run}")
        if "accelerate.commands.launch" not in Path(f"/proc/{pid}/cmdline").read_text()
    ]
    workers = {child for pid in found for child in children_of(pid)}
    return next(pid for pid in found if pid not in workers)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until(holds: Callable[[], bool], seconds: float = 60, every: float = 0.05) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(every)


def wait_for_no_process_with(word: str, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while processes_with(word):
        assert time.monotonic() < end, f"orphans: {processes_with(word)}"
        time.sleep(0.1)


def interrupt(controller: int) -> None:
    """Ctrl-C, typed at the terminal."""
    os.write(controller, b"\x03")


@contextmanager
def served_app(*flags: str | Path, variables: dict[str, str]) -> Iterator[str]:
    """The address of app_lora.py, started as a user starts it and ended by Ctrl-C."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "app_lora.py", "--port", str(port), *map(str, flags)],
        cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=variables,
    )  # fmt: skip
    said = ""
    while "serving" not in said:
        line = process.stdout.readline()
        assert line, f"the app ended: {said}"
        said += line
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
    said += process.stdout.read()  # communicate would lose what readline read ahead
    assert process.returncode == 130
    assert "Traceback" not in said and "Warning" not in said, said
