"""A stage of the toy's pretraining: its steps, the averaged weights, and states from which it goes on exactly."""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from tryon.console import on_terminal, progress_bar
from tryon.files import file_hash, remove, replacing, save_json
from tryon.toy.model import write_weights
from tryon.toy.pretrain.config import PretrainConfig
from tryon.toy.world import WORLD_VERSION
from tryon.training.checkpoint import load_optimizer, optimizer_state, write_optimizer

logger = logging.getLogger(__name__)

EMA_DECAY = 0.999
WARM_UP = 40  # steps
ADAM_SHARE = 0.375  # of Muon's learning rate, for what is no matrix inside a block


@dataclass(frozen=True)
class Stage:
    """What is trained, and how: loss gives the loss of a step, measure the figures of the averaged weights."""

    model: torch.nn.Module
    steps: int
    optimizers: tuple[torch.optim.Optimizer, ...]
    loss: Callable[[int], Tensor]
    measure: Callable[[], dict[str, float]]


def run_stage(stage: Stage, config: PretrainConfig, command: str) -> None:
    """Trains from the newest state in output_dir/<stage> to the end, and writes the averaged weights to
    output_dir/weights, with the command and what was measured in its manifest.

    Raises ValueError where the state is of other settings, and where the loss is not finite.
    """
    model, settings = stage.model, state_settings(config)
    folder = Path(config.output_dir) / config.stage
    average = EMAModel(model.parameters(), decay=EMA_DECAY, use_ema_warmup=True, power=0.75)
    step, seconds = _load_state(folder, stage, settings, average)
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    logger.info("%s: %.2f M parameters, step %d of %d", config.stage, size, step, stage.steps)

    bar = progress_bar(stage.steps, config.stage, visible=on_terminal(), initial=step)
    started = time.monotonic() - seconds
    while step < stage.steps:
        loss = stage.loss(step)
        if not math.isfinite(loss.item()):
            raise ValueError(
                f"the loss is {loss.item()} at step {step + 1}: give a lower --{config.stage}_learning_rate"
            )
        _update(stage, loss, step)
        average.step(model.parameters())
        step += 1
        bar.set_postfix_str(f"loss {loss.item():.4f}", refresh=False)
        bar.update()
        if step % config.save_every == 0 or step == stage.steps:
            seconds = time.monotonic() - started
            _save_state(folder, stage, settings, average, step, seconds)
            average.store(model.parameters())
            average.copy_to(model.parameters())
            words = ", ".join(f"{name} {value:.3f}" for name, value in stage.measure().items())
            average.restore(model.parameters())
            logger.info("step %d: %s; %.1f minutes", step, words, seconds / 60)
    bar.close()
    average.copy_to(model.parameters())
    facts = {
        "command": command,
        "seed": config.seed,
        "world": WORLD_VERSION,
        "steps": step,
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores",
        "minutes": round(seconds / 60, 1),
        "measured": {name: round(value, 3) for name, value in stage.measure().items()},
    }
    file = write_weights(Path(config.output_dir) / "weights", config.stage, model, facts)
    logger.info("wrote %s, %.1f MB", file, file.stat().st_size / 1e6)


def _update(stage: Stage, loss: Tensor, step: int) -> None:
    """The learning rate is a function of the step alone: a linear warm-up times half a cosine, down to 0."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(stage.model.parameters(), 1.0)
    share = min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / stage.steps))
    for optimizer in stage.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * optimizer.defaults["lr"]
        optimizer.step()
    stage.model.zero_grad(set_to_none=True)


def state_settings(config: PretrainConfig) -> dict[str, Any]:
    """What decides a stage's states: one is gone on from with the same settings only."""
    own = ("seed", f"{config.stage}_") if config.stage == "parser" else ("seed", "drawings", f"{config.stage}_")
    settings = {name: value for name, value in asdict(config).items() if name.startswith(own)}
    settings["world"] = WORLD_VERSION
    if config.stage == "transformer":
        settings["vae"] = file_hash(Path(config.output_dir) / "weights" / "vae.safetensors")
    return settings


def _save_state(
    folder: Path, stage: Stage, settings: dict[str, Any], average: EMAModel, step: int, seconds: float
) -> None:
    """Writes what going on needs to folder/step-<step>, then removes what was there before: a state is there whole at
    any moment."""
    state = folder / f"step-{step}"
    with replacing(state) as staging:
        staging.mkdir()
        save_file(stage.model.state_dict(), staging / "model.safetensors")
        save_file({str(i): tensor for i, tensor in enumerate(average.shadow_params)}, staging / "average.safetensors")
        for optimizer in stage.optimizers:
            (staging / type(optimizer).__name__).mkdir()
            write_optimizer(staging / type(optimizer).__name__, optimizer_state(optimizer))
        save_json(staging / "state.json", {"step": step, "seconds": seconds, "settings": settings})
    for other in set(folder.iterdir()) - {state}:
        remove(other)


def _newest_state(folder: Path) -> Path | None:
    """The newest state's folder. Earlier versions kept their only one in `folder`, and aside while it was replaced."""
    states = sorted(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")), reverse=True)
    places = [*states, folder, folder.with_name(f".{folder.name}.old")]
    return next((path for path in places if (path / "state.json").is_file()), None)


def _load_state(folder: Path, stage: Stage, settings: dict[str, Any], average: EMAModel) -> tuple[int, float]:
    """Restores the newest state and returns steps and seconds spent so far; zeros where there is none yet."""
    if (newest := _newest_state(folder)) is None:
        return 0, 0.0
    state = json.loads((newest / "state.json").read_text())
    begun = [(name, state["settings"].get(name), value) for name, value in settings.items()]
    if other := [f"{name} {before}, not {now}" for name, before, now in begun if before != now]:
        raise ValueError(
            f"{folder} was begun with {'; '.join(other)}: give what it was begun with, or another --output_dir"
        )
    stage.model.load_state_dict(load_file(newest / "model.safetensors"))
    saved = load_file(newest / "average.safetensors")
    average.shadow_params = [saved[str(i)].to(p.device) for i, p in enumerate(average.shadow_params)]
    average.optimization_step = state["step"]
    for optimizer in stage.optimizers:
        load_optimizer(newest / type(optimizer).__name__, optimizer)
    return state["step"], state["seconds"]


def adamw(parameters: Iterable[torch.nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    """AdamW without weight decay."""
    return torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0)


def muon_and_adamw(model: torch.nn.Module, learning_rate: float) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices inside blocks, but for those of modulations, and AdamW for all else."""
    named = dict(model.named_parameters())
    inside = [name for name in named if "block" in name and "norm" not in name and named[name].ndim == 2]
    muon = torch.optim.Muon(
        [named[name] for name in inside], lr=learning_rate, weight_decay=0, adjust_lr_fn="match_rms_adamw"
    )
    return muon, adamw((named[name] for name in named if name not in inside), ADAM_SHARE * learning_rate)


def mixed_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where there are instructions for it: a CPU without takes 14 times as long as with float32."""
    native = device.type == "cuda" or torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.autocast(device.type, torch.bfloat16, enabled=native)
