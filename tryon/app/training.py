"""Trainings, as a page can start and show them: their processes, and what they write into their folders.

A training is the launcher that a terminal would call, in a session of its own: it goes on where the page or the app is
closed, and one that was started in a terminal is shown like any other.
"""

import json
import os
import re
import shlex
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from subprocess import DEVNULL, PIPE, STDOUT, Popen
from typing import Any, Literal

from tryon.config import PROJECT
from tryon.data.layout import holds_pairs, run_prefix
from tryon.files import read_json
from tryon.report import REPORT, read_scores
from tryon.runs import LAUNCH, LAUNCHER_LOCK, checkpoints, locked, process_of, read_metrics

LAUNCHER = PROJECT / "train_deepfashion_lora.sh"
NOTE = "note.txt"
SETTING = re.compile(r"\d\d:\d\d:\d\d   \w+ ")  # how a line of the log begins that says a setting
TAIL = 16 * 1024  # bytes at the end of a file that say how a run stands
MOST_POINTS = 200  # of a curve
RECENT = 50  # steps by whose median the time left is foretold
Source = Literal["toy", "folder", "hub"]
State = Literal["starting", "loading", "running", "stopping", "finished", "stopped", "failed"]
# What the page calls what refusals name as in a terminal.
FIELDS = {
    "--run_name": "Name",
    "--max_train_steps": "Steps",
    "give train_deepfashion_lora.sh --plan --gpu_memory 24": "press Plan with --gpu_memory 24 in Further flags",
}
SIGNAL = re.compile(r"SIG\w+: | by SIG\w+|; a second one stops at once")  # says nothing to who presses Stop


@dataclass(frozen=True)
class TrainingRequest:
    """A training to be planned or started.

    data: a folder, or a name on the hub; nothing for the toy. name: of the run's folder; empty: one after data, profile
    and time. steps: optimiser steps; empty: the profile's. more: flags as in a terminal.
    """

    source: Source
    data: str
    profile: str
    name: str = ""
    steps: str = ""
    more: str = ""

    def flags(self) -> list[str]:
        """The launcher's flags, but for the run's name. Raises ValueError where the data are not named."""
        if self.source == "toy":
            data = ["--toy"]
        elif not self.data.strip():
            raise ValueError("Name the data: a folder, or a data set of the hub.")
        else:
            data = [f"--{'dataroot' if self.is_laid_out() else 'dataset_name'}={self.data.strip()}"]
        steps = [f"--max_train_steps={self.steps.strip()}"] if self.steps.strip() else []
        try:
            more = shlex.split(self.more)
        except ValueError as error:
            raise ValueError(f"The further flags cannot be read ({error}): write them as in a terminal.") from error
        return [f"--{self.profile.replace('_', '-')}", *data, *steps, *more]

    def is_laid_out(self) -> bool:
        """Whether the data are a folder of pairs, without a table of them."""
        return self.source == "folder" and holds_pairs(Path(self.data.strip()).expanduser())

    def run_name(self) -> str:
        """The run's name: the one given, or one as the launcher would give it now."""
        prefix = run_prefix(self.data.strip()) if self.is_laid_out() else "deepfashion_lora"
        return self.name.strip() or f"{prefix}_{self.profile}_{time.strftime('%Y%m%d_%H%M%S')}"


def start(request: TrainingRequest, runs: Path) -> Path:
    """Starts a training below the folder of runs, and returns its folder. Raises ValueError with the launcher's words
    where it refuses."""
    name = request.run_name()
    if (runs / name).exists():
        raise ValueError(f"There is a run {name} already: give another name.")
    _launch([*request.flags(), f"--run_name={name}"], PROJECT, runs / name)
    return runs / name


def more_steps(run: Path, asked: str) -> str:
    """The steps that were asked for where a run has fewer, else nothing. What is no number is left to the launcher to
    refuse."""
    asked, own = asked.strip(), read_run(run).steps or 0
    return "" if asked.isdecimal() and int(asked) <= own else asked


def resume(run: Path, steps: str = "") -> None:
    """Lets a run go on from its newest checkpoint, with the flags that it was started with. steps: to go on to; empty:
    as many as it was started for. Raises ValueError where it cannot."""
    launch = read_json(run / LAUNCH)
    if not launch:
        raise ValueError(f"{run.name} was not started by {LAUNCHER.name}: resume it in a terminal.")
    if process_of(run) is not None:
        raise ValueError(f"{run.name} is running already.")
    resuming = ["--init_lora", "none", "--resume_from_checkpoint", str(run)]
    resuming += [f"--max_train_steps={steps}"] if steps else []
    _launch([*launch["flags"], *resuming], Path(launch["folder"]), run)


