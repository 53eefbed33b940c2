"""Checkpoints: written beside their place and renamed into it, so that one is there whole or not at all.

    checkpoint-<step>/transformer/pytorch_lora_weights.safetensors
    checkpoint-<step>/optimizer.safetensors, optimizer.json      moments; counters
    checkpoint-<step>/trainer_state.json                         the step, and what the run may not change
    checkpoint-<step>/manifest.json                              size and sha256 of every file; written last

No random states and no schedule: every draw of training, and the learning rate, follow from configuration, step and the
sample's place in the batch. Nothing read here executes code.
"""

import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim import Optimizer

from tryon.config import save_json
from tryon.lora import load_lora, save_lora
from tryon.lora_header import LoraFacts
from tryon.manifest import damage, write_manifest
from tryon.runs import CHECKPOINT, STATE_FILE, check_identity, checkpoints, lora_file, step_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainerState:
    """Where training stands. step: optimiser steps done. identity: what must be the same when the run goes on, by name:
    data, models, sizes, batch geometry, seed, noise. Anything else may change: steps, learning rate, intervals.
    safest_attention: whether a gradient that was not finite made the run fall back to the safest attention kernel."""

    step: int
    identity: dict[str, Any]
    safest_attention: bool = False


def save_checkpoint(
    run: Path,
    state: TrainerState,
    facts: LoraFacts,
    transformer: FluxTransformer2DModel,
    optimizer: Optimizer,
    keep: int | None,
) -> Path:
    """Writes checkpoint-<step>, then removes all but the newest `keep` (None keeps all). Returns its folder.

    Raises ValueError where it cannot be written: older ones are untouched, and no part of it stays.
    """
    final = run / f"checkpoint-{state.step}"
    staging = run / f".{final.name}.partial"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        save_lora(staging / "transformer", transformer, facts)
        save_optimizer(staging, optimizer)
        save_json(staging / STATE_FILE, asdict(state))
        write_manifest(staging)
        _sync(staging)
        if final.exists():
            _set_aside(final)
        staging.rename(final)
        _sync_file(run)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(staging, ignore_errors=True)
        raise ValueError(f"{final} cannot be written ({error}): make room on the disk, then resume") from error
    if keep is not None:
        for old in checkpoints(run)[:-keep]:
            shutil.rmtree(old.rename(run / f".{old.name}.old"))
    return final


def tidy(run: Path, checkpoint: Path | None) -> None:
    """Removes what a killed training left half written or half removed, and sets aside the run's checkpoints after the
    one that it goes on from: they are damaged."""
    for rest in run.glob(".checkpoint-*"):
        shutil.rmtree(rest)
    if checkpoint is None or checkpoint.parent != run:
        return
    for newer in run.glob("checkpoint-*"):
        if CHECKPOINT.fullmatch(newer.name) and step_of(newer) > step_of(checkpoint):
            problem = damage(newer)
            logger.warning("%s: kept as %s, going on from %s", problem, _set_aside(newer).name, checkpoint.name)


def _set_aside(checkpoint: Path) -> Path:
    aside = checkpoint.with_name(f"{checkpoint.name}.damaged")
    shutil.rmtree(aside, ignore_errors=True)
    return checkpoint.rename(aside)


def load_checkpoint(
    checkpoint: Path, identity: dict[str, Any], transformer: FluxTransformer2DModel, optimizer: Optimizer
) -> TrainerState:
    """Restores LoRA and optimiser state of a checkpoint that `verify` has passed; the optimiser's settings stay those
    it was made with. Raises ValueError as check_identity does.
    """
    check_identity(checkpoint, identity)
    load_lora(transformer, lora_file(checkpoint))
    load_optimizer(checkpoint, optimizer)
    return _read_state(checkpoint)


def _read_state(checkpoint: Path) -> TrainerState:
    return TrainerState(**json.loads((checkpoint / STATE_FILE).read_text()))


def verify(checkpoint: Path) -> None:
    """Raises ValueError that names the first file of the checkpoint that is missing or changed."""
    if problem := damage(checkpoint):
        raise ValueError(f"{problem}: take another checkpoint")


def save_optimizer(folder: Path, optimizer: Optimizer) -> None:
    """Tensors go to safetensors under "<parameter>.<name>", everything else to JSON."""
    flat = _flatten(optimizer.state_dict()["state"])
    tensors = {  # copies: bitsandbytes shares its code books between parameters, which safetensors refuses
        name: value.contiguous().to("cpu", copy=True) for name, value in flat.items() if isinstance(value, torch.Tensor)
    }
    scalars = {name: value for name, value in flat.items() if name not in tensors}
    save_file(tensors, folder / "optimizer.safetensors")
    save_json(folder / "optimizer.json", scalars)


def load_optimizer(folder: Path, optimizer: Optimizer) -> None:
    scalars = json.loads((folder / "optimizer.json").read_text())
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**load_file(folder / "optimizer.safetensors"), **scalars}.items():
        index, *path, last = name.split(".")
        place = state.setdefault(int(index), {})
        for key in path:
            place = place.setdefault(key, {})
        place[last] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _flatten(state: dict[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries, which bitsandbytes' optimisers have, as one with dotted names."""
    flat: dict[str, Any] = {}
    for key, value in state.items():
        name = f"{prefix}{key}"
        flat.update(_flatten(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return flat


def _sync(folder: Path) -> None:
    """Makes every file and folder below durable before the rename can be."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_file():
            path.chmod(0o644)  # safetensors leaves 0600, which a colleague or a web server cannot read
        _sync_file(path)


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
