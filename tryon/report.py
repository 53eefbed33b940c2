"""A run as one page, report.html, made of the files in its folder alone: it opens anywhere and needs no network.

python -m tryon.report runs/<run>
"""

import base64
import html
import io
import json
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tryon.config import PROFILES, TOY_NOTICE, MaskConfig, on_toy, setting
from tryon.data.category import CATEGORIES
from tryon.entry import run_script
from tryon.files import save_json
from tryon.flags import parse_flags
from tryon.runs import OCCASIONAL_PARTS, STEP_PARTS, WARNINGS, checkpoints, lora_file

Scores = dict[str, dict[str, float]]
ENVIRONMENT = "environment.json"
DATA = "data.json"
REPORT = "report.html"
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "datasets", "bitsandbytes")
SMOOTHED = 25  # steps that a point of the training's loss is the mean of
MOST_WARNINGS = 20
COLUMNS_IN_WORDS = (
    "`base` is the model without this LoRA, `LoRA` with it; `fill` is the mask filled with the garment's mean colour, "
    "`vae` the truth through the VAE. `paired`: persons try on their own garments; `unpaired`: other ones."
)
OLDER_COLUMNS = {"before": "base", "after": "LoRA"}
LENGTH_IN_WORDS = "Length of trousers for shorts and the reverse"
FEWEST_POINTS = 10  # steps that make a curve
GREY = "#888888"  # of a chart's text: readable on light and on dark ground
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
  overflow-wrap: anywhere; }
