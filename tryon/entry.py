"""What every script does around its main function: signals, errors in plain words, an exit code that gets out.

`accelerate launch` turns every exit code into 1, does not pass signals on and prints tracebacks of its own. The
launcher therefore gives its processes a folder, TRAIN_STATUS_DIR. Each writes its output to the pipe `output` in it and
leaves its process id there; the first that fails leaves its exit code.
"""

import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tryon.config import PROJECT
from tryon.console import MODEL_LIBRARIES, load_libraries

MEMORY_ADVICE = (
    "give --quantization nf4, in training --gradient_checkpointing full and --train_batch_size 1, smaller panels with "
    "--height and --width, or --offload"
)
PEER_IS_GONE = ("Connection closed by peer", "Connection reset by peer", "Socket closed", "Broken pipe")
GRACE_SECONDS = 10  # between a signal and leaving whatever still runs
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
REPEAT_SECONDS = 1.0  # whoever signals all processes of a job reaches the driver twice: directly and by the launcher
TIME_IS_UP = 124  # exit code, as timeout(1)'s
_started = time.monotonic()
_deadline: float | None = None
_received: list[int] = []
_received_at = 0.0
_finishes_steps = False
_leaves = False


def check_first(read_settings: Callable[[list[str]], object], *libraries: str) -> None:
    """Reads the settings from the command line and leaves the process where they are wrong, or after --help; then loads
    what the script imports next, with a word. libraries: see load_libraries; those of the model if not given."""
    try:
        read_settings(sys.argv[1:])
    except ValueError as error:
        sys.exit(_exit_code(error))
    load_libraries(*(libraries or MODEL_LIBRARIES))


def run_script(main: Callable[[list[str]], None]) -> NoReturn:
    """Calls main with the command line's arguments and leaves the process.

    Exit codes: 0 done; 128 + n stopped by signal n; 1 for an error: one sentence for a ValueError of this project, a
    traceback for anything else.
    """
    status = os.environ.get("TRAIN_STATUS_DIR")
    for each in STOP_SIGNALS:
        signal.signal(each, _stop)
    if status:
        _join_launcher(Path(status))
    try:
        main(sys.argv[1:])
        code = 0
    except BaseException as error:
        for each in STOP_SIGNALS:  # what is said now is not cut short
            signal.signal(each, signal.SIG_IGN)
        code = _exit_code(error)
    sys.stdout.flush()
    if status and code:
        _leave_exit_code(Path(status) / "exit_code", code)
    if not _received:  # nothing is left to clean up: a signal that comes now may end the process as it likes
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_DFL)
    sys.exit(code)


def _join_launcher(status: Path) -> None:
    # Where the launcher is gone, nobody reads: an error, instead of waiting for ever.
    pipe = os.open(status / "output", os.O_WRONLY | os.O_NONBLOCK)
    os.set_blocking(pipe, True)
    for stream in (1, 2):
        os.dup2(pipe, stream)
    os.close(pipe)
    (status / f"{os.getpid()}.pid").touch()


def leave_signals_to_the_process(worker: int) -> None:
    """A worker goes on at a signal: the process that it reads for decides when to stop."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def finishing_steps() -> Iterator[None]:
    """Around a loop that asks `asked_to_stop` after each step, and then saves and leaves: the first signal only asks; a
    second one, or one that comes elsewhere, stops at once."""
    global _finishes_steps
    _finishes_steps = True
    try:
        yield
    finally:
        _finishes_steps = False


def stop_after(seconds: float | None) -> None:
    """Sets a time, counted from the start of the process, from which `asked_to_stop` asks too; None: no such time."""
    global _deadline
    _deadline = None if seconds is None else _started + seconds


def asked_to_stop() -> int:
    """The exit code of whoever leaves because a signal has come or the time is up; 0 where neither is so."""
    if _received:
        return 128 + _received[0]
    return TIME_IS_UP if _deadline is not None and time.monotonic() >= _deadline else 0


def _stop(number: int, frame: FrameType | None) -> None:
    global _received_at, _leaves
    if _received and not _leaves and time.monotonic() - _received_at < REPEAT_SECONDS:
        return
    if _finishes_steps and not _received:
        _received.append(number)
        _received_at = time.monotonic()
        if os.environ.get("RANK", "0") == "0":  # one of several processes speaks; print may have been interrupted
            words = f"{signal.Signals(number).name}: saving after this step; a second one stops at once"
            if os.environ.get("TRAIN_TERMINAL") == "1" or os.isatty(2):
                words = f"\r{words:<110}"  # over the progress bar
            os.write(2, f"{words}\n".encode())
        return
    for each in STOP_SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    _leaves = True
    _received.append(number)
    # A library may wait for its threads, a download for gigabytes: nothing half-written is ever taken for whole.
    timer = threading.Timer(GRACE_SECONDS, _leave_at_once, [number])
    timer.daemon = True
    timer.start()
    raise SystemExit(128 + number)


def _leave_at_once(number: int) -> None:
    print(f"stopped by {signal.Signals(number).name}", file=sys.stderr, flush=True)
    if status := os.environ.get("TRAIN_STATUS_DIR"):
        _leave_exit_code(Path(status) / "exit_code", 128 + number)
    os._exit(128 + number)


def _exit_code(error: BaseException) -> int:
    if _received and (_leaves or isinstance(error, SystemExit)):  # whatever broke while leaving, the signal is why
        print(f"stopped by {signal.Signals(_received[0]).name}", file=sys.stderr)
        return 128 + _received[0]
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    said, worker = str(error), "DataLoader worker"  # torch's words, and its traceback as text
    if isinstance(error, ValueError) and _raised_by_project(error):
        print(f"error: {error}", file=sys.stderr)
    elif isinstance(error, ValueError) and said.startswith(f"Caught ValueError in {worker}"):
        print(f"error: {said.strip().splitlines()[-1].removeprefix('ValueError: ')}", file=sys.stderr)
    elif isinstance(error, RuntimeError) and said.startswith(worker):
        print(
            f"error: a process that reads data was ended from outside ({said.splitlines()[0]}), most likely for "
            "want of memory: resume or start again, perhaps with fewer --dataloader_num_workers",
            file=sys.stderr,
        )
    elif isinstance(error, RuntimeError) and any(words in said for words in PEER_IS_GONE):
        print(f"error: another process of this training is gone ({said.splitlines()[0]})", file=sys.stderr)
    elif type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
        print(f"error: the GPU's memory is full ({str(error).split('. ')[0]}): {MEMORY_ADVICE}", file=sys.stderr)
    else:
        traceback.print_exception(error)
    return 1


def _raised_by_project(error: BaseException) -> bool:
    """Whether the error was raised in a file of this project: a library's ValueError deserves its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    path = Path(frames[-1].filename).resolve() if frames else PROJECT
    return path.is_relative_to(PROJECT) and "site-packages" not in path.parts


def _leave_exit_code(path: Path, code: int) -> None:
    try:
        with path.open("x") as file:
            file.write(f"{code}\n")
    except FileExistsError:  # another process failed first, and took this one down
        pass
