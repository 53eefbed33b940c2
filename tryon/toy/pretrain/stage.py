"""A stage of the toy's pretraining: its steps, the averaged weights, and states from which it goes on exactly."""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tryon.console import on_terminal, progress_bar
from tryon.files import MANIFEST, file_hash, read_json, remove, replacing, save_json
from tryon.signals import asked_to_stop, finishing_steps, ignore_in_worker
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
    """What is trained, and how: batches[step] is all that a step needs and draws at random, on the CPU; loss takes it;
    measure gives the figures of the averaged weights."""

    model: torch.nn.Module
    steps: int
    optimizers: tuple[torch.optim.Optimizer, ...]
    batches: Dataset
    loss: Callable[[Any], Tensor]
    measure: Callable[[], dict[str, float]]


def run_stage(stage: Stage, config: PretrainConfig, command: str) -> bool:
    """Trains from the newest state in output_dir/<stage> to the end, or until the time is up or a signal comes; returns
    whether it is the end. With each state it writes the averaged weights to output_dir/weights, with the command and
    what was measured in the manifest.

    Raises ValueError where the state is of other settings, and where the loss is not finite.
    """
    model = stage.model
    device = next(model.parameters()).device
    average = EMAModel(
        model.parameters(), decay=EMA_DECAY, use_ema_warmup=True, power=0.75, foreach=device.type == "cuda"
    )
    step, seconds = _load_state(stage, config, average)
    size = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    logger.info("%s: %.2f M parameters, step %d of %d", config.stage, size, step, stage.steps)
    if step == stage.steps:  # it may have been stopped after its last state
        _write_average(stage, config, average, command, step, seconds)

    bar = progress_bar(stage.steps, config.stage, visible=on_terminal(), initial=step)
    started = time.monotonic() - seconds
    with finishing_steps():
        for batch in made_ahead(stage.batches, range(step, stage.steps), config.drawing_processes, device):
            loss = stage.loss(batch)
            _update(stage, loss, step)
            average.step(model.parameters())
            step += 1
            if not math.isfinite(loss.item()):  # read after the update, as a GPU is waited for
                raise ValueError(
                    f"the loss is {loss.item()} at step {step}: give a lower --{config.stage}_learning_rate"
                )
            bar.set_postfix_str(f"loss {loss.item():.4f}", refresh=False)
            bar.update()
            stop = asked_to_stop()
            if stop or step % config.save_every == 0 or step == stage.steps:
                seconds = time.monotonic() - started
                _save_state(stage, config, average, step, seconds)
                _write_average(stage, config, average, command, step, seconds)
            if stop:
                break
    bar.close()
    if step < stage.steps:
        logger.info("%s: stopped at step %d of %d, where the same command goes on", config.stage, step, stage.steps)
    return step == stage.steps


def made_ahead(data: Dataset, indices: Sequence[int], processes: int, device: torch.device) -> DataLoader:
    """data[index] of these indices, in their order, made by so many processes while others are used; 0: by this one,
    when it is its turn. For a GPU in pinned memory."""
    processes = min(processes, len(indices))
    return DataLoader(
        data,
        batch_size=None,
        sampler=indices,
        num_workers=processes,
        worker_init_fn=ignore_in_worker,
        multiprocessing_context="fork" if processes else None,  # all share the memory of drawings
        pin_memory=device.type == "cuda",
    )


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


def is_finished(config: PretrainConfig) -> bool:
    """Whether the stage's last step is made and its weights are written. Raises ValueError where its state is of other
    settings."""
    steps, found = getattr(config, f"{config.stage}_steps"), read_state(config)
    written = read_json(Path(config.output_dir) / "weights" / MANIFEST).get(f"{config.stage}.safetensors", {})
    return found is not None and found[1]["step"] == steps == written.get("steps")


def read_state(config: PretrainConfig) -> tuple[Path, dict[str, Any]] | None:
    """The newest state's folder and its step, seconds and settings; None: there is none yet. Raises ValueError where it
    is of other settings."""
    folder = Path(config.output_dir) / config.stage
    if (newest := _newest_state(folder)) is None:
        return None
    state = json.loads((newest / "state.json").read_text())
    begun = [(name, state["settings"].get(name), value) for name, value in state_settings(config).items()]
    if other := [f"{name} {before}, not {now}" for name, before, now in begun if before != now]:
        raise ValueError(
            f"{folder} was begun with {'; '.join(other)}: give what it was begun with, or another --output_dir"
        )
    return newest, state


def _newest_state(folder: Path) -> Path | None:
    """The newest state's folder. Earlier versions kept their only one in `folder`, and aside while it was replaced."""
    states = sorted(folder.glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")), reverse=True)
    places = [*states, folder, folder.with_name(f".{folder.name}.old")]
    return next((path for path in places if (path / "state.json").is_file()), None)


def _load_state(stage: Stage, config: PretrainConfig, average: EMAModel) -> tuple[int, float]:
    """Restores the newest state and returns steps and seconds spent so far; zeros where there is none yet."""
    if (found := read_state(config)) is None:
        return 0, 0.0
    newest, state = found
    stage.model.load_state_dict(load_file(newest / "model.safetensors"))
    saved = load_file(newest / "average.safetensors")
    average.shadow_params = [saved[str(i)].to(p.device) for i, p in enumerate(average.shadow_params)]
    average.optimization_step = state["step"]
    for optimizer in stage.optimizers:
        load_optimizer(newest / type(optimizer).__name__, optimizer)
    return state["step"], state["seconds"]


def _save_state(stage: Stage, config: PretrainConfig, average: EMAModel, step: int, seconds: float) -> None:
    """Writes what going on needs to output_dir/<stage>/step-<step>, then removes what was there before: a state is
    there whole at any moment."""
    state = Path(config.output_dir) / config.stage / f"step-{step}"
    with replacing(state) as staging:
        staging.mkdir()
        save_file(stage.model.state_dict(), staging / "model.safetensors")
        save_file({str(i): tensor for i, tensor in enumerate(average.shadow_params)}, staging / "average.safetensors")
        for optimizer in stage.optimizers:
            (staging / type(optimizer).__name__).mkdir()
            write_optimizer(staging / type(optimizer).__name__, optimizer_state(optimizer))
        save_json(staging / "state.json", {"step": step, "seconds": seconds, "settings": state_settings(config)})
    for other in set(state.parent.iterdir()) - {state}:
        remove(other)


def _write_average(
    stage: Stage, config: PretrainConfig, average: EMAModel, command: str, step: int, seconds: float
) -> None:
    """Measures the averaged weights and writes them to output_dir/weights."""
    parameters = list(stage.model.parameters())
    average.store(parameters)
    average.copy_to(parameters)
    measured = stage.measure()
    facts = {
        "command": command,
        "seed": config.seed,
        "world": WORLD_VERSION,
        "steps": step,
        "steps_left": stage.steps - step,
        "hardware": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} CPU cores",
        "minutes": round(seconds / 60, 1),
        "measured": {name: round(value, 3) for name, value in measured.items()},
    }
    file = write_weights(Path(config.output_dir) / "weights", config.stage, stage.model, facts)
    average.restore(parameters)
    words = ", ".join(f"{name} {value:.3f}" for name, value in measured.items())
    size = file.stat().st_size / 1e6
    logger.info("step %d: %s; %.1f minutes; wrote %s, %.1f MB", step, words, seconds / 60, file, size)


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
