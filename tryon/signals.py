"""What a process does at a signal, and what its launcher learns of its end.

`accelerate launch` turns every exit code into 1, does not pass signals on and prints tracebacks of its own. The
launcher therefore gives its processes a folder, TRAIN_STATUS_DIR. Each writes its output to the pipe `output` in it and
leaves its process id there; the first that fails leaves its exit code, and the main one says when the training begins.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

GRACE_SECONDS = 10  # between a signal and leaving whatever still runs
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
REPEAT_SECONDS = 1.0  # a signal to all processes of a job reaches the driver twice: directly and by the launcher
BEGUN = "begun"  # the file that says that the training has begun
TIME_IS_UP = 124  # exit code, as timeout(1)'s
_started = time.monotonic()
_deadline: float | None = None
_received: list[int] = []
_received_at = 0.0
_finishes_steps = False
_leaves = False


def listen() -> None:
    """From now on a signal ends the process in an orderly way; a launcher, where there is one, gets its output and may
    pass signals on."""
    _handle_all(_stop)
    if status := os.environ.get("TRAIN_STATUS_DIR"):
        # Not blocking: where the launcher is gone nothing reads, and opening is an error instead of an endless wait.
        pipe = os.open(Path(status) / "output", os.O_WRONLY | os.O_NONBLOCK)
        os.set_blocking(pipe, True)
        for stream in (1, 2):
            os.dup2(pipe, stream)
        os.close(pipe)
        (Path(status) / f"{os.getpid()}.pid").touch()


def say_begun() -> None:
    """Tells the launcher, where there is one, that nothing can refuse the training any more."""
    if status := os.environ.get("TRAIN_STATUS_DIR"):
        (Path(status) / BEGUN).touch()


def ignore() -> None:
    """From now on signals do nothing: what is said at the end is not cut short."""
    _handle_all(signal.SIG_IGN)


def ignore_in_worker(worker: int) -> None:
    """A DataLoader's worker goes on at a signal: the process that it reads for decides when to stop."""
    ignore()


def leave(code: int) -> None:
    """Tells the launcher the exit code, if it is a failure's. After a clean end a signal may end the process as it
    likes: nothing is left to clean up."""
    _tell_launcher(code)
    if not _received:
        _handle_all(signal.SIG_DFL)


def stopped_by(error: BaseException) -> int | None:
    """The signal for which the process ends with this error, None where it is not a signal's doing. Whatever breaks
    while the process leaves, the signal is why."""
    return _received[0] if _received and (_leaves or isinstance(error, SystemExit)) else None


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
    """The exit code with which the process should leave, as a signal has come or the time is up; 0: go on."""
    if _received:
        return 128 + _received[0]
    return TIME_IS_UP if _deadline is not None and time.monotonic() >= _deadline else 0


def _handle_all(handler: signal.Handlers | Callable[[int, FrameType | None], None]) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, handler)


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
    ignore()
    _leaves = True
    _received.append(number)
    # A library may wait for its threads, a download for gigabytes: nothing half-written is ever taken for whole.
    timer = threading.Timer(GRACE_SECONDS, _leave_at_once, [number])
    timer.daemon = True
    timer.start()
    raise SystemExit(128 + number)


def _leave_at_once(number: int) -> None:
    print(f"stopped by {signal.Signals(number).name}", file=sys.stderr, flush=True)
    _tell_launcher(128 + number)
    os._exit(128 + number)


def _tell_launcher(code: int) -> None:
    if (status := os.environ.get("TRAIN_STATUS_DIR")) and code:
        # Where the file is there another process failed first, and took this one down.
        with suppress(FileExistsError), (Path(status) / "exit_code").open("x") as file:
            file.write(f"{code}\n")
