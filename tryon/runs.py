"""Where a run's files lie, and which run or checkpoint a name means. Imports nothing heavy.

    runs/<prefix>_<profile>_<YYYYmmdd_HHMMSS>/
        config.json  metrics.jsonl  train.log  warnings.log  logs/  validation/step-000025.png
        checkpoint-<step>/transformer/pytorch_lora_weights.safetensors  ...  manifest.json
        checkpoint-<step>/ema/pytorch_lora_weights.safetensors  with --ema_decay
        merged-<first step>-<last step>/transformer/pytorch_lora_weights.safetensors  see tryon.merge

A checkpoint is whole when its manifest is there: it is written last. It is valid when its files are what that says.
"""

import errno
import fcntl
import json
import logging
import math
import os
import re
import shlex
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from tryon.config import MODELS, PROJECT, TrainConfig
from tryon.files import MANIFEST, damage, file_hash, full_path, read_json, save_json
from tryon.signals import say_begun

logger = logging.getLogger(__name__)

LORA_FILE = "pytorch_lora_weights.safetensors"
WHERE_IT_LIES = ("resume_from_checkpoint", "output_dir", "run_name", "data_cache_dir", "cache_dir")
STATE_FILE = "trainer_state.json"
LOCK_FILE = ".lock"
LAUNCHER_LOCK = ".launcher.lock"  # kept from the first checks to the last scores
FLOCK = "hhqqi"  # Linux's struct flock: type, whence, start, length, process
LAUNCH = "launch.json"  # the launcher's flags, the folder that it was called from, and where in the log it begins
WARNINGS = "warnings.log"
EVALUATION = "evaluation.json"  # the run's own scores, of its end
# What a run may leave that is stopped before its first checkpoint.
FIRST_RECORDS = {
    "config.json", "data.json", "persons.json", "environment.json", "metrics.jsonl", "train.log", "report.html", "logs",
    "validation", WARNINGS, LAUNCH, LOCK_FILE, LAUNCHER_LOCK,
}  # fmt: skip
LISTED = 6  # LoRAs that the log names where several could be meant
_held: set[Path] = set()  # lock files that this process keeps
# The parts of a run's time: what a step needs, and what happens once in a while. The rest is overhead.
STEP_PARTS = ("data", "transfer", "forward", "backward", "optimiser")
OCCASIONAL_PARTS = ("validation", "checkpoint")
CHECKPOINT = re.compile(r"checkpoint-\d+")
OF_RUN = re.compile(r"checkpoint-\d+|merged-\d+-\d+")  # folders of a run's LoRAs
# Settings that a resumed run may not change, because the batches or what is learnt from them would be others.
SAME_WHEN_RESUMED = (
    "prompt", "max_sequence_length", "height", "width", "seed", "num_processes", "train_batch_size",
    "gradient_accumulation_steps", "weighting_scheme", "logit_mean", "logit_std", "timestep_shift", "guidance_scale",
    "mask_loss_weight", "teacher_weight", "teacher_categories", "optimizer", "lora_rank", "lora_alpha", "lora_dropout",
    "lora_targets", "lora_blocks", "base_categories", "balance", "try_off_share", "ema_decay",
)  # fmt: skip


class Refused(ValueError):
    """A run that cannot be resumed as it was asked for."""


class TrainedAlready(Refused):
    """A run that has made all its steps."""


def with_paths(config: TrainConfig, prefix: str) -> TrainConfig:
    """The configuration with the run's folder, and with paths that hold from anywhere. Nothing is created. Raises
    ValueError as run_folder does, and where a run cannot be resumed with these settings or has nothing left to do, see
    lacks_its_end."""
    cache, run = full_path(config.data_cache_dir), run_folder(config, prefix)
    if config.resume_from_checkpoint:
        checkpoint = find_checkpoint(config.resume_from_checkpoint, run)
        check_identity(checkpoint, {name: getattr(config, name) for name in SAME_WHEN_RESUMED})
        step, steps = step_of(checkpoint), config.max_train_steps
        trained = not config.num_train_epochs and step >= steps
        if trained and not lacks_its_end(config, run):
            raise ValueError(f"{checkpoint} is at step {step} of {steps} already: give more --max_train_steps to go on")
        config = replace(config, resume_from_checkpoint=str(full_path(checkpoint)))  # looked for once
    if config.init_lora and Path(config.init_lora).expanduser().exists():
        config = replace(config, init_lora=str(full_path(find_lora(config.init_lora))))  # a run may go on meanwhile
    elif config.init_lora:
        raise ValueError(f"--init_lora {config.init_lora} does not exist: name a run, a checkpoint, a folder or a file")
    paths = {name: full_path(getattr(config, name)) for name in MODELS}
    models = {name: str(path) for name, path in paths.items() if path.exists()}
    return replace(config, data_cache_dir=str(cache), output_dir=str(run), **models)


