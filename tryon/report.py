"""A run as one page, report.html, made only from the files in the run's folder: it opens anywhere without a network.

python -m tryon.report runs/<run>
"""

import io
import math
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tryon.cli import parse, run_script
from tryon.config import MODELS, TOY_NOTICE, MaskConfig, category_names, setting
from tryon.data.category import CATEGORIES, category_order, left_to_base
from tryon.files import MANIFEST, read_json, replace_json, replacing, save_json
from tryon.pages import TEMPLATES, data_url, render
from tryon.profiles import PROFILES, on_toy
from tryon.runs import (
    EVALUATION,
    OCCASIONAL_PARTS,
    STEP_PARTS,
    WARNINGS,
    best_checkpoint,
    checkpoints,
    keep_best,
    meant_lora,
    read_metrics,
    validation_losses,
)
from tryon.scores import (
    ALL,
    BASE,
    LEAST_CASES,
    Rows,
    judged_kind,
    legend_of,
    names_of,
    short_tables,
    stars_in,
    verdict,
)
from tryon.units import plural

Scores = dict[str, dict[str, float]]
ENVIRONMENT = "environment.json"
DATA = "data.json"
EVALUATED = "evaluate_lora.json"  # those that evaluate_lora.py came to last
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
    "try-off": "the garment as its product picture shows it, painted from the person",
}
OLDER_COLUMNS = {"before": "base", "after": "LoRA"}
LENGTH_IN_WORDS = "Length of trousers for shorts and the reverse"
# When a loss has stopped falling, see when_to_stop.
PATIENCE, LEAST_FALL = 2, 0.01
FEWEST_POINTS = 10  # steps that make a curve
LOSS_PARTS = "validation_region/", "validation_noise/"  # names of losses that are of a part, see sample_losses
GREY = "#888888"  # of a chart's text: readable on light and on dark ground
# Of settings that belong to data sets, which are defined on higher floors.
DATA_DEFAULTS = {
    "min_reference": "same_picture", "worn_reference_share": 0.0, "parser": None, "train_data_list": None,
    "validation_data_list": None,
}  # fmt: skip
# What the page shows elsewhere, where the run's files lie, and what "auto" was resolved to.
NOT_LISTED = ("profile", "dataset_name", "dataroot", "output_dir", "data_cache_dir", "quantization")


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
    if not (settings := read_settings(run)):
        raise ValueError(f"{run} holds no config.json: name the folder of a run")
    rows = read_metrics(run)
    steps = [row for row in rows if "train/loss" in row]
    saved = checkpoints(run)
    advised, best = advised_checkpoint(run, saved), best_checkpoint(run)
    pictures = {f"Held-out pairs, scored at the end: {path.name}": path for path in scored_pictures(run)}
    pictures |= {f"Newest validation: {path.name}": path for path in validation_grids(run)[-1:]}
    page = render(
        TEMPLATES / "report.html.j2",
        name=run.name,
        run=run,
        toy_notice=TOY_NOTICE if settings["toy"] else "",
        verdict=run_verdict(run, saved),
        when_to_stop=when_to_stop(rows),
        summary=_summary(settings, steps, saved, best),
        warnings=_warnings(run),
        scores=score_table(run),
        evaluated=read_evaluated(run),
        meanings=meanings_of(run),
        lengths=read_lengths(run),
        length_in_words=LENGTH_IN_WORDS,
        left_to_base=left_to_base(category_names(settings.get("base_categories", "none"))),
        curves=_curves(rows, steps),
        losses=_loss_table(rows),
        pictures={title: data_url(path.read_bytes(), "png") for title, path in pictures.items()},
        pairs=_pair_table(run, rows),
        times=_times(rows, steps),
        lora=meant_lora(advised or best or saved[-1]) if saved else None,
        used=advised or run,
        changed=_changed(settings),
        environment=read_json(run / ENVIRONMENT),
    )
    try:
        with replacing(run / REPORT) as staging:
            staging.write_text(page)
    except OSError as error:
        raise ValueError(f"{run / REPORT} cannot be written ({error}): make room on the disk, then resume") from error
    return run / REPORT


def read_settings(run: Path) -> dict[str, Any]:
    """The run's settings, those of its newest part where it was resumed with others; nothing where it has none."""
    parts = sorted(run.glob("config-from-*.json"), key=lambda path: int(path.stem.rpartition("-")[2]))
    return read_json([run / "config.json", *parts][-1])


def add_evaluation(run: Path, folder: Path) -> None:
    """Puts the scores that evaluate_lora.py left in its folder into a run, and writes the run's page again."""
    replace_json(run / EVALUATED, read_json(folder / EVALUATION))
    write_report(run)


