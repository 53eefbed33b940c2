"""What training takes of a machine: memory, beside what was planned, and time. The seconds of the whole model's step,
validation picture and checkpoint are extrapolated from those of a few blocks."""

import copy
import os
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
from tryon.flux.attention_kernels import median_seconds
from tryon.flux.memory import (
    TransformerCosts,
    checkpoint_bytes,
    free_memory,
    recomputed_every,
    training_memory,
    transformer_costs,
    vae_parameters,
)
from tryon.flux.offload import blocks_of
from tryon.training.check_blocks import DEPTH, Row, collect, prepared, seeded_loss
from tryon.training.step import make_optimizer
from tryon.units import GB, gigabytes

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


def memory_rows(base: FluxTransformer2DModel, config: TrainConfig, batch: FillBatch) -> Iterator[Row]:
    """What these blocks take of a GPU's memory, beside what is planned for them, part by part."""
    device = batch.x0.device
    if device.type != "cuda":
        return
    config = replace(config, gradient_accumulation_steps=1)  # one backward pass is looked at
    costs = transformer_costs(config, dict(base.config))
    plan = training_memory(config, costs, recomputed_every(config, costs, free_memory(device)))
    vae = vae_parameters(config) * base.dtype.itemsize  # planned with the weights, but not here

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
    what = f"memory of {len(blocks_of(base))} blocks"
    for name, (measured, planned) in parts.items():
        yield Row(f"{what}: {name}", _against(measured, planned))
    planned = sum(each for _, each in parts.values())
    right = abs(peak / planned - 1) <= MEMORY_ALLOWED
    yield Row(f"{what}: all", _against(peak, planned), f"{MEMORY_ALLOWED:.0%}", right, needed=False)


def _against(measured: int, planned: int) -> str:
    return f"{measured / GB:.2f} GB, planned {planned / GB:.2f} ({measured / planned - 1:+.0%})"


def plan_row(config: TrainConfig, transformer_config: dict[str, Any], device: torch.device) -> Row:
    """Whether the whole model is planned to fit."""
    collect(device)
    costs, free = transformer_costs(config, transformer_config), free_memory(device)
    need = training_memory(config, costs, recomputed_every(config, costs, free)).on(device)
    return Row("memory of the whole model, planned", f"{need / GB:.1f} GB", f"{free / GB:.1f} GB free", need <= free)


def time_rows(
    base: FluxTransformer2DModel, config: TrainConfig, transformer_config: dict[str, Any], batch: FillBatch,
    folder: Path,
) -> Iterator[Row | Estimate]:  # fmt: skip
    """Seconds of a step, a validation picture and a checkpoint of the whole model."""
    costs = transformer_costs(config, transformer_config)
    whole = transformer_config["num_layers"], transformer_config["num_single_layers"]
    passes, forward, optimiser = extrapolated(base, config, costs, whole, batch)
    step = config.gradient_accumulation_steps * passes + optimiser
    samples = config.train_batch_size * config.gradient_accumulation_steps
    yield Row("a step, extrapolated", f"{step:.3g} s: {config.gradient_accumulation_steps} x {passes:.3g} s and "
              f"{optimiser:.2g} s; {samples / step:.2f} samples/s")  # fmt: skip
    picture = config.num_inference_steps * forward
    yield Row("a validation picture, extrapolated", f"{picture:.3g} s: {config.num_inference_steps} x {forward:.3g} s")
    rate, size = disk_speed(folder), checkpoint_bytes(config, costs.sizes.trained)
    yield Row("a checkpoint", f"{size / rate:.2g} s: {gigabytes(size)} at {rate / GB:.2f} GB/s")
    yield Estimate(step, picture, size / rate)


def extrapolated(
    base: FluxTransformer2DModel, config: TrainConfig, costs: TransformerCosts, whole: tuple[int, int], batch: FillBatch
) -> tuple[float, float, float]:
    """Seconds of the whole model's forward and backward pass, of its forward pass without gradients, and of an update
    of all that is trained, from those of a few blocks. whole: double and single blocks of the whole model."""
    every = recomputed_every(config, costs, free_memory(batch.x0.device))
    depths = DEPTH, (DEPTH[0] - 1, DEPTH[1]), (DEPTH[0], DEPTH[1] - 1)
    chosen = set(range(sum(whole))[::every]) if every else set()
    passes = forward = 0.0
    for checkpointing, wanted in (("none", set(range(sum(whole))) - chosen), ("full", chosen)):
        if not wanted:
            continue
        doubles = sum(index < whole[0] for index in wanted)
        so = replace(config, gradient_checkpointing=checkpointing)
        timed = [time_passes(base, depth, so, batch) for depth in depths]
        rest, double, single = solve(timed, lambda passes: passes.training)
        passes += doubles * double + (len(wanted) - doubles) * single
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


def time_passes(base: FluxTransformer2DModel, depth: tuple[int, int], config: TrainConfig, batch: FillBatch) -> Passes:
    """Times `depth` double and single blocks, made ready as the configuration says."""
    device, fewer = batch.x0.device, copy.deepcopy(base)
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

    # The first two of each are not timed: they compile and warm up.
    training, optimiser = (median_seconds(work, device, PASSES, warm_up=2) for work in (train, update))
    transformer.eval()
    forward = median_seconds(predict, device, PASSES, warm_up=2)
    return Passes(training, forward, optimiser, sum(each.numel() for each in parameters))


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