def identity_of(checkpoint: Path) -> dict[str, Any]:
    """What must be the same when the checkpoint's run goes on, by name."""
    return json.loads((checkpoint / STATE_FILE).read_text())["identity"]


def check_identity(checkpoint: Path, identity: dict[str, Any]) -> None:
    """Raises Refused, with the differences listed, where what `identity` names was another in the checkpoint's run. It
    need not name everything: what is not known yet is left out. A setting that is younger than the checkpoint was at
    its default."""
    was = {**{each.name: each.default for each in fields(TrainConfig)}, **identity_of(checkpoint)}
    changed = [name for name in sorted(identity) if was.get(name) != identity[name]]
    if changed:
        differences = "; ".join(f"{name} was {was.get(name)} and is {identity[name]}" for name in changed)
        raise Refused(
            f"{checkpoint} cannot be resumed as another run: {differences}: give what the run's config.json says, name "
            "another run with --resume_from_checkpoint, or start a new one with --init_lora"
        )


def is_scored(config: TrainConfig, run: Path) -> bool:
    """Whether evaluation.json has the scores of the run's LoRA, on as many samples as are asked for."""
    found = read_json(run / EVALUATION)
    if found.get("settings", {}).get("num_samples") != config.num_evaluation_samples:
        return False
    return file_hash(find_lora(str(run)))[:16] in [lora["sha256"] for lora in found["loras"].values()]


def lacks_its_end(config: TrainConfig, run: Path) -> bool:
    """Whether something is left to do for a run that has made all its steps: its scores, or the upload."""
    unscored = config.num_evaluation_samples and not is_scored(config, run)
    return bool(checkpoints(run) and (unscored or config.push_to_hub))


def goes_on(config: TrainConfig) -> bool:
    """Whether the training goes on in the folder of an earlier one."""
    return config.resume_from_checkpoint is not None and (Path(config.output_dir) / "config.json").exists()


def settings_file(config: TrainConfig) -> Path:
    """Where the settings are written. What a run began with stays: those of a resumed part get a file of their own."""
    folder = Path(config.output_dir)
    if not goes_on(config):
        return folder / "config.json"
    return folder / f"config-from-{step_of(find_checkpoint(config.resume_from_checkpoint, folder))}.json"


def announce(config: TrainConfig, *others: Any) -> None:
    """Creates the run's folder with the settings in it, and prints them. others: the data's dataclasses."""
    settings = {key: value for part in (config, *others) for key, value in asdict(part).items()}
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if goes_on(config):
        for name, was in read_json(folder / "config.json").items():
            if name in settings and settings[name] != was and name not in WHERE_IT_LIES:
                logger.info("changed since the run began: %s was %s and is %s", name, was, settings[name])
    save_json(settings_file(config), settings)
    for name, value in settings.items():
        logger.info("  %-38s %s", name, value)


@contextmanager
def own_run(config: TrainConfig, is_main_process: bool, *others: Any) -> Iterator[Callable[[], None]]:
    """Around a training: its folder is its own, its settings are written there and printed, and where it ends early the
    log says how to go on. others: the data's dataclasses. Gives a function to call once the training has begun, see
    records_kept."""
    if not is_main_process:
        with resume_hint(config):
            yield lambda: None
        return
    run = Path(config.output_dir)
    with locked(run), records_kept(config) as begun, warnings_kept(run):
        announce(config, *others)
        with resume_hint(config):
            yield begun


