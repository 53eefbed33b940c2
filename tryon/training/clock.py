"""Where the time of a run goes, part by part, without making anything wait to find out. Imports nothing heavy."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Clock:
    """Adds up the seconds of named parts of a program.

    On a CUDA device a part lasts from an event to another on the stream, so that its time is that of the device's work
    and not of its launch; events are only read once the device has passed them.
    """

    def __init__(self, device: "torch.device") -> None:
        self._on_gpu = device.type == "cuda"
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Times what happens inside. Parts do not nest."""
        if self._on_gpu:
            import torch  # loaded long since; the names of the parts are read by commands that do without it

            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
        else:
            started = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - started

    def take(self) -> dict[str, float]:
        """Seconds by part since the last call; waits for a GPU to finish what was timed."""
        if self._events:
            self._events[-1][2].synchronize()
        for name, begin, end in self._events:
            self._seconds[name] += begin.elapsed_time(end) / 1000
        self._events.clear()
        taken, self._seconds = dict(self._seconds), defaultdict(float)
        return taken


def shares(seconds: dict[str, float], total: float) -> str:
    """Words such as "data 2 %, forward 31 %, rest 4 %" from seconds by part and the whole's seconds."""
    parts = {**seconds, "rest": max(0.0, total - sum(seconds.values()))}
    return ", ".join(f"{name} {100 * part / total:.0f} %" for name, part in parts.items())
