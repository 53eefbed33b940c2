"""What a run will need and take, said before anything is loaded: GPU memory, disk, hours, money."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from huggingface_hub import constants

from tryon.config import TrainConfig
from tryon.files import free_disk, nearest_existing
from tryon.flux.memory import (
    CONTEXT,
    CPU_ADVICE,
    DATA_WORKER,
    SLACK,
    USABLE,
    HostMemory,
    TrainingMemory,
    card_memory,
    checkpoint_bytes,
    dtype_of,
    free_memory,
    host_memory,
    memory_advice,
    quantization_for,
    recomputed_every,
    resolved,
    training_memory,
    transformer_costs,
    weights_kept,
    which_recompute,
)
from tryon.training.check import remembered_check
from tryon.training.latent_cache import latents_bytes
from tryon.training.speed import (
    MEASURED_SHARE,
    SHARE_OF_PEAK,
    device_name,
    estimated_hours,
    peaks_of,
    remembered_speed,
    step_flops,
)
from tryon.units import duration, gigabytes, gigabytes_that_add_up, plural

TEXT_ENCODERS_AND_VAE = 9.9e9  # bytes of FLUX.1-dev's parts on the hub: T5 9.5 GB, CLIP 0.25 GB, VAE 0.17 GB
OFTEN = 200  # times that a run may show each pair before the plan speaks of it
PASSES = 100  # that are advised then: 100 steps a picture, one picture a step, is the rule of thumb for a few pictures
# What each part of a step's memory is.
MEANS = {
    "weights": "the frozen ones on the device, and the VAE's",
    "lora": "its float32 weights and their gradients",
    "optimizer": "its moments",
    "activations": "what the forward pass keeps for the backward pass",
    "work": "what a block computes with meanwhile",
    "reserve": f"{100 * SLACK:.0f} % that the allocator cannot use, and {gigabytes(CONTEXT)} for CUDA",
}


def plan_lines(
    config: TrainConfig, transformer_config: dict[str, Any], pairs: int | None, variants: int,
    device: torch.device | None, card: float | None, price_per_hour: float | None,
) -> list[str]:  # fmt: skip
    """The plan in words, a line each.

    pairs: of the training data, where their number is known. variants: of a pair in which something is random. device:
    the one that trains; None where it is another machine's, which is sold as having `card` GB. price_per_hour: of the
    machine, in any currency.
    """
    assert (device is None) != (card is None), "a plan is for this machine's device or for another machine's card"
    if device:
        config = resolved(config, device)
        free = free_memory(device)
    else:
        free = card_memory(card)
        kind = quantization_for(config.quantization, free)
        config = replace(config, quantization=kind, compile=config.compile and not config.offload)
    costs = transformer_costs(config, transformer_config)
    every = recomputed_every(config, costs, free)
    need = training_memory(config, costs, every)

    lines = _memory_lines(config, need, free, every, device, card)
    if device is None or device.type == "cuda":
        lines += _host_lines(config, host_memory(config, costs.sizes), here=device is not None)

    per_step = config.train_batch_size * config.gradient_accumulation_steps * config.num_processes
    steps = config.max_train_steps
    if config.num_train_epochs and pairs:
        steps = -(-config.num_train_epochs * pairs // per_step)
    variants += config.try_off_share > 0  # the try-off is one more
    each = latents_bytes(config.height, 2 * config.width, dtype_of(config).itemsize)
    saved, limit = -(-steps // config.checkpointing_steps), config.checkpoints_total_limit
    # An older one goes when the newest is there.
    kept = min(saved, limit + 1 + (config.keep_best != "none")) if limit else saved
    checkpoint = checkpoint_bytes(config, costs.sizes.trained)
    models = costs.sizes.frozen * 2 + TEXT_ENCODERS_AND_VAE
    if pairs:
        several = f", in up to {variants} variants" if variants > 1 else ""
        cached = f"{gigabytes(pairs * variants * each)} at most: {plural(pairs, 'pair')}{several}"
    else:
        cached = f"{gigabytes(1000 * each)} per 1,000 pairs and variants"
    hub = Path(config.cache_dir or constants.HF_HUB_CACHE)
    needs = [(Path(config.data_cache_dir), (pairs or 1000) * variants * each)]
    lines.append("planned, disk:")
    lines.append(f"  latents      {cached}; {_free(Path(config.data_cache_dir))}")
    if config.output_dir:
        runs = _free(Path(config.output_dir))
        lines.append(f"  checkpoints  {gigabytes(kept * checkpoint)}: {kept} of {gigabytes(checkpoint)}; {runs}")
        needs.append((Path(config.output_dir), kept * checkpoint))
    if not config.toy:
        lines.append(f"  models       {gigabytes(models)}, where they are not there yet; {_free(hub)}")
        needs.append((hub, models))
    lines += _too_small(needs)

    one, several = ("process", "processes") if device and device.type == "cpu" else ("GPU", "GPUs")
    devices = f"{config.num_processes} {one if config.num_processes == 1 else several}"
    batches = f"batches of {config.train_batch_size} x {config.gradient_accumulation_steps} accumulated"
    lines.append(f"planned, time: {plural(steps, 'step')} of {plural(per_step, 'sample')}: {devices} x {batches}")
    if config.num_train_epochs and pairs:
        lines.append(f"  more {several} would take more samples per step, so that the epochs need fewer steps")
    else:
        lines.append(f"  more {several} would take more samples per step; the steps stay as many and as long")
    if pairs and (often := seen_often(config, pairs)):
        lines.append(f"  {often}")
    if config.num_train_epochs and not pairs:
        lines.append("  --num_train_epochs is left out: how many pairs the data set has is not known yet")
    flops = steps * per_step / config.num_processes * step_flops(config, transformer_config, every)
    lines += _time_lines(config, steps, flops, device, card, price_per_hour)
    return lines


def seen_often(config: TrainConfig, pairs: int) -> str:
    """A sentence where the run shows each of its pairs more than OFTEN times, with the steps of PASSES passes, a tenth
    of them for the learning rate's rise where that takes longer; else empty, as where epochs were asked for."""
    per_step = config.train_batch_size * config.gradient_accumulation_steps * config.num_processes
    times = config.max_train_steps * per_step // pairs
    if config.num_train_epochs or times <= OFTEN:
        return ""
    steps = -(-PASSES * pairs // per_step)
    rise = f" --lr_warmup_steps {steps // 10}" if config.lr_warmup_steps > steps // 10 else ""
    return f"each of {plural(pairs, 'pair')} is seen {times:,} times: for so few give --max_train_steps {steps}{rise}"


def _memory_lines(
    config: TrainConfig, need: TrainingMemory, free: int, every: int | None, device: torch.device | None,
    card: float | None,
) -> list[str]:  # fmt: skip
    on_cpu = device is not None and device.type == "cpu"
    parts = vars(need) if on_cpu else {**vars(need), "reserve": need.reserve}
    *sizes, total = gigabytes_that_add_up(parts.values())
    where = "memory" if on_cpu else "GPU memory"
    lines = [f"planned, {where}: {total} of {gigabytes(free)} {'free' if device else 'usable'}"]
    if on_cpu:
        lines.append("  Python's libraries come on top")
    if card:
        taken = f"the plan leaves {100 * (1 - USABLE):.0f} % to the driver and the screen"
        lines.append(f"  a card sold as {card:g} GB has {gigabytes(card * 2**30)}; {taken}")
    lines += [f"  {name:12} {size:>8}  {MEANS[name]}" for name, size in zip(parts, sizes, strict=True)]
    kept = weights_kept(config) + (", in the host's memory" if config.offload else "")
    lines.append(f"  frozen weights: {kept}; {which_recompute(every)} recomputes its activations")
    if sum(parts.values()) > free:
        helps = CPU_ADVICE if on_cpu else ", or ".join(memory_advice(config, every)) or "use a GPU with more"
        lines.append(f"  it does not fit: {helps}")
    return lines


def _host_lines(config: TrainConfig, need: HostMemory, here: bool) -> list[str]:
    """here: the run is planned for this machine, whose free memory counts."""
    together, free = config.num_processes * need.total, psutil.virtual_memory().available
    line = f"planned, host memory: {gigabytes(need.total)} for each process, one per GPU"
    if config.num_processes > 1:
        line += f", {gigabytes(together)} for {config.num_processes} on one machine"
    workers = config.dataloader_num_workers
    reading = f"{workers} {'process' if workers == 1 else 'processes'} reading data, {gigabytes(DATA_WORKER)} each"
    blocks = "the offloaded blocks, locked in place, " if config.offload else ""
    lines = [
        line + (f", of {gigabytes(free)} free" if here else ""),
        f"  loading      {gigabytes(need.loading):>8}  the transformer, not quantised yet, and its LoRA",
        f"  training     {gigabytes(need.training):>8}  {blocks}a checkpoint while it is written, {reading}",
        "  the larger of the two counts, as one comes after the other; Python's and CUDA's libraries come on top",
    ]
    if here and together > free:
        lines.append("  it may not fit: free some, or give fewer --num_processes")
    return lines


def _time_lines(
    config: TrainConfig, steps: int, flops: float, device: torch.device | None, card: float | None,
    price_per_hour: float | None,
) -> list[str]:  # fmt: skip
    on_top = "  validation, checkpoints and the encoding of the pictures come on top"
    at = "" if price_per_hour is None else f" at {price_per_hour:g} an hour"
    if measured := remembered_speed(config, device) if device else None:
        hours = steps * measured / 3600
        lines = [f"  {duration(3600 * hours)}, at {measured:.3g} s a step, measured on {device_name(device)}", on_top]
        return lines if price_per_hour is None else [*lines, f"  {hours * price_per_hour:,.2f}{at}"]
    checked = remembered_check(config, device) if device else None
    lines = []
    if checked and checked["failed"]:
        lines.append(f"  --check found this machine not fit: {'; '.join(checked['failed'])}")
    if checked and "step" in checked:
        hours = steps * checked["step"] / 3600
        cost = "" if price_per_hour is None else f", {hours * price_per_hour:,.2f}{at}"
        by = f"extrapolated by --check on {checked['date']}"
        return [*lines, f"  {duration(3600 * hours)}{cost}, at {checked['step']:.3g} s a step, {by}", on_top]
    if (device and device.type == "cpu") or config.mixed_precision != "bf16":
        price = "" if price_per_hour is None else "; so there is no price either"
        return [f"  nothing measured yet: the first run of this kind leaves its speed to later plans{price}"]

    for name, peak in peaks_of(device or card).items():
        hours = estimated_hours(flops, peak, config.compile)
        cost = "" if price_per_hour is None else f", {_range(*(price_per_hour * each for each in hours))}{at}"
        lines.append(f"  estimated, not measured: {_hours_range(*hours)} on {name}{cost}")
    least, most = SHARE_OF_PEAK[config.compile]
    shown = f"{100 * least:.0f} to {100 * most:.0f} % of the data sheet's bf16 peak"
    reached = f"{100 * MEASURED_SHARE[config.compile]:.0f} %, {'compiled' if config.compile else 'not compiled'}"
    slower = [f"{config.quantization} weights"] if config.quantization != "none" else []
    slower += ["offloaded blocks"] if config.offload else []
    lines.append(f"  the estimate is {shown}; an H200 with bf16 weights reached {reached}")
    if slower:
        lines.append(f"  {' and '.join(slower)} take longer; how much longer is not measured")
    return [*lines, on_top]


def _too_small(needs: list[tuple[Path, float]]) -> list[str]:
    """A line for each disk that has not room for all that goes there. needs: folders, and bytes."""
    disks: dict[int, list[tuple[Path, float]]] = {}
    for folder, size in needs:
        disks.setdefault(nearest_existing(folder).stat().st_dev, []).append((folder, size))
    lines = []
    for parts in disks.values():
        total, free = sum(size for _, size in parts), free_disk(parts[0][0])
        if total > free:
            lines.append(
                f"  it may not fit: {gigabytes(total)} on a disk with {gigabytes(free)} free: put --data_cache_dir, "
                "--output_dir or --cache_dir on another"
            )
    return lines


def _free(folder: Path) -> str:
    return f"{gigabytes(free_disk(folder))} free in {folder}"


def _hours_range(least: float, most: float) -> str:
    return f"{_range(least, most)} h" if least >= 1 else f"{_range(60 * least, 60 * most)} min"


def _range(least: float, most: float) -> str:
    """Both ends to two digits, as an estimate knows no more."""
    ends = [float(f"{end:.2g}") for end in (least, most)]
    return " to ".join(f"{end:,.0f}" if end >= 10 else f"{end:g}" for end in ends)