@contextmanager
def records_kept(config: TrainConfig) -> Iterator[Callable[[], None]]:
    """Around a training that may go on with a run. Gives a function to call once it has begun: checkpoint and data have
    been accepted. Where it ends before, what was written of its settings and warnings is taken out of the run again."""
    files = (settings_file(config), Path(config.output_dir) / WARNINGS) if goes_on(config) else ()
    before = {file: file.read_bytes() if file.exists() else None for file in files}

    def begun() -> None:
        before.clear()
        say_begun()

    try:
        yield begun
    finally:
        for file, content in before.items():
            if content is None:
                file.unlink(missing_ok=True)
            else:
                file.write_bytes(content)


@contextmanager
def warnings_kept(run: Path) -> Iterator[None]:
    """Around a training: what is logged as a warning goes into the run's warnings.log too, a line each, made by the
    first."""

    class IntoTheRun(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with suppress(OSError), (run / WARNINGS).open("a") as file:  # it has been logged once already
                file.write(f"{time.strftime('%H:%M:%S')} {record.getMessage().partition(chr(10))[0]}\n")

    handler = IntoTheRun(logging.WARNING)
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)


@contextmanager
def resume_hint(config: TrainConfig, *, trained: bool = False) -> Iterator[None]:
    """Around a training, or, where it is trained, around what follows: where that ends before its end, and not because
    resuming is refused, the log says what is saved and how to resume."""
    run = Path(config.output_dir)
    try:
        yield
    except BaseException as error:
        saved = checkpoints(run)
        if saved and not isinstance(error, Refused):
            step, flags = step_of(saved[-1]), f"--resume_from_checkpoint {shlex.quote(str(saved[-1]))}"
            if config.init_lora:  # of two the last counts; a run that goes on does not start from it again
                flags = f"--init_lora none {flags}"
            if not trained and (config.num_train_epochs or step < config.max_train_steps):
                logger.info("saved up to step %d: go on with the same flags and %s", step, flags)
            else:
                words = f"; scores, or the upload, are still to come: give the same flags and {flags}"
                more = words if lacks_its_end(config, run) else ""
                logger.info("all is done up to step %d, and saved in %s%s", step, saved[-1], more)
        raise


def runs_folder() -> Path:
    """Where runs lie unless another folder is named."""
    return full_path(os.environ.get("RUNS_DIR") or PROJECT / "runs")


def run_folder(config: TrainConfig, prefix: str) -> Path:
    """The run's folder: the one named; the run that is resumed, with `latest` the newest of the profile; else a new
    name below RUNS_DIR. Nothing is created. Raises ValueError where a new run would mix with an old one's checkpoints,
    or there is nothing to resume."""
    parent, resume = runs_folder(), config.resume_from_checkpoint
    folder = full_path(config.output_dir) if config.output_dir is not None else None
    if config.run_name:
        named = parent / config.run_name
        if folder not in (None, named):  # the launcher gives both, of the same folder
            raise ValueError("--run_name and --output_dir name two folders: give one of them")
        if folder is None and not resume and named.exists() and not begins_again(named):
            or_resume = ", or add --resume_from_checkpoint latest to go on with it" if checkpoints(named) else ""
            raise ValueError(f"{named} is there already: give another --run_name{or_resume}")
        folder = named
    if resume not in (None, "latest"):
        checkpoint = full_path(find_checkpoint(resume, parent))
        if problem := damage(checkpoint):
            raise ValueError(f"{problem}: name a run or another checkpoint-<step> folder")
        if folder in (None, checkpoint.parent):
            if newest_checkpoint(checkpoint.parent) != checkpoint:
                raise ValueError(
                    f"--resume_from_checkpoint {resume} is not the newest of its run, whose newer ones would be mixed "
                    "up: name another folder with --output_dir"
                )
            return checkpoint.parent
    if folder is not None:
        asked = f"--output_dir {config.output_dir}"
        if resume == "latest" and not checkpoints(folder):
            raise ValueError(f"{asked} has no checkpoint to resume: name a run's folder")
        if resume != "latest" and checkpoints(folder):
            than, or_resume = (f" than {resume}", "") if resume else ("", ", or add --resume_from_checkpoint latest")
            raise ValueError(f"{asked} holds checkpoints of another run{than}: name another folder{or_resume}")
        return folder
    if resume == "latest":
        return newest_run(parent, config.profile)
    while (folder := parent / f"{prefix}_{config.profile}_{time.strftime('%Y%m%d_%H%M%S')}").exists():
        time.sleep(0.1)  # two runs started in the same second
    return folder


