"""A run as one page, report.html, made only from the files in the run's folder: it opens anywhere without a network.

python -m tryon.report runs/<run>
"""

import io
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tryon.cli import parse, run_script
from tryon.config import PROFILES, TOY_NOTICE, MaskConfig, on_toy, setting
from tryon.data.category import CATEGORIES
from tryon.files import read_json, replacing, save_json
from tryon.pages import TEMPLATES, data_url, render
from tryon.runs import OCCASIONAL_PARTS, STEP_PARTS, WARNINGS, checkpoints, lora_file

Scores = dict[str, dict[str, float]]
ENVIRONMENT = "environment.json"
DATA = "data.json"
EVALUATION = "evaluation.json"
REPORT = "report.html"
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "datasets", "bitsandbytes")
SMOOTHED = 25  # steps whose mean is a point of the training loss
MOST_WARNINGS = 20
# What the scores' columns and kinds of pairs are.
MEANINGS = {
    "base": "the model without this LoRA",
    "LoRA": "the model with it",
    "fill": "the mask filled with the garment's mean colour",
    "vae": "the true picture, encoded and decoded by the VAE",
    "paired": "a person in their own garment",
    "unpaired": "a person in another garment, which only drawings have a true picture of",
}
OLDER_COLUMNS = {"before": "base", "after": "LoRA"}
LENGTH_IN_WORDS = "Length of trousers for shorts and the reverse"
FEWEST_POINTS = 10  # steps that make a curve
GREY = "#888888"  # of a chart's text: readable on light and on dark ground


def write_environment(run: Path, device: str) -> None:
    """Writes what the run is trained with: versions of libraries and Python, and the device's name."""
    versions = {name: version(name) for name in LIBRARIES}
    save_json(run / ENVIRONMENT, {"device": device, "python": platform.python_version(), **versions})


def write_data(run: Path, pairs: Mapping[str, Mapping[str, int]]) -> None:
    """Writes how many pairs of each category the run's data have: {"validation", for example: {category: pairs}}."""
    save_json(run / DATA, dict(pairs))


def write_report(run: Path) -> Path:
    """Writes run/report.html from what the run's folder holds now, and returns its path. Raises ValueError where the
    folder is no run, and where the page cannot be written."""
    if not (settings := read_json(run / "config.json")):
        raise ValueError(f"{run} holds no config.json: name the folder of a run")
    rows = read_metrics(run)
    steps = [row for row in rows if "train/loss" in row]
    saved = checkpoints(run)
    page = render(
        TEMPLATES / "report.html.j2",
        name=run.name,
        run=run,
        toy_notice=TOY_NOTICE if settings["toy"] else "",
        summary=_summary(settings, steps, saved),
        warnings=_warnings(run),
        scores=score_table(run),
        meanings=MEANINGS,
        length_ok=read_length(run),
        length_in_words=LENGTH_IN_WORDS,
        curves=_curves(rows, steps),
        pictures={path.stem: data_url(path.read_bytes(), "png") for path in sample_pictures(run)},
        pairs=_pair_table(run, rows),
        times=_times(rows, steps),
        lora=lora_file(saved[-1]) if saved else None,
        changed=_changed(settings),
        environment=read_json(run / ENVIRONMENT),
    )
    try:
        with replacing(run / REPORT) as staging:
            staging.write_text(page)
    except OSError as error:
        raise ValueError(f"{run / REPORT} cannot be written ({error}): make room on the disk, then resume") from error
    return run / REPORT


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl as dictionaries."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]  # a full disk may have cut the last one short


def _summary(settings: dict[str, Any], steps: Sequence[dict[str, Any]], saved: Sequence[Path]) -> dict[str, str]:
    per_step = settings["train_batch_size"] * settings["gradient_accumulation_steps"] * settings["num_processes"]
    return {
        "steps": f"{steps[-1]['step'] if steps else 0:,} of {settings['max_train_steps']:,}, {per_step} samples each",
        "panel": f"{settings['height']} x {settings['width']} pixels",
        "LoRA": f"rank {settings['lora_rank']}, alpha {settings['lora_alpha']}",
        "model": settings["pretrained_inpaint_model_name_or_path"],
        "data": settings.get("dataset_name") or settings.get("dataroot") or "drawings",
        "newest checkpoint": saved[-1].name if saved else "none yet",
    }


def sample_pictures(run: Path) -> list[Path]:
    """The run's pictures: of the scored pairs where there are some, else of the newest validation."""
    scored = [path for path in (run / "evaluation-unpaired.png", run / "evaluation-paired.png") if path.is_file()]
    return scored or sorted((run / "validation").glob("step-*.png"))[-1:]


def read_scores(run: Path) -> list[tuple[str, Scores]]:
    """The rows of evaluation.json, such as "upper, paired": {column: {"psnr": dB, "ssim": x}}; none where it is not
    there, or its pairs have no truth. Files without a version may be of either of two older forms."""
    found = read_json(run / EVALUATION)
    if "scores" not in found:
        return [
            (f"{category}, {kind}", {OLDER_COLUMNS.get(name, name): score for name, score in columns.items()})
            for category in CATEGORIES
            for kind, columns in found.get(category, {}).items()
        ]
    rows = []
    for category in CATEGORIES:
        for kind, of_kind in found["scores"].items():
            scores = of_kind.get(category, {})
            known = [name for name in ("base", *found["loras"], "fill", "vae") if "psnr" in scores.get(name, {})]
            row = {name: {each: scores[name][each]["mean"] for each in ("psnr", "ssim")} for name in known}
            rows += [(f"{category}, {kind}", row)] if row else []
    return rows