.sheet { overflow-x: auto; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
.number { text-align: right; } .number, th { white-space: nowrap; } td:not(.number) { min-width: 9rem; }
img, svg { max-width: 100%; min-width: min(100%, 40rem); height: auto; }
@media (max-width: 44rem) { img { min-width: 0; } svg { min-width: 36rem; } td, th { padding-right: .5rem; }
  th:not(.number) { white-space: normal; min-width: 8rem; }
  .scores { font-size: .8rem; } .scores td, .scores th:not(.number) { min-width: 6rem; } }
pre { padding: .75rem; border: 1px solid #8886; white-space: pre-wrap; }
"""


def write_environment(run: Path, device: str) -> None:
    """Keeps what the run is trained with: libraries, Python and the device's name."""
    versions = {name: version(name) for name in LIBRARIES}
    save_json(run / ENVIRONMENT, {"device": device, "python": platform.python_version(), **versions})


def write_data(run: Path, pairs: Mapping[str, Mapping[str, int]]) -> None:
    """Keeps how many pairs of each category the run's data have: {what, such as "validation": {category: pairs}}."""
    save_json(run / DATA, dict(pairs))


def write_report(run: Path) -> Path:
    """Writes run/report.html from what the run's folder holds by now, and returns its path.

    Raises ValueError where the folder is no run, and where the page cannot be written.
    """
    if not (run / "config.json").is_file():
        raise ValueError(f"{run} holds no config.json: name the folder of a run")
    settings = json.loads((run / "config.json").read_text())
    rows = read_metrics(run)
    steps = [row for row in rows if "train/loss" in row]
    sections = [
        ("", f"<p><strong>Toy model</strong>: {TOY_NOTICE}.</p>" if settings["toy"] else ""),
        ("", _summary(run, settings, steps)),
        ("Warnings", _warnings(run)),
        ("Scores", _scores(run)),
        ("Curves", _curves(rows, steps)),
        ("Pictures", _pictures(run)),
        ("Data", _data(run, rows)),
        ("Where time went", _time(rows, steps)),
        ("How to use it", _usage(run)),
        ("Settings that are not the usual ones", _table(_changed(settings))),
        ("Trained with", _table(read_environment(run).items())),
    ]
    body = "".join(f"{f'<h2>{title}</h2>' if title else ''}{content}" for title, content in sections if content)
    name = html.escape(run.name)
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{name}</title>
<style>{STYLE}</style><h1>{name}</h1>{body}</html>
"""
    staging = run / f".{REPORT}"
    try:
        staging.write_text(page)
        return staging.replace(run / REPORT)
    except OSError as error:
        raise ValueError(f"{run / REPORT} cannot be written ({error}): make room on the disk, then resume") from error


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]  # a full disk may have cut the last one short


def _summary(run: Path, settings: dict[str, Any], steps: Sequence[dict[str, Any]]) -> str:
    per_step = settings["train_batch_size"] * settings["gradient_accumulation_steps"] * settings["num_processes"]
    saved = checkpoints(run)
    facts = {
        "steps": f"{steps[-1]['step'] if steps else 0:,} of {settings['max_train_steps']:,}, {per_step} samples each",
        "panel": f"{settings['height']} x {settings['width']} pixels",
        "LoRA": f"rank {settings['lora_rank']}, alpha {settings['lora_alpha']}",
        "model": settings["pretrained_inpaint_model_name_or_path"],
        "data": settings.get("dataset_name") or settings.get("dataroot") or "drawn",
        "newest checkpoint": saved[-1].name if saved else "none yet",
    }
    return _table(facts.items())


def _pictures(run: Path) -> str:
    """The scored pairs where they were drawn, else the newest validation."""
    scored = [path for path in (run / "evaluation-unpaired.png", run / "evaluation-paired.png") if path.is_file()]
    shown = scored or sorted((run / "validation").glob("step-*.png"))[-1:]
    return "".join(f"<p>{path.name}</p><div class='sheet'>{_image(path)}</div>" for path in shown)


def _image(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}">'


def read_scores(run: Path) -> list[tuple[str, Scores]]:
    """The rows of evaluation.json, such as "upper, paired": {column: {"psnr": dB, "ssim": x}}; none where it is not
    there, or its pairs have no truth. Files without a version may be of either of two older forms."""
    found = _evaluation(run)
    if "scores" not in found:
        return [
            (f"{category}, {kind}", {OLDER_COLUMNS.get(name, name): score for name, score in columns.items()})
            for category in CATEGORIES
            for kind, columns in found.get(category, {}).items()
        ]
    rows = []
    for category in CATEGORIES:
        for kind, of_kind in found["scores"].items():
            scores = {
                name: of_kind.get(category, {}).get(name, {}) for name in ("base", *found["loras"], "fill", "vae")
            }
            known = {name: score for name, score in scores.items() if "psnr" in score}
            row = {name: {each: score[each]["mean"] for each in ("psnr", "ssim")} for name, score in known.items()}
            rows += [(f"{category}, {kind}", row)] if row else []
    return rows


def read_length(run: Path) -> float | None:
    """Of drawn people in shorts or trousers, tried on for the other, the share whose length was right; None where that
    was not measured."""
    found = _evaluation(run)
    scores = found.get("scores", {}).get("unpaired", {}).get("all", {})
    right = (scores.get(name, {}).get("length_right") for name in found.get("loras", {}))
    return next((each["mean"] for each in right if each), found.get("length_ok"))


def _evaluation(run: Path) -> dict[str, Any]:
    file = run / "evaluation.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def _scores(run: Path) -> str:
    """evaluation.json as a table: PSNR in dB and SSIM inside the mask."""
    kinds = read_scores(run)
    if not kinds:
        return ""
    names = list(kinds[0][1])
    head = "".join(f"<th class='number'>{name}</th>" for name in names)
    body = "".join(
        f"<tr><td>{label}</td>"
        + "".join(
            f"<td class='number'>{columns[name]['psnr']:.2f} / {columns[name]['ssim']:.3f}</td>" for name in names
        )
        + "</tr>"
        for label, columns in kinds
    )
    words = re.sub("`(.*?)`", r"<code>\1</code>", COLUMNS_IN_WORDS)
    if (right := read_length(run)) is not None:
        words += f" {LENGTH_IN_WORDS}: right in {right:.0%}."
    table = f"<table class='scores'><tr><th>PSNR in dB / SSIM inside the mask</th>{head}</tr>{body}</table>"
    return f"<div class='sheet'>{table}</div><p>{words}</p>"


def _curves(rows: Sequence[dict[str, Any]], steps: Sequence[dict[str, Any]]) -> str:
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
        chart.patch.set_alpha(0)
        for side in chart.spines.values():
            side.set_color(GREY)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    return f"<div class='sheet'>{drawn.getvalue()[drawn.getvalue().index('<svg') :]}</div>"


def _time(rows: Sequence[dict[str, Any]], steps: Sequence[dict[str, Any]]) -> str:
    parts = {part: sum(row.get(f"time/{part}", 0.0) for row in rows) for part in (*STEP_PARTS, *OCCASIONAL_PARTS)}
    total = sum(parts.values())
    if not total or not steps:
        return ""
    seconds = sorted(row["train/seconds"] for row in steps)
    shares = {part: f"{spent:,.1f} s, {100 * spent / total:.0f} %" for part, spent in parts.items()}
    return _table({"a step, median": f"{seconds[len(seconds) // 2]:.3g} s", **shares}.items())


def _warnings(run: Path) -> str:
    file = run / WARNINGS
    lines = [line.replace(" warning: ", " ", 1) for line in file.read_text().splitlines()] if file.is_file() else []
    more = [f"... and {len(lines) - MOST_WARNINGS} more in {WARNINGS}"] if len(lines) > MOST_WARNINGS else []
    shown = "".join(f"<li>{html.escape(line)}</li>" for line in [*lines[:MOST_WARNINGS], *more])
    return f"<ul>{shown}</ul>" if shown else ""


def read_data(run: Path) -> dict[str, dict[str, int]]:
    """What `write_data` kept; nothing where it was not called."""
    file = run / DATA
    return json.loads(file.read_text()) if file.is_file() else {}


def _data(run: Path, rows: Sequence[dict[str, Any]]) -> str:
    """Pairs by category: what there is, how its garments are shown, and how often each was drawn."""
    newest = next((row for row in reversed(rows) if any(name.startswith("drawn/") for name in row)), {})
    drawn = {name.removeprefix("drawn/"): count for name, count in newest.items() if name.startswith("drawn/")}
    pairs = {**read_data(run), **({f"drawn by step {newest['step']}": drawn} if drawn else {})}
    if not pairs:
        return ""
    head = "".join(f"<th class='number'>{category}</th>" for category in CATEGORIES)
    body = "".join(
        f"<tr><td>{html.escape(what)}</td>"
        + "".join(f"<td class='number'>{found.get(category, 0):,}</td>" for category in CATEGORIES)
        + "</tr>"
        for what, found in pairs.items()
    )
    return f"<div class='sheet'><table><tr><th>pairs</th>{head}</tr>{body}</table></div>"


def _usage(run: Path) -> str:
    saved = checkpoints(run)
    if not saved:
        return ""
    command = "python tryon_inference_lora.py --lora {} --image person.jpg --garment garment.jpg --category lower"
    file = lora_file(saved[-1])
    lines = [
        f"python app_lora.py --lora {run}",
        f"{command.format(run)} --output_tryon out.png",
        f"python -m tryon.share {run}",
    ]
    return f"<p>{html.escape(str(file))}</p><pre>{html.escape(chr(10).join(lines))}</pre>"


def _changed(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Settings that differ from those of the profile and the masks' usual ones, or of none: the data's."""
    profile = PROFILES[settings["profile"]]()
    usual = {**vars(MaskConfig()), **vars(on_toy(profile) if settings["toy"] else profile)}
    usual["lora_alpha"] = usual["lora_alpha"] or settings["lora_rank"]
    return [
        (name, f"{value} (usual: {usual[name]})" if name in usual else str(value))
        for name, value in settings.items()
        if value != usual.get(name) and name not in ("profile", "output_dir", "data_cache_dir")
    ]


def read_environment(run: Path) -> dict[str, str]:
    """What `write_environment` kept; nothing where it was not called yet."""
    file = run / ENVIRONMENT
    return json.loads(file.read_text()) if file.is_file() else {}


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>" for name, value in rows)
    return f"<div class='sheet'><table>{cells}</table></div>" if cells else ""


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Of which run."""

    run: str = setting(None, "the run's folder", positional=True)


def main(argv: list[str]) -> None:
    (given,) = parse_flags(argv, "python -m tryon.report", "Makes a run's report.html anew.", ReportConfig)
    print(write_report(Path(given["run"]).expanduser()))


if __name__ == "__main__":
    run_script(main)