def begins_again(run: Path) -> bool:
    """Whether a new run may take the folder: nothing is in it but records of one that was stopped before its first
    checkpoint."""
    names = {path.name for path in run.iterdir() if not path.name.startswith(".checkpoint-")} if run.is_dir() else {""}
    return names <= FIRST_RECORDS and process_of(run) is None


def newest_run(parent: Path, profile: str) -> Path:
    """The run with a checkpoint that was begun last of those of the profile, whatever their names. Raises ValueError,
    with the runs of other profiles listed, where there is none."""
    files = [file for file in parent.glob("*/config.json") if checkpoints(file.parent)]  # it stays as a run began
    files.sort(key=lambda file: (file.stat().st_mtime, file.parent.name), reverse=True)
    profiles = {file.parent: read_json(file).get("profile") for file in files}
    if found := [run for run, name in profiles.items() if name == profile]:
        return found[0]
    others = [f"{run.name} ({name})" for run, name in profiles.items()]
    listed = ", ".join([*others[:LISTED], *(["..."] if len(others) > LISTED else [])])
    hint = f", or give the profile of another: {listed}" if others else ""
    raise ValueError(f"{parent} has no {profile} run with a checkpoint: start one without resuming{hint}")


@contextmanager
def locked(run: Path, name: str = LOCK_FILE) -> Iterator[None]:
    """Keeps the run's folder for this process until it ends, however it does. Raises ValueError where another one has
    it. What it starts does not inherit the lock."""
    lock = run / name
    if lock in _held:  # opened a second time, the file would lose its lock when that is closed
        yield
        return
    run.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:  # as systems differ
            file.seek(0)
            raise ValueError(
                f"another training, process {file.read().strip()}, writes into {run}: wait for its end, or name "
                "another folder with --output_dir"
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            logger.warning("%s lies on a disk without locks: take care that only one training writes into it", run)
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        _held.add(lock)
        try:
            yield
        finally:
            _held.remove(lock)


def process_of(run: Path) -> int | None:
    """Id of the process that keeps the run's folder, the launcher's where there is one; below 1 where it runs on
    another machine or in another container; None: no process does. It takes no lock, so that it is in nobody's way."""
    for name in (LAUNCHER_LOCK, LOCK_FILE):
        with suppress(FileNotFoundError), (run / name).open() as file:
            asked = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, *_, process = struct.unpack(FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))
            if kind != fcntl.F_UNLCK:
                return process
    return None