def _launch(flags: list[str], folder: Path, run: Path) -> None:
    """Calls the launcher in a folder, and returns as soon as it keeps the run's. Raises ValueError with its words where
    it ends before."""
    with tempfile.TemporaryFile() as said:
        launcher = Popen(
            ["bash", str(LAUNCHER), *flags], cwd=folder, env={**os.environ, "RUNS_DIR": str(run.parent)},
            stdin=DEVNULL, stdout=DEVNULL, stderr=said, start_new_session=True,
        )  # fmt: skip
        threading.Thread(target=launcher.wait, daemon=True).start()  # or it would stay as a zombie
        while process_of(run) is None:
            if launcher.poll() is not None:
                said.seek(0)
                raise ValueError(_last_words(said.read().decode(errors="replace")))
            time.sleep(0.05)


def stop(run: Path) -> None:
    """Asks a run to save after its step and to end. Raises ValueError where it cannot be asked from here."""
    process = process_of(run)
    if process is None:
        raise ValueError(f"{run.name} has ended already.")
    if process < 1:
        raise ValueError(f"{run.name} runs on another machine: stop it there.")
    os.kill(process, signal.SIGTERM)  # SIGINT is ignored where the app was started in a script's background


def delete(run: Path) -> None:
    """Removes a run's folder and all that is in it. Raises ValueError while it runs."""
    if process_of(run) is not None:
        raise ValueError(f"{run.name} is running: stop it first.")
    try:
        with locked(run, LAUNCHER_LOCK), locked(run):
            shutil.rmtree(run)
    except OSError as error:
        raise ValueError(f"{run} cannot be deleted ({error}): delete it by hand.") from error


def ask(request: TrainingRequest, flag: Literal["--plan", "--check"], runs: Path) -> Iterator[list[str]]:
    """What the launcher answers to a flag, for a run below the folder of runs: each line as cells, as soon as it comes;
    indented ones begin with an empty cell. Raises ValueError where it refuses."""
    command = ["bash", str(LAUNCHER), *request.flags(), f"--run_name={request.run_name()}", flag]
    variables = {**os.environ, "RUNS_DIR": str(runs)}
    with Popen(command, cwd=PROJECT, env=variables, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, text=True) as launcher:
        try:
            for line in launcher.stdout:
                if line.startswith("error: "):
                    raise ValueError(_last_words(line))
                if not line.startswith("loading "):
                    yield re.split(r"\s{2,}", line.rstrip())
        finally:
            launcher.terminate()


def _last_words(said: str) -> str:
    """The launcher's last line, as a sentence of the page."""
    lines = [line for line in said.splitlines() if line.strip()]
    if not lines:
        return "The training ended before it began, and said nothing."
    return re.sub("|".join(FIELDS), lambda flag: FIELDS[flag[0]], lines[-1].removeprefix("error: "))


def all_runs(runs: Path) -> list[Path]:
    """The folders of runs, the one that was begun last first."""
    folders = [path for path in runs.iterdir() if path.is_dir()] if runs.is_dir() else []
    begun = {}
    for folder in folders:
        for name in ("config.json", LAUNCH):  # the first stays as it is where a run goes on
            with suppress(FileNotFoundError):
                begun.setdefault(folder, (folder / name).stat().st_mtime)
    return sorted(begun, key=begun.get, reverse=True)


@dataclass(frozen=True)
class RunFacts:
    """A run as its folder shows it. data: what it is trained on, in words. step: optimiser steps done; steps: in all,
    None: not known. loss, psnr: the lowest of its validations, and by how many dB the best of its LoRAs is above the
    base, in words, empty before there is one. size: bytes on the disk. said: the newest line of its log, but for
    settings. resumable: whether `resume` lets it go on."""

    name: str
    data: str
    state: State
    step: int
    steps: int | None
    profile: str
    loss: str
    psnr: str
    size: int
    note: str
    said: str
    resumable: bool


def read_run(run: Path) -> RunFacts:
    """What the folder says now."""
    settings = max(run.glob("config*.json"), key=lambda file: file.stat().st_mtime, default=run / "config.json")
    config = read_json(settings)
    steps = None if config.get("num_train_epochs") else config.get("max_train_steps")
    rows = [json.loads(line) for line in _tail(run / "metrics.jsonl") if line.endswith("}")]
    step = rows[-1]["step"] if rows else 0
    log = [line for line in _tail(run / "train.log", read_json(run / LAUNCH).get("log_begins", 0)) if line.strip()]
    state = _state(run, log, step, steps, _steps_now(run, settings, step))
    note = run / NOTE
    return RunFacts(
        name=run.name, data=_data(config), state=state, step=step, steps=steps, profile=config.get("profile", ""),
        loss=_lowest_loss(run), psnr=_gained_psnr(run), size=_size(run),
        note=note.read_text() if note.is_file() else "", said=_said(run, log, rows),
        resumable=process_of(run) is None and (run / LAUNCH).is_file() and bool(checkpoints(run)),
    )  # fmt: skip


