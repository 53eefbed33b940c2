"""What a run says while it runs: the progress bar, metrics.jsonl, and TensorBoard through accelerate."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import GeneralTracker
from PIL import Image
from tqdm import tqdm

logger = logging.getLogger(__name__)


def on_terminal() -> bool:
    """Whether somebody sees what is written now. The launcher reads the driver's output through a pipe, so it says with
    TRAIN_TERMINAL that a terminal is behind it."""
    return sys.stderr.isatty() or os.environ.get("TRAIN_TERMINAL") == "1"


def progress_bar(total: int, description: str, visible: bool, initial: int = 0) -> tqdm:
    """A bar on a terminal; nothing where the output goes to a file."""
    shown = visible and on_terminal() and total > 0
    return tqdm(total=total, initial=initial, desc=description, disable=not shown, ncols=110, leave=False)


def start_processes() -> PartialState:
    """Lets the processes of a run find each other: NCCL on GPUs, gloo on CPUs.

    They wait for each other for hours if need be: while one downloads, encodes prompts or draws the validation.
    """
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=6))


def set_up_logging(is_main_process: bool) -> None:
    """Plain lines on stdout, above the progress bar; only warnings from processes other than the main one."""

    class AboveTheBar(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()

    handler = AboveTheBar()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO if is_main_process else logging.WARNING, handlers=[handler], force=True)
    quiet_libraries()


def quiet_libraries() -> None:
    """Silences progress bars and remarks of the libraries that a user can do nothing about; errors stay."""
    import datasets
    import diffusers
    import transformers

    for library in (datasets, diffusers.utils, transformers.utils):
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()
    for name in ("accelerate", "httpx", "httpx2", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)  # accelerate knows no other name for it yet


def log_metrics(accelerator: Accelerator, run: Path, step: int, metrics: dict[str, float]) -> None:
    """One line in the run's metrics.jsonl and one point per curve, from the main process.

    Raises ValueError where the line cannot be written.
    """
    if not accelerator.is_main_process:
        return
    if not run.is_dir():  # the weights to come must not be lost with it
        logger.warning("somebody removed %s: it is made anew", run)
    try:
        run.mkdir(parents=True, exist_ok=True)
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
    except OSError as error:
        raise ValueError(
            f"{run}/metrics.jsonl cannot be written ({error}): make room on the disk, then resume"
        ) from error
    with_trackers(accelerator, lambda tracker: tracker.log(metrics, step=step))


def with_trackers(accelerator: Accelerator, act: Callable[[GeneralTracker], None]) -> None:
    """Lets each tracker act. One that fails is left out from then on: it must not cost the training."""
    for tracker in list(accelerator.trackers):
        try:
            act(tracker)
        except Exception as error:
            logger.warning("%s failed (%s) and is left out: metrics.jsonl goes on", tracker.name, error)
            accelerator.trackers.remove(tracker)


def forget_metrics_after(run: Path, step: int) -> None:
    """Takes out of metrics.jsonl what a resumed run will measure again. Call it on every process; the main one acts."""
    path = run / "metrics.jsonl"
    if PartialState().is_main_process and path.exists():
        lines = path.read_text().splitlines(keepends=True)
        if lines and not lines[-1].endswith("}\n"):  # cut short by a full disk or a loss of power
            lines.pop()
        lines = [line for line in lines if json.loads(line)["step"] <= step]
        staging = path.with_suffix(".partial")
        staging.write_text("".join(lines))
        staging.replace(path)


def log_picture(accelerator: Accelerator, name: str, picture: Image.Image, step: int) -> None:
    """The picture among TensorBoard's images, where it is used."""

    def add(tracker: GeneralTracker) -> None:
        if tracker.name == "tensorboard":
            tracker.writer.add_image(name, np.asarray(picture), step, dataformats="HWC")

    with_trackers(accelerator, add)