def read_length(run: Path) -> float | None:
    """The share of results with the right length, where drawn people in shorts try on trousers and the reverse; None
    where that was not measured."""
    found = read_json(run / EVALUATION)
    scores = found.get("scores", {}).get("unpaired", {}).get("all", {})
    right = (scores.get(name, {}).get("length_right") for name in found.get("loras", {}))
    return next((each["mean"] for each in right if each), found.get("length_ok"))


def score_table(run: Path) -> list[list[str]]:
    """evaluation.json as rows of cells, the head first; none where nothing was scored."""
    scores = read_scores(run)
    if not scores:
        return []
    names = list(scores[0][1])
    rows = [["PSNR in dB / SSIM inside the mask", *names]]
    for label, columns in scores:
        rows.append([label, *(f"{columns[name]['psnr']:.2f} / {columns[name]['ssim']:.3f}" for name in names)])
    return rows


def _curves(rows: Sequence[dict[str, Any]], steps: Sequence[dict[str, Any]]) -> str:
    """Training and validation loss as SVG; empty where there are few steps."""
    if len(steps) < FEWEST_POINTS:
        return ""
    from matplotlib.figure import Figure  # half a second, and not before there is something to draw

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    training, validation = figure.subplots(1, 2)
    size = min(SMOOTHED, max(1, len(steps) // 4))
    parts = [steps[start : start + size] for start in range(0, len(steps), size)]
    means = [sum(row["train/loss"] for row in part) / len(part) for part in parts]
    training.plot([part[-1]["step"] for part in parts], means)
    training.set_title(f"training loss, means of {size} steps")
    names = sorted({name for row in rows for name in row if name.startswith("validation/")})
    for name in names:
        points = [(row["step"], row[name]) for row in rows if name in row]
        validation.plot(*zip(*points, strict=True), marker=".", label=name.removeprefix("validation/"))
    validation.set_title("validation loss")
    if names:
        validation.legend(labelcolor=GREY, framealpha=0)
    for chart in (training, validation):
        chart.set_xlabel("step", color=GREY)
        chart.title.set_color(GREY)
        chart.tick_params(colors=GREY)
        for side in chart.spines.values():
            side.set_color(GREY)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


def _times(rows: Sequence[dict[str, Any]], steps: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Seconds of a step, and of each part of the training with its share of the total."""
    parts = {part: sum(row.get(f"time/{part}", 0.0) for row in rows) for part in (*STEP_PARTS, *OCCASIONAL_PARTS)}
    total = sum(parts.values())
    if not total or not steps:
        return {}
    seconds = sorted(row["train/seconds"] for row in steps)
    shares = {part: f"{spent:,.1f} s, {100 * spent / total:.0f} %" for part, spent in parts.items()}
    return {"a step, median": f"{seconds[len(seconds) // 2]:.3g} s", **shares}


def _warnings(run: Path) -> list[str]:
    file = run / WARNINGS
    lines = [line.replace(" warning: ", " ", 1) for line in file.read_text().splitlines()] if file.is_file() else []
    more = [f"... and {len(lines) - MOST_WARNINGS} more in {WARNINGS}"] if len(lines) > MOST_WARNINGS else []
    return [*lines[:MOST_WARNINGS], *more]


def _pair_table(run: Path, rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Pairs by category as rows of cells, the head first: how many the data have, how their garments are shown, and how
    often each category was sampled. Empty where that is not known."""
    newest = next((row for row in reversed(rows) if any(name.startswith("drawn/") for name in row)), {})
    drawn = {name.removeprefix("drawn/"): count for name, count in newest.items() if name.startswith("drawn/")}
    pairs = {**read_json(run / DATA), **({f"sampled by step {newest['step']}": drawn} if drawn else {})}
    if not pairs:
        return []
    cells = [[what, *(f"{found.get(category, 0):,}" for category in CATEGORIES)] for what, found in pairs.items()]
    return [["pairs", *CATEGORIES], *cells]


def _changed(settings: dict[str, Any]) -> dict[str, str]:
    """Settings that differ from the defaults of the profile and of masks; and those of the data, which have none."""
    profile = PROFILES[settings["profile"]]()
    defaults = {**vars(MaskConfig()), **vars(on_toy(profile) if settings["toy"] else profile)}
    defaults["lora_alpha"] = defaults["lora_alpha"] or settings["lora_rank"]
    return {
        name: f"{value} (default: {defaults[name]})" if name in defaults else str(value)
        for name, value in settings.items()
        if value != defaults.get(name) and name not in ("profile", "output_dir", "data_cache_dir")
    }


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Which run is shown."""

    run: str = setting(None, "the run's folder", positional=True)


def main(argv: list[str]) -> None:
    (config,) = parse(argv, "python -m tryon.report", "Writes a run's report.html again.", ReportConfig)
    print(write_report(Path(config.run).expanduser()))


if __name__ == "__main__":
    run_script(main)