def _summary(
    settings: dict[str, Any], steps: Sequence[dict[str, Any]], saved: Sequence[Path], best: Path | None
) -> dict[str, str]:
    per_step = settings["train_batch_size"] * settings["gradient_accumulation_steps"] * settings["num_processes"]
    done, epochs = steps[-1]["step"] if steps else 0, settings.get("num_train_epochs")
    asked = f"those of {plural(epochs, 'epoch')}" if epochs else f"{settings['max_train_steps']:,}"
    return {
        "steps": f"{done:,} of {asked}, {plural(per_step, 'sample')} each",
        "panel": f"{settings['height']} x {settings['width']} pixels",
        "LoRA": f"rank {settings['lora_rank']}, alpha {settings['lora_alpha']}",
        "model": settings["pretrained_inpaint_model_name_or_path"],
        "data": settings.get("dataset_name") or settings.get("dataroot") or "drawings",
        "newest checkpoint": saved[-1].name if saved else "none yet",
        **({"best checkpoint": best.name} if best else {}),
    }


def meanings_of(run: Path) -> dict[str, str]:
    """What the columns and kinds of the run's own scores mean; try-offs only where there are some."""
    kinds = read_json(run / EVALUATION).get("scores", {})
    return {name: meaning for name, meaning in MEANINGS.items() if name != "try-off" or name in kinds}


def scored_pictures(run: Path) -> list[Path]:
    """Pictures of the pairs that the run scored at its end."""
    pictures = (run / f"evaluation-{kind}.png" for kind in ("unpaired", "paired", "try-off"))
    return [path for path in pictures if path.is_file()]


def validation_grids(run: Path) -> list[Path]:
    """Pictures of the run's validations, the oldest first."""
    return sorted((run / "validation").glob("step-*.png"))


def scored_step(run: Path) -> int | None:
    """The step whose LoRA the run scored at its end; None where that is not known."""
    return next((lora["step"] for lora in read_json(run / EVALUATION).get("loras", {}).values()), None)


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


def read_lengths(run: Path) -> str:
    """How many results have the right length, in words, where drawn people in shorts try on trousers and the reverse;
    empty where that was not measured."""
    found = read_json(run / EVALUATION)
    scores = found.get("scores", {}).get("unpaired", {}).get("all", {})
    for name in found.get("loras", {}):
        if right := scores.get(name, {}).get("length_right"):
            counts = (round(each["mean"] * right["cases"]) for each in (right, scores[BASE]["length_right"]))
            return "right in {} of {cases}, before in {}".format(*counts, cases=right["cases"])
    return f"right in {share:.0%}" if (share := found.get("length_ok")) is not None else ""


def score_table(run: Path) -> Rows:
    """The run's own scores as rows of cells, the head first, with the LoRA's difference from the base; none where
    nothing was scored."""
    rows: Rows = []
    for label, columns in read_scores(run):
        shown = {}
        for name, score in columns.items():
            shown[name] = f"{score['psnr']:.2f} / {score['ssim']:.3f}"
            if name == "LoRA":
                gain = {each: score[each] - columns[BASE][each] for each in score}
                shown[f"{name} - {BASE}"] = f"{gain['psnr']:+.2f} / {gain['ssim']:+.3f}"
        rows = rows or [["PSNR in dB / SSIM inside the mask", *shown]]
        rows.append([label, *shown.values()])
    return rows


@dataclass(frozen=True)
class Evaluated:
    """What evaluate_lora.py came to. data: in words. loras, tables, stars: see tryon.scores.legend_of, short_tables and
    stars_in."""

    data: str
    loras: dict[str, str]
    tables: dict[str, Rows]
    stars: str


def read_evaluated(run: Path) -> Evaluated | None:
    """The scores of evaluate_lora.py; None where it did not score this run."""
    if not (found := read_json(run / EVALUATED)):
        return None
    tables = short_tables(found["scores"], names_of(found["loras"]))
    return Evaluated(found["settings"]["data"], legend_of(found["loras"]), tables, stars_in(tables))


@dataclass(frozen=True)
class Scored:
    """A checkpoint that was scored in a file, as heading: what is said of it, its mean PSNR inside the mask, over how
    many pairs."""

    file: Path
    heading: str
    checkpoint: Path
    said: str
    psnr: float
    pairs: int


