"""One optimiser step: the loss of each micro-batch, its gradients, the update. The loop and the benchmark share it."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from math import isfinite

import torch
from accelerate import Accelerator
from accelerate.utils import extract_model_from_parallel
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from tryon.config import TrainConfig, teacher_categories
from tryon.data.sample import FillBatch, pick
from tryon.flux.attention import attention_in_use, fall_back
from tryon.flux.flow_matching import (
    NoiseLevels,
    draw_sigma_and_noise,
    fill_loss,
    interpolate,
    loss_weight,
    predict_velocity,
    seed_of,
)
from tryon.training.clock import Clock
from tryon.training.passes import Passes, can_record

logger = logging.getLogger(__name__)


def optimiser_step(
    config: TrainConfig, levels: NoiseLevels, step: int, model: nn.Module, passes: Passes,
    batches: Iterator[FillBatch], optimizer: Optimizer, lr_scheduler: LRScheduler, accelerator: Accelerator,
    clock: Clock, samples: Callable[[], Sequence[str]],
) -> dict[str, float]:  # fmt: skip
    """One update from the next gradient_accumulation_steps batches, and what the curves show of it.

    samples: names what the step was made from, for the error. Where loss or gradient is not finite on any process, the
    same micro-batches are computed again with the safest attention kernel, which stays in use where that helps; raises
    ValueError before the update where it does not. Loss and norm are read back once a step, after the last micro-batch:
    nothing waits for the device before.
    """
    started = time.monotonic()
    parameters = optimizer.param_groups[0]["params"]
    taken: list[FillBatch] = []

    def attempt() -> tuple[float, float]:
        total = add_gradients(config, levels, step, model, passes, taken, batches, accelerator, clock)
        with clock.part("optimiser"):
            norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
            return tuple(torch.stack([accelerator.reduce(total, "mean"), norm]).tolist())

    mean_loss, grad_norm = attempt()
    transformer = accelerator.unwrap_model(model)
    used = attention_in_use(transformer)
    if not isfinite(mean_loss + grad_norm) and fall_back(transformer):
        words = "step %d: the gradient is not finite with the attention kernel %s; once more with %s, which stays"
        logger.warning(words, step + 1, used, attention_in_use(transformer))
        passes.forget()
        optimizer.zero_grad(set_to_none=True)
        mean_loss, grad_norm = attempt()
    if not isfinite(mean_loss + grad_norm):
        raise ValueError(
            f"the loss is {mean_loss} and the gradient's norm {grad_norm} at step {step + 1}, so this update was "
            f"not made: lower --learning_rate or look at its samples ({', '.join(dict.fromkeys(samples()))}), then "
            "resume from the newest checkpoint"
        )
    with clock.part("optimiser"):
        learning_rate = lr_scheduler.get_last_lr()[0]
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.monotonic() - started
    return {"train/loss": mean_loss, "train/learning_rate": learning_rate, "train/grad_norm": grad_norm,
            "train/seconds": seconds}  # fmt: skip


def add_gradients(
    config: TrainConfig, levels: NoiseLevels, step: int, model: nn.Module, passes: Passes, taken: list[FillBatch],
    batches: Iterator[FillBatch], accelerator: Accelerator, clock: Clock,
) -> Tensor:  # fmt: skip
    """Adds the gradients of one optimiser step's micro-batches to those that are there; their mean loss, a scalar.

    taken: the micro-batches, which are added to it from `batches` as they are needed; where they are there, they are
    computed again. What is drawn follows from the step, so that they give the same gradients again.
    """
    total, count = torch.zeros((), device=accelerator.device), config.gradient_accumulation_steps
    for micro in range(count):
        with clock.part("data"):
            if micro == len(taken):
                taken.append(next(batches))
            batch = taken[micro]
            draws = draws_of(config.seed, step, micro, accelerator.process_index, len(batch.x0))
            noise = draw_sigma_and_noise(batch.x0.shape[1:], levels, draws)
        with clock.part("transfer"):
            batch, (sigma, noise) = batch.to(accelerator.device), on_device(noise, accelerator.device)
        with nullcontext() if micro == count - 1 else accelerator.no_sync(model):
            if config.lora_dropout:  # it draws from torch's own generator
                torch.manual_seed(seed_of(draws[0]))
            total += passes(batch, sigma, noise, clock)
    return total


def make_passes(
    config: TrainConfig, model: nn.Module, parameters: Sequence[nn.Parameter], accelerator: Accelerator
) -> Passes:
    """The passes of the run's micro-batches. model: the transformer as accelerate wraps it."""

    def compute(batch: FillBatch, sigma: Tensor, noise: Tensor) -> Tensor:
        return batch_loss(config, model, batch, sigma, noise) / config.gradient_accumulation_steps

    records = can_record(config, extract_model_from_parallel(model), accelerator)
    return Passes(compute, accelerator.backward, parameters, records)


