"""What measured cases say of models: means with intervals, differences that mean something, tables, the worst cases."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import norm, t

from tryon.data.category import CATEGORIES
from tryon.data.grid import draw_grid
from tryon.data.sample import make_diptych, read_picture, split_diptych, to_picture
from tryon.evaluation.perceptual import Perception, frechet_distance, kernel_distance
from tryon.evaluation.score import BASE, CaseSource, as_tensor, picture_path, read_lines

ALL = "all"  # the categories together: every case counts the same
RESAMPLES = 10_000  # of the bootstrap
LEAST_CASES = 6  # for a difference to be marked: of five cases all may well have one sign by chance
GRID_ROWS = 8


@dataclass(frozen=True)
class Measure:
    """A column of the tables: its heading, the digits after the point, what values are multiplied with to be shown."""

    heading: str
    digits: int
    scale: float = 1.0


# Of each case, then of sets of pictures. Inside the mask, and of the whole picture as the try-on papers have them.
OF_CASES = {
    "psnr": Measure("PSNR, mask", 2),
    "ssim": Measure("SSIM, mask", 3),
    "psnr_whole": Measure("PSNR", 2),
    "ssim_whole": Measure("SSIM", 3),
    "lpips": Measure("LPIPS", 3),
    "length_right": Measure("length right, %", 0, 100),
}
OF_SETS = {"fid": Measure("FID", 1), "kid": Measure("KID x 1000", 2)}


def summarise(
    folder: Path, models: dict[str, str], cases: dict[str, CaseSource], perception: Perception
) -> dict[str, Any]:
    """{kind: {category or "all": {"cases": n, "on_edges": value, heading: {measure: value}}}}.

    models: for each name the heading that it is shown under, the base first. Headings are those, and "<heading> - base"
    for each LoRA, the means of the cases' differences. A value is {"mean", "low", "high", "cases"}, in a difference
    with "marked"; FID and KID have a mean alone.
    """
    lines = read_lines(folder)
    results: dict[str, Any] = {}
    for kind, source in cases.items():
        indices = range(len(source))
        looked = look(folder, models, kind, source, indices, perception)
        by_model = {
            name: [{**lines[name, kind, index], **looked.scores[name].get(index, {})} for index in indices]
            for name in models
        }
        results[kind] = {}
        for category in (*CATEGORIES, ALL):
            picked = [index for index in indices if category in (ALL, by_model[BASE][index]["category"])]
            if not picked:
                continue
            on_edges = [by_model[BASE][index].get("on_edges") for index in picked]
            result = {"cases": len(picked), "on_edges": mean_of(on_edges)}
            for name, heading in models.items():
                own, base = ([by_model[each][index] for index in picked] for each in (name, BASE))
                result[heading] = {each: mean_of([line.get(each) for line in own]) for each in OF_CASES}
                result[heading] |= distances_of(looked, name, picked, perception)
                result[heading]["changed_outside"] = max(line["changed_outside"] for line in own)
                if name != BASE:
                    result[f"{heading} - {models[BASE]}"] = {
                        each: difference_of(
                            [(one.get(each), two.get(each)) for one, two in zip(own, base, strict=True)]
                        )
                        for each in OF_CASES
                    }
            results[kind][category] = {
                key: {each: value for each, value in part.items() if value is not None}
                if isinstance(part, dict)
                else part
                for key, part in result.items()
                if part is not None
            }
    return results


@dataclass(frozen=True)
class Looked:
    """What the networks see. scores: for each model and case LPIPS. features: [D] of the results, and of what is real:
    the truths, or the persons where there is none."""

    scores: dict[str, dict[int, dict[str, float]]]
    features: dict[str, dict[int, np.ndarray]]
    real: dict[int, np.ndarray]


def look(
    folder: Path, models: dict[str, str], kind: str, source: CaseSource, indices: Sequence[int], perception: Perception
) -> Looked:
    """Shows the results and what is real to the networks that could be loaded."""
    looked = Looked({name: {} for name in models}, {name: {} for name in models}, {})
    if perception.lpips is None and perception.features is None:
        return looked
    for index in indices:
        case = source[index]
        real = (case.sample.person if case.truth is None else case.truth)[None]
        if perception.features:
            looked.real[index] = perception.features(real)[0].numpy()
        for name in models:
            result = as_tensor(read_picture(picture_path(folder, name, kind, index)))[None]
            if perception.lpips and case.truth is not None:
                looked.scores[name][index] = {"lpips": perception.lpips(result, real).item()}
            if perception.features:
                looked.features[name][index] = perception.features(result)[0].numpy()
    return looked


def distances_of(looked: Looked, name: str, picked: Sequence[int], perception: Perception) -> dict[str, Any]:
    """FID, and KID times 1000, of the picked cases; nothing where there are no features, or a single case."""
    if perception.features is None or len(picked) < 2:
        return {}
    results, real = (
        np.stack([features[index] for index in picked]) for features in (looked.features[name], looked.real)
    )
    return {
        "fid": {"mean": frechet_distance(results, real)},
        "kid": {"mean": 1000 * kernel_distance(results, real)},
    }


def mean_of(values: Sequence[float | None]) -> dict[str, float] | None:
    """The mean over the cases that have a value, their number, and the mean's interval from two cases on; None where
    none has one."""
    known = np.array([value for value in values if value is not None])
    if not len(known):
        return None
    low, high = interval(known) if len(known) > 1 else (None, None)
    return {"mean": float(known.mean()), "low": low, "high": high, "cases": len(known)}


def difference_of(pairs: Sequence[tuple[float | None, float | None]]) -> dict[str, Any] | None:
    """The mean of the differences within pairs, and whether it is marked: its interval excludes 0, and there are enough
    cases to say so."""
    known = [one - two for one, two in pairs if one is not None and two is not None]
    found = mean_of(known)
    if found is None:
        return None
    marked = len(known) >= LEAST_CASES and (found["low"] > 0 or found["high"] < 0)
    return {**found, "marked": marked}


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean of values [N], N from 2 on, by the percentile bootstrap with a fixed seed, expanded
    as in T. Hesterberg, What Teachers Should Know About the Bootstrap (2015): of few values it would be too narrow.
    """
    count, rng = len(values), np.random.default_rng(0)
    tail = 100 * norm.cdf(-math.sqrt(count / (count - 1)) * t.ppf(0.975, count - 1))  # percent, not 2.5
    means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def worst_grid(
    folder: Path, models: dict[str, str], kind: str, source: CaseSource, rows: int = GRID_ROWS
) -> Image.Image:
    """The cases with the lowest PSNR inside the mask under the first LoRA, the worst first; the first cases where there
    is no truth. Each with garment, person, masked person, every model's result and the truth."""
    lines, (_, first, *_) = read_lines(folder), models
    picked = sorted(range(len(source)), key=lambda index: lines[first, kind, index].get("psnr", 0.0))[:rows]
    shown = []
    for index in picked:
        case, line = source[index], lines[first, kind, index]
        masked = split_diptych(make_diptych(case.sample)[1])[1]
        pictures = [to_picture(picture) for picture in (case.sample.garment, case.sample.person, masked)]
        pictures += [read_picture(picture_path(folder, name, kind, index)) for name in models]
        if case.truth is not None:
            pictures.append(to_picture(case.truth))
        shown.append((f"{line['category']} {line['psnr']:.1f} dB" if "psnr" in line else line["category"], pictures))
    headings = ["garment", "person", "masked", *models.values(), "truth"]
    return draw_grid(headings[: len(shown[0][1])], shown)


