"""Checkpoints: written beside their place and renamed into it, so that one is there whole or not at all.

    checkpoint-<step>/transformer/pytorch_lora_weights.safetensors
    checkpoint-<step>/ema/pytorch_lora_weights.safetensors       their moving average, with --ema_decay
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
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffusers import FluxTransformer2DModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from tryon.config import KeepBest
from tryon.files import damage, replacing, save_json, write_manifest
from tryon.flux.lora import load_lora, lora_header, lora_weights, write_lora
from tryon.flux.lora_header import LoraFacts
from tryon.runs import (
    CHECKPOINT,
    STATE_FILE,
    best_checkpoint,
    check_identity,
    checkpoints,
    ema_file,
    lora_file,
    step_of,
)
from tryon.training.ema import WeightAverage

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainerState:
    """Where training stands. step: optimiser steps done. identity: what must be the same when the run goes on, by name:
    data, models, sizes, batch geometry, seed, noise. Anything else may change: steps, learning rate, intervals.
    safest_attention: whether a gradient that was not finite made the run fall back to the safest attention kernel.
    keep_best: by which loss the run's best checkpoint is kept and meant, see tryon.runs.best_checkpoint."""

    step: int
    identity: dict[str, Any]
    safest_attention: bool = False
    keep_best: KeepBest = "none"


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint will hold; training leaves its tensors alone, as they are copies on the host."""

    state: TrainerState
    lora: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    lora_header: dict[str, str]
    optimizer: dict[str, Tensor | Any]  # see optimizer_state


def take_snapshot(
    state: TrainerState, facts: LoraFacts, transformer: FluxTransformer2DModel, optimizer: Optimizer,
    average: WeightAverage | None = None,
) -> Snapshot:  # fmt: skip
    """Copies LoRA, its average and optimiser state to the host."""
    ema = None
    if average:
        with average.in_place():
            ema = lora_weights(transformer)
    return Snapshot(state, lora_weights(transformer), ema, lora_header(transformer, facts), optimizer_state(optimizer))


class CheckpointWriter(AbstractContextManager):
    """Writes a run's checkpoints in a thread, one at a time, while training goes on: writing, hashing and waiting for
    the disk take longer than the copies. Leaving its context waits for what is being written.

    keep: see save_checkpoint.
    """

    def __init__(self, run: Path, keep: int | None) -> None:
        self._run, self._keep = run, keep
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()

    def save(
        self, state: TrainerState, facts: LoraFacts, transformer: FluxTransformer2DModel, optimizer: Optimizer,
        average: WeightAverage | None = None,
    ) -> None:  # fmt: skip
        """Copies LoRA, its average and optimiser state and begins to write them, once the checkpoint before is written:
        the host holds one copy at a time. Raises the ValueError of the one before where that failed."""
        self.wait()
        self._writing = self._thread.submit(self._write, take_snapshot(state, facts, transformer, optimizer, average))

    def _write(self, snapshot: Snapshot) -> None:
        checkpoint = save_checkpoint(self._run, snapshot, self._keep)
        logger.info("saved %s", lora_file(checkpoint))

    def raise_if_failed(self) -> None:
        """Raises the ValueError of save_checkpoint where that has failed by now; waits for nothing."""
        if self._writing and self._writing.done():
            self._writing.result()

    def wait(self) -> None:
        """Returns when what `save` was given is on the disk. Raises the ValueError of save_checkpoint."""
        if self._writing:
            self._writing.result()


def save_checkpoint(run: Path, snapshot: Snapshot, keep: int | None) -> Path:
    """Writes checkpoint-<step>, then removes all but the newest `keep` (None keeps all) and, in a run with --keep_best,
    the best. Returns its folder.

    Raises ValueError where it cannot be written: older ones are untouched, and no part of it stays.
    """
    final = run / f"checkpoint-{snapshot.state.step}"
    try:
        with replacing(final) as staging:
            write_lora(lora_file(staging).parent, snapshot.lora, snapshot.lora_header)
            if snapshot.ema:
                write_lora(ema_file(staging).parent, snapshot.ema, snapshot.lora_header)
            write_optimizer(staging, snapshot.optimizer)
            save_json(staging / STATE_FILE, asdict(snapshot.state))
            write_manifest(staging)
            _sync(staging)
            if final.exists():
                _set_aside(final)
        _sync_file(run)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{final} cannot be written ({error}): make room on the disk, then resume") from error
    if keep is not None:
        best = best_checkpoint(run)
        for old in checkpoints(run)[:-keep]:
            if old != best:
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
    checkpoint: Path, identity: dict[str, Any], transformer: FluxTransformer2DModel, optimizer: Optimizer,
    average: WeightAverage | None = None,
) -> TrainerState:  # fmt: skip
    """Restores LoRA, its average and optimiser state of a checkpoint that `verify` has passed; the optimiser's settings
    stay those it was made with. Raises ValueError as check_identity does.
    """
    check_identity(checkpoint, identity)
    state = TrainerState(**json.loads((checkpoint / STATE_FILE).read_text()))
    if average:
        load_lora(transformer, ema_file(checkpoint))
        average.restart(state.step)
    load_lora(transformer, lora_file(checkpoint))
    load_optimizer(checkpoint, optimizer)
    return state


def verify(checkpoint: Path) -> None:
    """Raises ValueError that names the first file of the checkpoint that is missing or changed."""
    if problem := damage(checkpoint):
        raise ValueError(f"{problem}: take another checkpoint")


def optimizer_state(optimizer: Optimizer) -> dict[str, Tensor | Any]:
    """The optimiser's moments and counters under "<parameter>.<name>", tensors as copies on the host."""
    return {  # bitsandbytes shares its code books between parameters, which safetensors refuses: a copy for each
        name: value.to("cpu", copy=True).contiguous() if isinstance(value, Tensor) else value
        for name, value in _flatten(optimizer.state_dict()["state"]).items()
    }


def write_optimizer(folder: Path, state: dict[str, Tensor | Any]) -> None:
    """Writes what `optimizer_state` returned: tensors as safetensors, everything else as JSON."""
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    save_file(tensors, folder / "optimizer.safetensors")
    save_json(folder / "optimizer.json", {name: value for name, value in state.items() if name not in tensors})


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
