"""What a run records while it runs: metrics.jsonl, and accelerate's trackers, such as TensorBoard."""

import json
import logging
import re
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from PIL import Image

from tryon.config import TrainConfig, trackers
from tryon.files import replacing

logger = logging.getLogger(__name__)

PROJECT_NAME = "tryon"  # of the runs of all profiles, in every tracker


def start_processes() -> PartialState:
    """Lets the processes of a run find each other: NCCL on GPUs, gloo on CPUs.

    They wait for each other for hours if need be: while one downloads, encodes prompts or draws the validation.
    """
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=6))


def log_metrics(accelerator: Accelerator, run: Path, step: int, metrics: dict[str, float]) -> None:
    """One line in the run's metrics.jsonl and one point per curve, from the main process.

    Raises ValueError where the line cannot be written.
    """
    if not accelerator.is_main_process:
        return
    if not run.is_dir():  # the weights to come must not be lost with it
        logger.warning("%s was removed while the run goes on: it is created again", run)
    try:
        run.mkdir(parents=True, exist_ok=True)
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
    except OSError as error:
        message = f"{run}/metrics.jsonl cannot be written ({error}): make room on the disk, then resume"
        raise ValueError(message) from error
    if metrics:  # nothing at all is an error to some
        with_trackers(accelerator, lambda tracker: tracker.log(_named_for(tracker, metrics), step=step))


def _named_for(tracker: GeneralTracker, metrics: dict[str, float]) -> dict[str, float]:
    """The metrics as the tracker names them. TensorBoard sorts by name, capitals first, and opens the first groups
    alone: there the losses are a group that begins with that of the training."""
    if tracker.name != "tensorboard":
        return metrics
    return {re.sub(r"^(\w+)/loss", r"Loss/\1", name): value for name, value in metrics.items()}


def start_trackers(accelerator: Accelerator, config: TrainConfig, run: Path, first_step: int) -> None:
    """Starts those of --report_to, whose curves go on after `first_step`, in the main process. One that does not start
    is left out: accelerate's own `init_trackers` would end the training for a server that does not answer."""
    for name in trackers(config) if accelerator.is_main_process else ():
        kind = LOGGER_TYPE_TO_CLASS[name]
        places = [run / "logs"] if kind.requires_logging_directory else []
        tracker = kind(PROJECT_NAME, *places, **_tracker_arguments(name, run, first_step))
        accelerator.trackers.append(tracker)
        with_tracker(accelerator, tracker, lambda tracker: tracker.start())
        if name != "tensorboard" and tracker in accelerator.trackers:  # which would show them as a run of its own
            with_tracker(accelerator, tracker, lambda tracker: tracker.store_init_configuration(asdict(config)))


def _tracker_arguments(name: str, run: Path, first_step: int) -> dict[str, Any]:
    """What makes a tracker call the run by its name and keep its files in the run's folder, as far as it can."""
    folder = str(run / "logs")
    return {
        # What a resumed run measures again is hidden; forget_metrics_after does the same to metrics.jsonl.
        "tensorboard": {"purge_step": first_step + 1}, "wandb": {"name": run.name, "dir": folder},
        "mlflow": {"run_name": run.name}, "clearml": {"task_name": run.name}, "dvclive": {"dir": f"{folder}/dvclive"},
        "swanlab": {"experiment_name": run.name, "logdir": folder}, "trackio": {"name": run.name},
    }.get(name, {})  # fmt: skip


def with_trackers(accelerator: Accelerator, act: Callable[[GeneralTracker], None]) -> None:
    """Lets each tracker act. One that fails is left out from then on: it must not cost the training."""
    for tracker in list(accelerator.trackers):
        with_tracker(accelerator, tracker, act)


def with_tracker(accelerator: Accelerator, tracker: GeneralTracker, act: Callable[[GeneralTracker], None]) -> None:
    """Lets one tracker act; see with_trackers."""
    try:
        act(tracker)
    except Exception as error:
        words = (str(error).strip() or type(error).__name__).splitlines()[0]
        logger.warning("%s failed (%s) and is left out: metrics.jsonl goes on", tracker.name, words)
        accelerator.trackers.remove(tracker)


def forget_metrics_after(run: Path, step: int) -> None:
    """Takes out of metrics.jsonl what a resumed run will measure again. Call it on every process; the main one acts."""
    path = run / "metrics.jsonl"
    if PartialState().is_main_process and path.exists():
        lines = path.read_text().splitlines(keepends=True)
        if lines and not lines[-1].endswith("}\n"):  # cut short by a full disk or a loss of power
            lines.pop()
        lines = [line for line in lines if json.loads(line)["step"] <= step]
        with replacing(path) as staging:
            staging.write_text("".join(lines))


def log_picture(accelerator: Accelerator, name: str, picture: Image.Image, step: int) -> None:
    """The picture among the images of every tracker that takes some through accelerate."""

    def add(tracker: GeneralTracker) -> None:
        if tracker.name == "tensorboard":
            tracker.writer.add_image(name, np.asarray(picture), step, dataformats="HWC")
        elif tracker.name in ("aim", "clearml"):  # one picture under a name, where the others take a list
            tracker.log_images({name: picture}, step=step)
        elif hasattr(tracker, "log_images"):
            tracker.log_images({name: [picture]}, step=step)

    with_trackers(accelerator, add)
