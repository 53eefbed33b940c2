"""What training takes of a machine: memory, beside what was planned, and time. The seconds of the whole model's step,
validation picture and checkpoint are extrapolated from those of a few blocks."""

import copy
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel

from tryon.config import TrainConfig
from tryon.data.sample import FillBatch
from tryon.flux.memory import (
    VAE_PARAMETERS,
    free_memory,
    recomputed_every,
    training_memory,
    transformer_costs,
)
from tryon.flux.offload import blocks_of
from tryon.training.check_blocks import DEPTH, Row, collect, prepared, seeded_loss
from tryon.training.step import make_optimizer
from tryon.units import GB

MEMORY_ALLOWED = 0.10
PASSES = 3  # timed
PER_SAMPLE = "x0", "cond", "prompt", "pooled"  # tensors of a FillBatch
DISK_TRIAL = 256 * 10**6  # bytes


@dataclass(frozen=True)
class Estimate:
    """Extrapolated to the whole model, in seconds."""

    step: float
    picture: float
    checkpoint: float


def memory_rows(
    base: FluxTransformer2DModel, config: TrainConfig, batch: FillBatch, device: torch.device
) -> Iterator[Row]:
    """What these blocks take of a GPU's memory, beside what is planned for them, part by part."""
    if device.type != "cuda":
        return
    config = replace(config, gradient_accumulation_steps=1)  # one backward pass is looked at
    costs = transformer_costs(config, dict(base.config))
    every = recomputed_every(config, costs, free_memory(device))
    plan = training_memory(config, costs, every)
    vae = VAE_PARAMETERS * base.dtype.itemsize  # planned with the weights, but not here

    collect(device)
    before = torch.cuda.memory_allocated(device)
    transformer, parameters = prepared(base, config, device)
    placed = torch.cuda.memory_allocated(device) - before
    optimizer = make_optimizer(config, parameters)
    for _ in range(2):  # the second finds the moments there, and everything compiled
        torch.cuda.reset_peak_memory_stats(device)
        seeded_loss(transformer, config, batch).backward()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    settled = torch.cuda.memory_allocated(device) - before
    parts = {
        "weights and LoRA": (placed, plan.weights - vae + 4 * costs.sizes.trained),
        "moments": (settled - placed, plan.optimizer),
        "activations": (peak - settled, plan.activations + plan.work),
    }
    for name, (measured, planned) in parts.items():
        yield Row(f"memory of {len(blocks_of(base))} blocks: {name}", _against(measured, planned))
    planned = sum(each for _, each in parts.values())
    right = abs(peak / planned - 1) <= MEMORY_ALLOWED
    yield Row(
        f"memory of {len(blocks_of(base))} blocks: all", _against(peak, planned), f"{MEMORY_ALLOWED:.0%}", right, False
    )


def _against(measured: int, planned: int) -> str:
    return f"{measured / GB:.2f} GB, planned {planned / GB:.2f} ({measured / planned - 1:+.0%})"


def plan_row(config: TrainConfig, transformer_config: dict[str, Any], device: torch.device) -> Row:
    """Whether the whole model is planned to fit."""
    collect(device)
    costs, free = transformer_costs(config, transformer_config), free_memory(device)
    need = training_memory(config, costs, recomputed_every(config, costs, free)).total
    return Row("memory of the whole model, planned", f"{need / GB:.1f} GB", f"{free / GB:.1f} GB free", need <= free)


def time_rows(
    base: FluxTransformer2DModel,
    config: TrainConfig,
    transformer_config: dict[str, Any],
    batch: FillBatch,
    device: torch.device,
    folder: Path,
) -> Iterator[Row | Estimate]:
    """Seconds of a step, a validation picture and a checkpoint of the whole model."""
    passes, forward, optimiser = extrapolated(base, config, transformer_config, batch, device)
    step = config.gradient_accumulation_steps * passes + optimiser
    samples = config.train_batch_size * config.gradient_accumulation_steps
    yield Row("a step, extrapolated", f"{step:.3g} s: {config.gradient_accumulation_steps} x {passes:.3g} s and "
              f"{optimiser:.2g} s; {samples / step:.2f} samples/s")  # fmt: skip
    picture = config.num_inference_steps * forward
    yield Row("a validation picture, extrapolated", f"{picture:.3g} s: {config.num_inference_steps} x {forward:.3g} s")
    rate, trained = disk_speed(folder), transformer_costs(config, transformer_config).sizes.trained
    size = trained * (4 + 2 * (1 if config.optimizer == "adamw8bit" else 4))
    yield Row("a checkpoint", f"{size / rate:.2g} s: {size / GB:.2f} GB at {rate / GB:.2f} GB/s")
    yield Estimate(step, picture, size / rate)


