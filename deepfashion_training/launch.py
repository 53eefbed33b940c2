"""Starts a training and supervises it: checks, `accelerate launch` on the driver, output, signals, exit code.

Run by train_deepfashion_lora.sh. With --dataroot the driver is train_flux_inpaint.py, whose flags it takes.

`accelerate launch` turns every exit code into 1, does not pass signals on and prints tracebacks of its own. So the
driver's processes and this one talk through a folder, TRAIN_STATUS_DIR (tryon.signals).
"""

import math
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen
from tempfile import TemporaryDirectory
from types import FrameType

import folder_lists
from deepfashion_training.preflight import read_settings, start_log
from tryon.cli import run_script
from tryon.config import PROJECT, TrainConfig
from tryon.files import save_json
from tryon.profiles import cuda_device_count
from tryon.runs import LAUNCH, LAUNCHER_LOCK, locked
from tryon.signals import BEGUN, STOP_SIGNALS

DRIVER = "deepfashion_training.train_deepfashion_lora"
FOLDER_DRIVER = "train_flux_inpaint"
SIGNALS = (signal.SIGHUP, *STOP_SIGNALS)
# What nohup, or a script for what it starts in the background, has ignored before the start stays ignored.
IGNORED = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_IGN]


def main(argv: list[str]) -> None:
    if any(flag.partition("=")[0] == "--dataroot" for flag in argv):
        driver, (config, _, _, plan) = FOLDER_DRIVER, folder_lists.read_settings(argv)
    else:
        driver, (config, _, _, plan) = DRIVER, read_settings(argv)
    if plan.plan or plan.check:  # the driver alone answers: there is no run to supervise
        os.execv(sys.executable, [sys.executable, "-m", driver, *argv])
    log, before = start_log(config, argv)
    with locked(log.parent, LAUNCHER_LOCK):
        code, begun = supervise(accelerate_command(config, driver, argv), log, config.num_processes)
        if before and not begun:  # the run is as it was, and so is what it goes on with
            save_json(log.parent / LAUNCH, before)
        raise SystemExit(code)


def accelerate_command(config: TrainConfig, driver: str, argv: list[str]) -> list[str]:
    """The command line that starts the run's processes, each of which runs the driver, a module, with argv."""
    threads = math.ceil(len(os.sched_getaffinity(0)) / config.num_processes)
    kind = [] if cuda_device_count() else ["--cpu"]
    if config.num_processes > 1:
        kind = ["--multi_gpu"]  # without it a single process is started; without a GPU the processes talk by gloo
    return [
        sys.executable, "-m", "accelerate.commands.launch", "--quiet",
        "--config_file", str(PROJECT / "deepfashion_training" / "accelerate.yaml"),
        "--num_processes", str(config.num_processes), "--num_machines", "1", "--main_process_port", "0",
        "--dynamo_backend", "no", "--mixed_precision", config.mixed_precision,
        "--num_cpu_threads_per_process", str(threads), *kind,
        "-m", driver, *argv, "--output_dir", config.output_dir,
    ]  # fmt: skip


def supervise(command: list[str], log: Path, num_processes: int) -> tuple[int, bool]:
    """Runs the command, which starts num_processes that call run_script, and returns the training's exit code, and
    whether it began.

    What the processes say is copied to stdout and, as plain lines, into the log. Signals go on to them; one that comes
    before any of them listens ends everything.
    """
    received: list[int] = []
    starter: Popen | None = None

    def pass_on(number: int, frame: FrameType | None = None) -> None:
        received.append(number)
        if starter is None:  # passed on when it is there
            return
        listening = [int(path.stem) for path in status.glob("*.pid")]
        for pid in listening:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM if number == signal.SIGHUP else number)
        if not listening:  # nothing can be lost yet
            end_group(starter, signal.SIGTERM)

    for number in SIGNALS:  # first, as a signal could leave the folder behind
        signal.signal(number, signal.SIG_IGN if number in IGNORED else pass_on)
    with TemporaryDirectory(prefix="train-") as folder:
        status = Path(folder)
        os.mkfifo(status / "output")
        held = os.open(status / "output", os.O_RDWR)  # or the output would end before the first process writes to it
        # The copy is made by a process: where this one is killed, the training and its log go on. Both have groups of
        # their own, so that Ctrl-C reaches this process alone.
        copy = [sys.executable, "-m", "deepfashion_training.log_output", str(log)]
        with (status / "output").open("rb", buffering=0) as output:
            copier = Popen(copy, stdin=output, process_group=0)
        variables = {"TRAIN_STATUS_DIR": folder, **({"TRAIN_TERMINAL": "1"} if os.isatty(1) else {})}
        with (status / "starter.log").open("wb") as said:
            # Popen returns once the new program runs: no signal is lost on a child that has our handlers still.
            starter = Popen(
                command, env={**os.environ, **variables}, stdin=DEVNULL, stdout=said, stderr=STDOUT, process_group=0
            )
        try:
            if received:
                pass_on(received[-1])
            code = starter.wait()
            os.close(held)
            copier.wait()
        finally:
            end_group(starter, signal.SIGKILL)  # no orphan, whatever happened
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        code, words = verdict(code if code >= 0 else 128 - code, received[-1:], status, num_processes)
        begun = (status / BEGUN).exists()
    if words:  # on the terminal and in the log, whichever is still there
        with suppress(OSError):
            os.write(2, words.encode())
        with suppress(OSError), log.open("ab") as file:
            file.write(words.encode())
    return code, begun


def verdict(code: int, received: list[int], status: Path, num_processes: int) -> tuple[int, str]:
    """The training's exit code, and what is to be said.

    code: of the command that started the training; received: the newest signal, if any came; status: TRAIN_STATUS_DIR.
    What the command said itself, mostly tracebacks, is shown only where no process got as far as speaking.
    """
    listened, first_failure = any(status.glob("*.pid")), status / "exit_code"
    left = int((first_failure.exists() and first_failure.read_text()) or 0)
    if code and received and (not left or left > 128):  # else an error came between
        name = signal.Signals(received[0]).name
        return 128 + received[0], "" if listened else f"stopped by {name} before the training began\n"
    if num_processes > 1 and left == 128 + signal.SIGTERM:  # accelerate ends so what is left where one was killed
        return 1, "error: a training process was killed from outside, and the others stopped with it\n"
    if left or not code:
        return left, ""
    if listened or code > 128:
        return code, "error: a training process was killed from outside, most likely for lack of memory\n"
    return code, (status / "starter.log").read_text(errors="replace")


def end_group(leader: Popen, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader.pid, number)


if __name__ == "__main__":
    run_script(main)