def _data(config: dict[str, Any]) -> str:
    """The toy, a folder's name, or a name on the hub; empty where the settings do not say."""
    name = config.get("dataset_name") or config.get("dataroot") or ""
    if Path(name).is_relative_to(Path(config.get("data_cache_dir", "")) / "toy"):
        return "toy"
    return Path(name).name if Path(name).is_absolute() else name


def _size(run: Path) -> int:
    total = 0
    for path in run.rglob("*"):
        with suppress(FileNotFoundError):  # a run that goes on removes its older checkpoints
            total += path.stat().st_size
    return total


def _steps_now(run: Path, settings: Path, step: int) -> bool:
    """Whether a step was done since the run was started the last time. settings: those that it was started with."""
    files = [file for file in (run / LAUNCH, settings, run / "metrics.jsonl") if file.is_file()]
    written = [file.stat().st_mtime for file in files]  # in this order by each start
    first = int(re.sub(r"\D", "", settings.stem) or 0)  # config-from-<step>.json
    return written == sorted(written) and step > first


def _said(run: Path, log: list[str], rows: list[dict[str, Any]]) -> str:
    """The newest line of the log that says no setting; of a run that no launcher started, which has no log, the newest
    step."""
    if log:
        return SIGNAL.sub("", next((line for line in reversed(log) if not SETTING.match(line)), ""))
    if (run / "train.log").is_file():
        return ""
    words = "step {step}: loss {train/loss:.4f}, {train/seconds:.2f} s/step; "
    step = next((words.format_map(row) for row in reversed(rows) if "train/loss" in row), "")
    return f"{step}its log went to the terminal that started it"


def _state(run: Path, log: list[str], step: int, steps: int | None, steps_now: bool) -> State:
    """log: since the last start."""
    newest = log[-1] if log else ""
    if process_of(run) is not None:
        if any("saving after this step" in line or line.startswith("stopped by SIG") for line in log):
            return "stopping"
        return "running" if steps_now else "loading" if log else "starting"
    # After the end there may be words of a start that was refused.
    if any(" finished: " in line for line in log) or (not log and steps and step >= steps):
        return "finished"
    return "failed" if newest.startswith("error: ") or "Traceback (most recent call last):" in log else "stopped"


def _lowest_loss(run: Path) -> str:
    """That of step 0 does not count: nothing is trained then."""
    losses = [row["validation/loss"] for row in read_metrics(run) if row["step"] and "validation/loss" in row]
    return f"{min(losses):.4f}" if losses else ""


def _gained_psnr(run: Path) -> str:
    """By how many dB the best LoRA is above the base, a mean over all kinds of pairs that the run scored at its end."""
    rows = [scores for _, scores in read_scores(run)]
    loras = rows[0].keys() - {"base", "fill", "vae"} if rows else set()
    gains = [sum(row[lora]["psnr"] - row["base"]["psnr"] for row in rows) / len(rows) for lora in loras]
    return f"{max(gains):+.1f}" if gains else ""


def _tail(file: Path, begin: int = 0) -> list[str]:
    """The file's last whole lines, from a byte on; none where there is no file."""
    if not file.is_file():
        return []
    with file.open("rb") as opened:
        cut = max(begin, file.stat().st_size - TAIL)
        opened.seek(cut)
        lines = opened.read().decode(errors="replace").splitlines()
    return lines[1:] if cut > begin else lines


def seconds_left(facts: RunFacts, rows: list[dict[str, Any]]) -> float | None:
    """How long the steps that are left will take; None where that is not known. rows: the run's metrics."""
    recent = [row["train/seconds"] for row in rows if "train/seconds" in row][-RECENT:]
    return median(recent) * (facts.steps - facts.step) if recent and facts.steps else None


def loss_curves(rows: list[dict[str, Any]]) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    """Training and validation loss as points: step and loss. Of many steps each point is a mean."""
    steps = [row for row in rows if "train/loss" in row]
    size = -(-len(steps) // MOST_POINTS) or 1
    parts = [steps[first : first + size] for first in range(0, len(steps), size)]
    training = [(part[-1]["step"], sum(row["train/loss"] for row in part) / len(part)) for part in parts]
    return training, [(row["step"], row["validation/loss"]) for row in rows if "validation/loss" in row]


def newest_grid(run: Path) -> Path | None:
    """The newest validation picture, where there is one."""
    return max((run / "validation").glob("step-*.png"), default=None)


def marks(runs: list[Path]) -> tuple[Any, ...]:
    """What changes whenever these runs have something else to show."""
    files = [
        run / name for run in runs for name in (LAUNCH, "metrics.jsonl", "train.log", "evaluation.json", REPORT, NOTE)
    ]
    return *map(process_of, runs), *(file.is_file() and file.stat().st_mtime for file in files)