def extrapolated(
    base: FluxTransformer2DModel,
    config: TrainConfig,
    transformer_config: dict[str, Any],
    batch: FillBatch,
    device: torch.device,
) -> tuple[float, float, float]:
    """Seconds of the whole model's forward and backward pass, of its forward pass without gradients, and of an update
    of all that is trained, from those of a few blocks."""
    costs = transformer_costs(config, transformer_config)
    every = recomputed_every(config, costs, free_memory(device))
    depths = DEPTH, (DEPTH[0] - 1, DEPTH[1]), (DEPTH[0], DEPTH[1] - 1)
    whole = transformer_config["num_layers"], transformer_config["num_single_layers"]
    chosen = set(range(sum(whole))[::every]) if every else set()
    passes = forward = 0.0
    for checkpointing, wanted in (("none", set(range(sum(whole))) - chosen), ("full", chosen)):
        if not wanted:
            continue
        doubles = sum(index < whole[0] for index in wanted)
        counts = doubles, len(wanted) - doubles
        timed = [
            time_passes(base, depth, replace(config, gradient_checkpointing=checkpointing), batch, device)
            for depth in depths
        ]
        rest, double, single = solve(timed, lambda passes: passes.training)
        passes += counts[0] * double + counts[1] * single
        if not forward:
            passes += rest
            parts = solve(timed, lambda passes: passes.forward)
            forward = parts[0] + whole[0] * parts[1] + whole[1] * parts[2]
            optimiser = timed[0].optimiser * costs.sizes.trained / timed[0].trained
    return passes, forward, optimiser


@dataclass(frozen=True)
class Passes:
    """Seconds of a few blocks: forward and backward pass; forward pass without gradients; an update of the `trained`
    parameters."""

    training: float
    forward: float
    optimiser: float
    trained: int


def time_passes(
    base: FluxTransformer2DModel, depth: tuple[int, int], config: TrainConfig, batch: FillBatch, device: torch.device
) -> Passes:
    """Of so many of the blocks, as the configuration says."""
    fewer = copy.deepcopy(base)
    fewer.transformer_blocks = fewer.transformer_blocks[: depth[0]]
    fewer.single_transformer_blocks = fewer.single_transformer_blocks[: depth[1]]
    transformer, parameters = prepared(fewer, config, device)
    optimizer = make_optimizer(config, parameters)

    def train() -> None:
        seeded_loss(transformer, config, batch).backward()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()

    def predict() -> None:  # as validation does: a picture at a time, not compiled
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            seeded_loss(transformer, config, replace(batch, **{name: vars(batch)[name][:1] for name in PER_SAMPLE}))

    training, optimiser = seconds_of(train, device), seconds_of(update, device)
    transformer.eval()
    return Passes(training, seconds_of(predict, device), optimiser, sum(each.numel() for each in parameters))


def seconds_of(work: Callable[[], None], device: torch.device) -> float:
    """The median of PASSES, after two that are not timed: they compile and warm up."""
    seconds = []
    for _ in range(PASSES + 2):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])


def solve(timed: Sequence[Passes], seconds: Callable[[Passes], float]) -> tuple[float, float, float]:
    """Seconds of everything but the blocks, of a double and of a single block, from those at DEPTH, with a double block
    less and with a single block less; none is negative."""
    whole, without_double, without_single = map(seconds, timed)
    double, single = max(0.0, whole - without_double), max(0.0, whole - without_single)
    return max(0.0, whole - DEPTH[0] * double - DEPTH[1] * single), double, single


def disk_speed(folder: Path) -> float:
    """Bytes per second that reach the disk of the folder, which is made where it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    content = os.urandom(2**20)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        started = time.perf_counter()
        for _ in range(DISK_TRIAL // len(content)):
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return DISK_TRIAL / (time.perf_counter() - started)