def run_verdict(run: Path, saved: Sequence[Path]) -> str:
    """Which checkpoint to use, what it improved and what it made worse, in a sentence without its full stop.

    Of the scores of evaluate_lora.py and of the run's end, on data of the run's own, those count that are of the run's
    result, of more checkpoints, of more pairs, and newest, in this order; its result is its best checkpoint with
    --keep_best, else its newest.
    Where several checkpoints were scored together, on six pairs or more, use the one with the highest PSNR; else the
    result. An older one with a lower validation loss is named beside the newest, as this loss has no spread to be
    judged by. See also tryon.scores.verdict.
    """
    if not saved:
        return "Nothing can be said yet: no checkpoint is saved"
    if not (scored := _judging(run, saved)):
        return f"{_result(run, saved)}; it is not scored yet: python evaluate_lora.py --lora {run} does it"
    best = scored[0]
    name = best.checkpoint.name
    if advised_checkpoint(run, saved):
        return f"Use {name}, whose PSNR is the highest of the {len(scored)} checkpoints scored: {best.said}"
    if (best_checkpoint(run) or saved[-1]) not in [each.checkpoint for each in scored]:
        return f"{_result(run, saved)}; it is not scored, and {name} is: {best.said}"
    if len(scored) > 1:
        few, all_scored = plural(best.pairs, "pair"), plural(len(scored), "checkpoint")
        return (
            f"{_result(run, saved)}; {few} cannot say which of the {all_scored} scored is better: look at the pictures"
        )
    return f"{_result(run, saved)}: {best.said}"


def advised_checkpoint(run: Path, saved: Sequence[Path]) -> Path | None:
    """The checkpoint that run_verdict advises for its scores; None where it advises the run's result."""
    scored = _judging(run, saved)
    return scored[0].checkpoint if len(scored) > 1 and scored[0].pairs >= LEAST_CASES else None


def _judging(run: Path, saved: Sequence[Path]) -> list[Scored]:
    """The scores that count, see run_verdict, the highest PSNR first."""
    if not saved:
        return []
    by_digest = {_lora_digest(checkpoint): checkpoint for checkpoint in saved}
    result = best_checkpoint(run) or saved[-1]

    def weight(scored: list[Scored]) -> tuple[bool, int, int]:
        return result in [each.checkpoint for each in scored], len(scored), sum(each.pairs for each in scored)

    found = max((_scored(file, by_digest) for file in _files_of_scores(run)), key=weight, default=[])
    return sorted(found, key=lambda each: each.psnr, reverse=True)


def judged(run: Path, checkpoint: Path) -> Scored | None:
    """What the scores of most pairs say of a checkpoint, of equals the newest; None where there are none of it."""
    found = [each for file in _files_of_scores(run) for each in _scored(file, {_lora_digest(checkpoint): checkpoint})]
    return max(found, key=lambda each: each.pairs, default=None)


def judged_rows(scored: Scored) -> tuple[str, Rows]:
    """The scores of a checkpoint that evaluate_lora.py has scored: the kind of pairs, and rows of cells."""
    found = read_json(scored.file)
    kind = judged_kind(found["scores"])
    return kind, short_tables(found["scores"], {BASE: BASE, scored.heading: "LoRA"})[kind]


def _files_of_scores(run: Path) -> list[Path]:
    """The run's own scores and those of evaluate_lora.py, the newest first."""
    files = [run / EVALUATION, run / EVALUATED, *run.glob(f"scores/earlier/*/{EVALUATION}")]
    return sorted(filter(Path.is_file, files), key=lambda file: file.stat().st_mtime, reverse=True)


def _scored(file: Path, by_digest: Mapping[str, Path]) -> list[Scored]:
    """Those of the checkpoints that a file of scores judges on data of their own run."""
    found = read_json(file)
    results, scored = found.get("scores", {}), []
    for heading, lora in found.get("loras", {}).items():
        known = lora["sha256"] in by_digest and lora.get("own_data", True)
        if known and (said := verdict(results, heading)):
            of_all = results[judged_kind(results)][ALL]
            checkpoint, psnr = by_digest[lora["sha256"]], of_all[heading]["psnr"]["mean"]
            scored.append(Scored(file, heading, checkpoint, said, psnr, of_all["cases"]))
    return scored


def _result(run: Path, saved: Sequence[Path]) -> str:
    of_loras = validation_losses(run)
    losses = {each: of_loras[lora] for each in saved if (lora := meant_lora(each)) in of_loras}
    if best := best_checkpoint(run):
        return f"Use {best.name}, whose validation {keep_best(run)} is the lowest ({losses[best]:.4f})"
    newest, lowest = saved[-1], min(losses, key=losses.get, default=saved[-1])
    words = f"Use {newest.name}, the newest"
    if newest not in losses or lowest == newest:
        return words
    return (
        f"{words}, and compare {lowest.name} with it, whose validation loss is lower ({losses[lowest]:.4f} instead of "
        f"{losses[newest]:.4f})"
    )