def changed_outside(results: dict[str, Any]) -> list[str]:
    """The models, by heading, of which pixels outside the masks are not the persons'."""
    parts = [part for kind in results.values() for result in kind.values() for part in result.items()]
    return sorted({key for key, part in parts if isinstance(part, dict) and part.get("changed_outside")})


def tables(results: dict[str, Any], models: dict[str, str]) -> list[str]:
    """The lines of a Markdown table for each kind: a row for each category, model and difference of a LoRA."""
    lines = []
    for kind, of_kind in results.items():
        rows = [part for result in of_kind.values() for part in result.values() if isinstance(part, dict)]
        columns = {each: how for each, how in {**OF_CASES, **OF_SETS}.items() if any(each in row for row in rows)}
        lines += ["", f"## {kind}", ""]
        if not columns:
            lines.append("Nothing was computed: there is no truth.")
            continue
        lines.append(f"| category | model | {' | '.join(how.heading for how in columns.values())} |")
        lines.append("|---|---|" + "---|" * len(columns))
        for category, result in of_kind.items():
            label = f"{category} ({result['cases']})"
            for heading in models.values():
                for row in (heading, f"{heading} - {models[BASE]}"):
                    if row in result:
                        cells = [_cell(result[row].get(each), how, result["cases"]) for each, how in columns.items()]
                        lines.append(f"| {label} | {row} | {' | '.join(cells)} |")
                        label = ""
    return lines


def _cell(value: dict[str, Any] | None, how: Measure, cases: int) -> str:
    """A value in words. cases: the number of the category's; a value of fewer says so behind it."""
    if value is None:
        return ""
    sign = "+" if "marked" in value else ""
    shown = f"{value['mean'] * how.scale:{sign}.{how.digits}f}"
    if value.get("low") is not None and value["low"] < value["high"]:  # all the same: too few to say how sure that is
        low, high = (f"{value[each] * how.scale:{sign}.{how.digits}f}" for each in ("low", "high"))
        shown += f" [{low}, {high}]"
    if value.get("cases", cases) != cases:
        shown += f" ({value['cases']})"
    return f"**{shown}**" if value.get("marked") else shown


def outlines(results: dict[str, Any]) -> list[str]:
    """Lines that say how much of the masks' outlines follows the pictures."""
    of_kind = next(iter(results.values()))
    shares = {category: result["on_edges"] for category, result in of_kind.items() if "on_edges" in result}
    return [
        f"{category} {_cell(share, Measure('', 0, 100), of_kind[category]['cases'])} %"
        for category, share in shares.items()
    ]