def draws_of(seed: int, step: int, micro: int, process: int, size: int) -> list[tuple[int, ...]]:
    """What names the random draws of a process's micro-batch of `size` samples, one tuple each."""
    return [(seed, step, micro, process * size + index) for index in range(size)]


def on_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copies of the tensors on the device. They are pinned first: copying from pageable memory would block the host."""
    if device.type == "cuda":
        tensors = [tensor.pin_memory() for tensor in tensors]
    return [tensor.to(device, non_blocking=True) for tensor in tensors]


def batch_loss(config: TrainConfig, model: nn.Module, batch: FillBatch, sigma: Tensor, noise: Tensor) -> Tensor:
    """The weighted flow-matching loss of one micro-batch at noise levels [B] and with noise [B, L, 64]: a scalar."""
    x_t, velocity = interpolate(batch.x0.float(), noise, sigma)
    if config.teacher_weight:
        velocity = taught_velocity(config, model, batch, x_t, velocity, sigma)
    losses = fill_loss(model, batch, x_t, velocity, sigma, config.guidance_scale, config.mask_loss_weight)
    return (loss_weight(config.weighting_scheme, sigma) * losses).mean()


def taught_velocity(
    config: TrainConfig, model: nn.Module, batch: FillBatch, x_t: Tensor, velocity: Tensor, sigma: Tensor
) -> Tensor:
    """The velocity [B, L, 64] that the model shall predict, mixed with what it predicts without its LoRA in samples of
    the teacher's categories: there it shall stay as it is. It knows no try-off, which it does not teach."""
    masters = teacher_categories(config)
    facts = enumerate(zip(batch.categories, batch.try_off, strict=True))
    rows = [row for row, (category, try_off) in facts if category in masters and not try_off]
    if not rows:
        return velocity
    transformer = extract_model_from_parallel(model)
    transformer.disable_adapters()
    with torch.no_grad():
        some = batch.rows(rows)
        taught = predict_velocity(transformer, some, pick(x_t, rows), pick(sigma, rows), config.guidance_scale)
    transformer.enable_adapters()
    targets = list(velocity)
    for row, prediction in zip(rows, taught, strict=True):
        targets[row] = torch.lerp(targets[row], prediction, config.teacher_weight)
    return torch.stack(targets)


def make_optimizer(config: TrainConfig, parameters: list[nn.Parameter]) -> Optimizer:
    """AdamW, with moments in float32, all parameters in one pass over memory; or with moments in 8 bits."""
    settings = {"lr": config.learning_rate, "betas": (config.adam_beta1, config.adam_beta2),
                "weight_decay": config.adam_weight_decay, "eps": config.adam_epsilon}  # fmt: skip
    if config.optimizer == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(parameters, **settings)
    return torch.optim.AdamW(parameters, fused=True, **settings)


def make_lr_scheduler(config: TrainConfig, optimizer: Optimizer, step: int, max_steps: int) -> LRScheduler:
    """diffusers' schedule over optimiser steps, after the first `step`; "constant" warms up too, if asked to."""
    for group in optimizer.param_groups:
        group["initial_lr"] = config.learning_rate  # what a schedule that does not begin at 0 starts from
    warm_up = config.lr_scheduler == "constant" and config.lr_warmup_steps > 0
    kind = "constant_with_warmup" if warm_up else config.lr_scheduler
    return get_scheduler(
        kind, optimizer, num_warmup_steps=config.lr_warmup_steps, num_training_steps=max_steps, last_epoch=step - 1
    )
