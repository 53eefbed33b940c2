"""A stage of the toy's pretraining: its steps, the averaged weights, and states from which it goes on exactly."""

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from tryon.console import on_terminal, progress_bar
from tryon.files import save_json
from tryon.toy.model import write_weights
from tryon.training.checkpoint import load_optimizer, optimizer_state, write_optimizer

logger = logging.getLogger(__name__)

EMA_DECAY = 0.999
WARM_UP = 40


@dataclass(frozen=True)
class Stage:
    """What is trained, and how: loss gives the loss of a step, measure the figures of the averaged weights."""

    name: str
    model: torch.nn.Module
    steps: int
    optimizers: tuple[torch.optim.Optimizer, ...]
    loss: Callable[[int], Tensor]
    measure: Callable[[], dict[str, float]]
    settings: dict[str, Any]  # what its states belong to: with others it would go on as something no command gives


def train(stage: Stage, output_dir: Path, save_every: int, facts: dict[str, Any]) -> None:
    """Trains from the newest state in output_dir/<name> to the end, and writes the averaged weights to
    output_dir/weights, with the facts and what was measured in its manifest.

    Raises ValueError where the state is of other settings, and where the loss is not finite.
    """
    folder, model = output_dir / stage.name, stage.model
    average = EMAModel(model.parameters(), decay=EMA_DECAY, use_ema_warmup=True, power=0.75)
    step, seconds = _load_state(folder, stage, average)
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    logger.info("%s: %.2f M parameters, step %d of %d", stage.name, size, step, stage.steps)

    bar = progress_bar(stage.steps, stage.name, visible=on_terminal(), initial=step)
    started = time.monotonic() - seconds
    while step < stage.steps:
        _set_learning_rate(stage.optimizers, step, stage.steps)
        loss = stage.loss(step)
        if not math.isfinite(loss.item()):
            raise ValueError(f"the loss is {loss.item()} at step {step + 1}: give a lower --{stage.name}_learning_rate")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in stage.optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
        average.step(model.parameters())
        step += 1
        bar.set_postfix_str(f"loss {loss.item():.4f}", refresh=False)
        bar.update()
        if step % save_every == 0 or step == stage.steps:
            seconds = time.monotonic() - started
            _save_state(folder, stage, average, step, seconds)
            average.store(model.parameters())
            average.copy_to(model.parameters())
            words = ", ".join(f"{name} {value:.3f}" for name, value in stage.measure().items())
            average.restore(model.parameters())
            logger.info("step %d: %s; %.1f minutes", step, words, seconds / 60)
    bar.close()
    average.copy_to(model.parameters())
    facts = {
        **facts,
        "steps": step,
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores",
        "minutes": round(seconds / 60, 1),
        "measured": {name: round(value, 3) for name, value in stage.measure().items()},
    }
    file = write_weights(output_dir / "weights", stage.name, model, facts)
    logger.info("wrote %s, %.1f MB", file, file.stat().st_size / 1e6)


def _set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], step: int, steps: int) -> None:
    """A linear warm-up and half a cosine down to nothing: a function of the step alone."""
    share = min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * optimizer.defaults["lr"]


def _put_aside(folder: Path) -> Path:
    """Where the state before the last is while the last takes its place."""
    return folder.with_name(f".{folder.name}.old")


def _save_state(folder: Path, stage: Stage, average: EMAModel, step: int, seconds: float) -> None:
    """Writes what going on needs beside its place and renames it, so that one state is there whole at any moment."""
    staging = folder.with_name(f".{folder.name}.new")
    for rest in (staging, _put_aside(folder)):
        shutil.rmtree(rest, ignore_errors=True)
    staging.mkdir(parents=True)
    save_file(stage.model.state_dict(), staging / "model.safetensors")
    save_file({str(i): tensor for i, tensor in enumerate(average.shadow_params)}, staging / "average.safetensors")
    for optimizer in stage.optimizers:
        (staging / type(optimizer).__name__).mkdir()
        write_optimizer(staging / type(optimizer).__name__, optimizer_state(optimizer))
    save_json(staging / "state.json", {"step": step, "seconds": seconds, "settings": stage.settings})
    if folder.is_dir():
        folder.rename(_put_aside(folder))
    staging.rename(folder)
    shutil.rmtree(_put_aside(folder), ignore_errors=True)


def _load_state(folder: Path, stage: Stage, average: EMAModel) -> tuple[int, float]:
    """Restores what _save_state wrote and returns steps and seconds spent so far; zeros where there is nothing yet."""
    if not folder.is_dir():
        if not _put_aside(folder).is_dir():
            return 0, 0.0
        _put_aside(folder).rename(folder)
    state = json.loads((folder / "state.json").read_text())
    begun = state["settings"]
    if other := [
        f"{name} {begun.get(name)}, not {value}" for name, value in stage.settings.items() if begun.get(name) != value
    ]:
        raise ValueError(
            f"{folder} was begun with {'; '.join(other)}: give what it was begun with, or another --output_dir"
        )
    stage.model.load_state_dict(load_file(folder / "model.safetensors"))
    saved = load_file(folder / "average.safetensors")
    average.shadow_params = [saved[str(i)].to(p.device) for i, p in enumerate(average.shadow_params)]
    average.optimization_step = state["step"]
    for optimizer in stage.optimizers:
        load_optimizer(folder / type(optimizer).__name__, optimizer)
    return state["step"], state["seconds"]
