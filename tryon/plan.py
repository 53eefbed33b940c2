"""What a run will need and take, said before anything is loaded: GPU memory, disk, hours, money."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from tqdm import tqdm

from tryon.cache import latents_bytes
from tryon.config import TrainConfig
from tryon.memory import (
    free_memory,
    quantization_for,
    recomputed_every,
    resolved,
    training_memory,
    transformer_costs,
    what_helps,
    which_recompute,
)
from tryon.speed import device_name, peak_flops, remembered_speed, step_flops

TEXT_ENCODERS_AND_VAE = 9.9e9  # bytes of FLUX.1-dev's parts on the hub: T5 9.5 GB, CLIP 0.25 GB, VAE 0.17 GB


def plan_lines(
    config: TrainConfig,
    transformer_config: dict[str, Any],
    pairs: int | None,
    variants: int,
    device: torch.device | None,
    memory: float,
    price_per_hour: float | None,
) -> list[str]:
    """The plan in words, a line each.

    pairs: of the training data, where their number is known. variants: of a pair in which something is random. device:
    the one that trains; None where it is another machine's, which has `memory` bytes. price_per_hour: of the machine,
    in any currency.
    """
    if device:
        config = resolved(config, device)
        free = free_memory(device)
    else:
        free = memory
        config = replace(config, quantization=quantization_for(config.quantization, memory))
    costs = transformer_costs(config, transformer_config)
    every = recomputed_every(config, costs, free)
    need = training_memory(config, costs, every)
    where = "memory" if device and device.type == "cpu" else "GPU memory"

    lines = [f"planned, {where}: {_size(need.total)} of {_size(free)} {'free' if device else 'in all'}"]
    lines += [f"  {name:12} {_size(size):>8}" for name, size in vars(need).items()]
    kept = f"{config.quantization}, in the host's memory" if config.offload else config.quantization
    lines.append(f"  frozen weights: {kept}; {which_recompute(every)} recomputes its activations")
    if need.total > free:
        lines.append(f"  it does not fit: {', or '.join(what_helps(config, every)) or 'use a GPU with more'}")

    per_step = config.train_batch_size * config.gradient_accumulation_steps * config.num_processes
    steps = config.max_train_steps
    if config.num_train_epochs and pairs:
        steps = -(-config.num_train_epochs * pairs // per_step)
    each = latents_bytes(config.height, 2 * config.width, 2 if config.mixed_precision == "bf16" else 4)
    kept = (config.checkpoints_total_limit or steps // config.checkpointing_steps) + 1
    checkpoint = need.lora // 2 + need.optimizer
    models = costs.sizes.frozen * 2 + TEXT_ENCODERS_AND_VAE
    if pairs:
        cached = f"{_size(pairs * variants * each)} at most: {pairs:,} pairs, in up to {variants} variants"
    else:
        cached = f"{_size(1000 * each)} per 1,000 pairs and variants"
    hub = Path(config.cache_dir or constants.HF_HUB_CACHE)
    needs = [(Path(config.data_cache_dir), (pairs or 1000) * variants * each)]
    lines.append("planned, disk:")
    lines.append(f"  latents      {cached}; {_free(Path(config.data_cache_dir))}")
    if config.output_dir:
        runs = _free(Path(config.output_dir))
        lines.append(f"  checkpoints  {_size(kept * checkpoint)}: {kept} of {_size(checkpoint)}; {runs}")
        needs.append((Path(config.output_dir), kept * checkpoint))
    if not config.toy:
        lines.append(f"  models       {_size(models)}, where they are not there yet; {_free(hub)}")
        needs.append((hub, models))
    lines += _too_small(needs)

    flops = steps * per_step / config.num_processes * step_flops(config, transformer_config, every).total
    lines.append(f"planned, time: {steps:,} steps of {per_step} samples, {flops / 1e12:,.0f} TFLOP on each device")
    lines += _time_lines(config, steps, flops, device, price_per_hour)
    return lines


def _time_lines(
    config: TrainConfig, steps: int, flops: float, device: torch.device | None, price_per_hour: float | None
) -> list[str]:
    measured, peak = (remembered_speed(config, device), peak_flops(device)) if device else (None, None)
    if measured:
        hours = steps * measured / 3600
        lines = [f"  {_hours(hours)}, at {measured:.3g} s a step, measured on {device_name(device)}"]
    elif peak:
        hours = flops / peak / 3600
        lines = [f"  at least {_hours(hours)}, at the data sheet's {peak / 1e12:.0f} TFLOP/s: not measured yet"]
    else:
        price = "" if price_per_hour is None else "; so there is no price either"
        return [f"  nothing measured yet: the first run of this kind leaves its speed to later plans{price}"]
    lines.append("  validation, checkpoints and the encoding of the pictures come on top")
    if price_per_hour is not None:
        lines.append(f"  {'' if measured else 'at least '}{hours * price_per_hour:,.2f} at {price_per_hour:g} an hour")
    return lines


def _too_small(needs: list[tuple[Path, float]]) -> list[str]:
    """A line for each disk that has not room for all that goes there. needs: folders, and bytes."""
    disks: dict[int, list[tuple[Path, float]]] = {}
    for folder, size in needs:
        disks.setdefault(_existing(folder).stat().st_dev, []).append((folder, size))
    lines = []
    for parts in disks.values():
        total, free = sum(size for _, size in parts), shutil.disk_usage(_existing(parts[0][0])).free
        if total > free:
            lines.append(
                f"  it may not fit: {_size(total)} on a disk with {_size(free)} free: put --data_cache_dir, "
                "--output_dir or --cache_dir on another"
            )
    return lines


def _existing(folder: Path) -> Path:
    """The folder, or of those that it is to lie in the nearest that is there."""
    return next(path for path in (folder, *folder.expanduser().absolute().parents) if path.exists())


def _free(folder: Path) -> str:
    return f"{_size(shutil.disk_usage(_existing(folder)).free)} free in {folder}"


def _size(count: float) -> str:
    return tqdm.format_sizeof(count, "B")


def _hours(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
