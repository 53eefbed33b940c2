"""Copies a training's output to the terminal and, as plain lines, to the run's train.log.

The progress bar redraws its line with carriage returns: the terminal gets them as they are, the log only what a line
shows when it is done. Goes on with the log where the terminal is gone, and with the terminal where the disk is full.
"""

import os
import signal
import sys
from contextlib import suppress


def main(path: str) -> None:
    # It ends when the training's output does. SIGTTOU stops a background process that writes to some terminals.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
    line = b""
    with open(path, "ab", buffering=0) as log:  # noqa: PTH123 (a path from the launcher, opened once)
        while chunk := os.read(0, 65536):
            with suppress(OSError):
                os.write(1, chunk)
            *done, line = (line + chunk).split(b"\n")
            for each in done:
                with suppress(OSError):
                    log.write(last_state(each) + b"\n")
            line = line[line.rfind(b"\r") + 1 :] if len(line) > 4096 else line
        if last_state(line):
            with suppress(OSError):
                log.write(last_state(line) + b"\n")


def last_state(line: bytes) -> bytes:
    """What a terminal shows of a line once it is complete: the text after its last carriage return."""
    return line.rstrip(b"\r").rpartition(b"\r")[2].rstrip()


if __name__ == "__main__":
    main(sys.argv[1])