def checkpoints(run: Path) -> list[Path]:
    """The run's whole checkpoints, oldest first."""
    whole = [path.parent for path in run.glob(f"checkpoint-*/{MANIFEST}") if CHECKPOINT.fullmatch(path.parent.name)]
    return sorted(whole, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Optimiser steps that a checkpoint-<step> folder has behind it."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def find_checkpoint(name: str, run: Path) -> Path:
    """The checkpoint that --resume_from_checkpoint names: a checkpoint's folder, or the newest of a run's; `latest` is
    the newest in the run's own folder `run`. Of a run only valid ones count. Raises ValueError where it has none."""
    folder = run if name == "latest" else Path(name).expanduser()
    return folder if CHECKPOINT.fullmatch(folder.name) else newest_checkpoint(folder)


def newest_checkpoint(run: Path) -> Path:
    """The run's newest valid checkpoint; damaged ones are named and skipped. Raises ValueError where there is none."""
    found = checkpoints(run)
    for checkpoint in reversed(found):
        if not (problem := damage(checkpoint)):
            return checkpoint
        logger.warning("skipped: %s", problem)
    kind = "undamaged checkpoint" if found else "checkpoint"
    raise ValueError(f"{run} has no {kind}: name a run or a checkpoint folder")


def lora_file(checkpoint: Path) -> Path:
    """The LoRA of a checkpoint folder, as it was trained."""
    return checkpoint / "transformer" / LORA_FILE


def ema_file(checkpoint: Path) -> Path:
    """The moving average of the LoRA's weights beside it, which --ema_decay makes."""
    return checkpoint / "ema" / LORA_FILE


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl as dictionaries."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]  # a full disk may have cut the last one short


def keep_best(run: Path) -> str:
    """What --keep_best was when the run saved last: a loss, or "none"."""
    for checkpoint in reversed(checkpoints(run)):
        with suppress(ValueError):  # a damaged one, which is named where a training goes on from it
            return read_json(checkpoint / STATE_FILE).get("keep_best", "none")
    return "none"


def validation_losses(run: Path) -> dict[Path, float]:
    """The LoRAs in a run's checkpoints whose validation loss was measured, by file, the oldest first: the loss that
    --keep_best names, else the one over all categories."""
    loss = keep_best(run).replace("none", "loss")
    rows = {row["step"]: row for row in read_metrics(run) if f"validation/{loss}" in row}
    return {
        file: rows[step_of(checkpoint)][name]
        for checkpoint in checkpoints(run)
        for file, name in (
            (lora_file(checkpoint), f"validation/{loss}"),
            (ema_file(checkpoint), f"validation/ema_{loss}"),
        )
        if name in rows.get(step_of(checkpoint), {})
    }


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the lowest validation loss of a run with --keep_best; None without, and before a step was
    both saved and measured."""
    losses = validation_losses(run) if keep_best(run) != "none" else {}
    return min(losses, key=losses.get).parent.parent if losses else None


def meant_lora(checkpoint: Path) -> Path:
    """The LoRA that a checkpoint's name means: the moving average where its validation loss is lower, else the LoRA as
    it was trained."""
    trained, ema = lora_file(checkpoint), ema_file(checkpoint)
    losses = validation_losses(checkpoint.parent) if ema.is_file() else {}
    return ema if losses.get(ema, math.inf) < losses.get(trained, math.inf) else trained


def run_of(lora: Path) -> Path | None:
    """The run that a LoRA's file is of; None where it lies in none."""
    folder = lora.absolute().parent.parent
    return folder.parent if OF_RUN.fullmatch(folder.name) else None


def lora_name(file: Path) -> str:
    """What a LoRA's file is called where people read it: its run and step, else its folder and file."""
    if run := run_of(file):
        folder = file.absolute().parent.parent
        words = folder.name.replace("checkpoint-", "step ")
        return f"{run.name}, {words}" + (", average" if file.absolute() == ema_file(folder) else "")
    return f"{file.parent.name}/{file.name}"


def find_lora(name: str) -> Path:
    """The LoRA file that a path names: the file itself, its folder, a checkpoint (see meant_lora), a run (its best
    checkpoint if it was trained with --keep_best, else its newest), or a folder of runs: then the newest of all, and
    the log lists them. Raises ValueError where there is none."""
    path = Path(name).expanduser()
    for candidate in (path, path / LORA_FILE):
        if candidate.is_file():
            return candidate
    if lora_file(path).is_file():
        return meant_lora(path)
    if found := checkpoints(path):
        return meant_lora(best_checkpoint(path) or found[-1])
    if not (loras := all_loras(path)):
        raise ValueError(f"{path} has no checkpoint: name a run, a checkpoint or a LoRA's file")
    if len(loras) > 1:
        names = [str(lora.parent.parent.relative_to(path.absolute())) for lora in loras]
        others = [*names[1:LISTED], *(["..."] if len(names) > LISTED else [])]
        logger.info("%s has %d LoRAs: %s is the newest; others: %s", path, len(names), names[0], ", ".join(others))
    return loras[0]


def all_loras(folder: Path) -> list[Path]:
    """The LoRAs of every whole checkpoint of every run in a folder, the newest first."""
    runs = [path for path in folder.absolute().iterdir() if path.is_dir()] if folder.is_dir() else []
    found = [meant_lora(checkpoint) for run in runs for checkpoint in checkpoints(run)]
    return sorted((file for file in found if file.is_file()), key=lambda file: file.stat().st_mtime, reverse=True)
