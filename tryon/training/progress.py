"""What a training shows while it runs: a bar or lines, and at the end where its time went."""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from accelerate import Accelerator

from tryon.config import TrainConfig
from tryon.console import on_terminal, progress_bar
from tryon.runs import STEP_PARTS
from tryon.training.clock import Clock, shares
from tryon.training.speed import remember_speed
from tryon.training.tracking import log_metrics

logger = logging.getLogger(__name__)

LOG_EVERY = 10  # optimiser steps between two plain lines in the log; metrics.jsonl gets every step
WORTH_REMEMBERING = 20  # steps: fewer say little about a run's speed


class Progress:
    """The bar, the lines and the clock of a training that goes on from `first_step` to `max_steps`."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator, run: Path, first_step: int, max_steps: int):
        self._config, self._accelerator, self._run = config, accelerator, run
        self._first_step, self._max_steps = first_step, max_steps
        self._spent: Counter[str] = Counter()  # seconds by part
        self._begun = time.monotonic()
        self.clock = Clock(accelerator.device)

    def start(self) -> None:
        """Shows the bar. Call it right before the first step."""
        self._started = time.monotonic()
        self._open_bar(self._first_step)

    def _open_bar(self, step: int) -> None:
        shown = self._accelerator.is_main_process and on_terminal()  # a log has lines of every tenth step
        self._bar = progress_bar(self._max_steps, "training", shown, initial=step)

    @contextmanager
    def between_steps(self, part: str, step: int) -> Iterator[None]:
        """Times what happens after a step, which shows a bar of its own: that of the steps is away meanwhile, and after
        the last step it does not come back."""
        self._bar.close()
        with self.clock.part(part):
            yield
        if step < self._max_steps:
            self._open_bar(step)

    def show(self, step: int, metrics: dict[str, float]) -> None:
        """Logs what `optimiser_step` returned for a step."""
        log_metrics(self._accelerator, self._run, step, metrics)
        words = "loss {train/loss:.4f}, lr {train/learning_rate:.1e}, {train/seconds:.2f} s/step".format_map(metrics)
        self._bar.set_postfix_str(words, refresh=False)
        self._bar.update()
        if step % LOG_EVERY == 0 or step == self._max_steps:
            each = (time.monotonic() - self._started) / (step - self._first_step)
            left = timedelta(seconds=round(each * (self._max_steps - step)))
            more = f", {left} left" if step < self._max_steps else ""  # a validation follows the last step
            logger.info("step %d/%d: %s%s", step, self._max_steps, words, more)
            self._take_time(step)

    def _take_time(self, step: int) -> None:
        seconds = self.clock.take()
        self._spent.update(seconds)
        log_metrics(self._accelerator, self._run, step, {f"time/{part}": each for part, each in seconds.items()})

    def close(self) -> None:
        """Takes the bar away."""
        self._bar.close()

    def finish(self, step: int) -> None:
        """Says where the time went, and remembers the speed for the plans of later runs."""
        self.close()
        self._take_time(step)
        steps = step - self._first_step
        if self._accelerator.is_main_process and steps >= WORTH_REMEMBERING:
            trained = sum(self._spent[part] for part in STEP_PARTS)
            remember_speed(self._config, self._accelerator.device, trained / steps)
        logger.info("where time went: %s", shares(self._spent, time.monotonic() - self._begun))