def when_to_stop(rows: Sequence[Mapping[str, Any]]) -> str:
    """Whether more steps help, in a sentence without its full stop, from the run's metrics; empty before there are
    PATIENCE validations after the first.

    The rule is that of early stopping, for each category by itself: a loss falls at a validation where it is lower than
    at all before by more than LEAST_FALL of the lowest, and has stopped falling when it was validated PATIENCE times
    since. Of the LoRA as it was trained and its moving average the lower loss counts.
    """
    falling, stopped, last = [], {}, 0
    for category in CATEGORIES:
        names = f"validation/loss_{category}", f"validation/ema_loss_{category}"
        losses = {row["step"]: min(row[name] for name in names if name in row) for row in rows if names[0] in row}
        if len(losses) <= PATIENCE:
            continue
        lowest, fell, since = math.inf, 0, 0
        for last, loss in losses.items():
            since += 1
            if loss < (1 - LEAST_FALL) * lowest:
                lowest, fell, since = loss, last, 0
        if since < PATIENCE:
            falling.append(category)
        else:
            stopped.setdefault(fell, []).append(category)
    clauses = [f"still falls on {_listed(falling)}"] if falling else []
    clauses += [f"has not fallen since step {step} on {_listed(stopped[step])}" for step in sorted(stopped)]
    if not clauses:
        return ""
    if not falling:
        advice = "further steps did not help"
    else:
        advice = f"more steps may help {_listed(falling)} alone" if stopped else "more steps may help"
    return f"At step {last} the validation loss {_listed(clauses)}: {advice}"


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _lora_digest(checkpoint: Path) -> str:
    """As evaluation.json has it, from the checkpoint's manifest."""
    return read_json(checkpoint / MANIFEST)[str(meant_lora(checkpoint).relative_to(checkpoint))]["sha256"][:16]


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
    training.set_title(f"training loss, means of {plural(size, 'step')}")
    curves: dict[tuple[tuple[int, float], ...], list[str]] = {}  # of one category, the loss of all is its own
    losses = {name for row in rows for name in row if name.startswith("validation/")}
    for name in sorted(losses, key=lambda name: (category_order(name), name)):
        points = tuple((row["step"], row[name]) for row in rows if name in row)
        curves.setdefault(points, []).append(name.removeprefix("validation/"))
    for points, names in curves.items():
        validation.plot(*zip(*points, strict=True), marker=".", label=" = ".join(names))
    validation.set_title("validation loss")
    if curves:
        validation.legend(labelcolor=GREY, framealpha=0)
    for chart in (training, validation):
        chart.set_xlabel("step", color=GREY)
        chart.locator_params("x", integer=True)
        chart.title.set_color(GREY)
        chart.tick_params(colors=GREY)
        for side in chart.spines.values():
            side.set_color(GREY)
    drawn = io.StringIO()
    figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    return drawn.getvalue()[drawn.getvalue().index("<svg") :]


def _loss_table(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Validation losses by region and by noise level as rows of cells, the head first: the first, the lowest and the
    last value, of all pairs and of each category. Empty where they were not measured."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for name in row:
            if name.startswith(LOSS_PARTS):
                values.setdefault(name, []).append(row[name])
    cells = {name: f"{each[0]:.4f} / {min(each):.4f} / {each[-1]:.4f}" for name, each in values.items()}
    parts = sorted({re.sub(f"_({'|'.join(CATEGORIES)})$", "", name) for name in cells})
    found = [category for category in CATEGORIES if any(f"{part}_{category}" in cells for part in parts)]
    table = [
        [part.removeprefix("validation_").replace("/", " "), cells[part],
         *(cells.get(f"{part}_{category}", "") for category in found)]
        for part in parts
    ]  # fmt: skip
    return [["first / lowest / last", "all", *found], *table] if table else []


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
    """Settings that differ from the defaults of the profile, of masks and of data."""
    profile = PROFILES[settings["profile"]]()
    defaults = {**DATA_DEFAULTS, **vars(MaskConfig()), **vars(on_toy(profile) if settings["toy"] else profile)}
    defaults["lora_alpha"] = defaults["lora_alpha"] or settings["lora_rank"]
    hidden = (*NOT_LISTED, *(MODELS if settings["toy"] else ()))
    return {
        name: f"{value} (default: {defaults[name]})" if name in defaults else str(value)
        for name, value in settings.items()
        if name not in hidden and value != defaults.get(name)
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
