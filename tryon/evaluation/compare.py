"""What measured cases say of models: means with intervals, differences that mean something, tables, pictures.

evaluation.json, of a run and of evaluate_lora.py:

    {"version": 2, "settings": {...}, "loras": {heading: {"file", "sha256", "step", "base_categories"}},
     "not_computed": {metric: why},
     "scores": {"paired" | "unpaired" | "try-off": {"upper" | "lower" | "full" | "all": {
         "cases": n, "on_edges": value, heading of a model or "<LoRA> - base": {measure: value}}}}}

A value is {"mean", "low", "high", "cases"}, in a difference with "marked"; FID and KID have a mean alone.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import norm, t

from tryon.data.category import CATEGORIES
from tryon.data.grid import draw_grid
from tryon.data.sample import make_diptych, split_diptych, to_picture
from tryon.evaluation.cases import BASE, FILL, REAL, VAE, Case, Cases, CaseSource, Line, Place
from tryon.evaluation.perceptual import frechet_distance, kernel_distance
from tryon.pages import TEMPLATES, jpeg_url, render
from tryon.scores import (
    ALL,
    FEW,
    LEAST_CASES,
    NEITHER,
    OF_CASES,
    STAR,
    Measure,
    Results,
    Rows,
    aligned,
    cell,
    columns_of,
    judged_kind,
    legend_of,
    measures_of,
    names_of,
    short_tables,
    stars_in,
    verdict,
)

EVALUATION_VERSION = 2  # of evaluation.json; files before it have none
RESAMPLES = 10_000  # of the bootstrap
MEANING = (
    "Means over the cases, differences from the base with 95 % intervals; all counts every case the same. PSNR in dB, "
    "SSIM, length and text: higher is better; LPIPS, leftovers, FID and KID: lower is better. mask: inside the mask "
    "alone. A value of fewer cases than its category has says of how many. FID and KID of less than thousands of "
    "pictures compare models on the same cases alone."
)


def summarise(
    lines: Mapping[Place, Line], models: dict[str, str], cases: Cases,
    features: Mapping[Place, np.ndarray] | None = None,
) -> Results:  # fmt: skip
    """Means, intervals and differences: the "scores" of evaluation.json.

    models: for each name its heading, BASE first. features: what Inception sees of each result and, as of a model REAL,
    of what is real; nothing: no FID and KID.
    """
    results: Results = {}
    for kind, source in cases.items():
        results[kind] = {}
        category_of = [lines[BASE, kind, index]["category"] for index in range(len(source))]
        for category in (*CATEGORIES, ALL):
            picked = [index for index, own in enumerate(category_of) if category in (ALL, own)]
            if not picked:
                continue
            places = {name: [(name, kind, index) for index in picked] for name in (*models, REAL)}
            base = [lines[place] for place in places[BASE]]
            result = _known({"cases": len(picked), "on_edges": mean_of(_values(base, "on_edges"))})
            for name, heading in models.items():
                own = [lines[place] for place in places[name]]
                result[heading] = _known({each: mean_of(_values(own, each)) for each in OF_CASES})
                if features and len(picked) > 1:
                    seen, real = (np.stack([features[place] for place in places[each]]) for each in (name, REAL))
                    result[heading]["fid"] = {"mean": frechet_distance(seen, real)}
                    result[heading]["kid"] = {"mean": 1000 * kernel_distance(seen, real)}
                result[heading]["changed_outside"] = max(line.get("changed_outside", 0.0) for line in own)
                if name not in (BASE, FILL, VAE):
                    pairs = {each: zip(_values(own, each), _values(base, each), strict=True) for each in OF_CASES}
                    differences = {each: difference_of(of_measure) for each, of_measure in pairs.items()}
                    result[f"{heading} - {models[BASE]}"] = _known(differences)
            results[kind][category] = result
    return results


def _values(lines: Sequence[Line], measure: str) -> list[float | None]:
    return [line.get(measure) for line in lines]


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def mean_of(values: Sequence[float | None]) -> dict[str, float] | None:
    """The mean over the cases that have a value, their number, and the mean's interval from two cases on; None where
    none has one."""
    known = np.array([value for value in values if value is not None])
    if not len(known):
        return None
    low, high = interval(known) if len(known) > 1 else (None, None)
    return {"mean": float(known.mean()), "low": low, "high": high, "cases": len(known)}


def difference_of(pairs: Iterable[tuple[float | None, float | None]]) -> dict[str, Any] | None:
    """The mean of the differences within pairs, and whether it is marked: its interval excludes 0, and there are enough
    cases to say so."""
    known = [one - two for one, two in pairs if one is not None and two is not None]
    if (found := mean_of(known)) is None:
        return None
    return {**found, "marked": len(known) >= LEAST_CASES and (found["low"] > 0 or found["high"] < 0)}


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean of values [N], N from 2 on, by the percentile bootstrap with a fixed seed, expanded
    as in T. Hesterberg, What Teachers Should Know About the Bootstrap (2015): of few values it would be too narrow.
    """
    count, rng = len(values), np.random.default_rng(0)
    tail = 100 * norm.cdf(-math.sqrt(count / (count - 1)) * t.ppf(0.975, count - 1))  # percent, not 2.5
    means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def worst_cases(lines: Mapping[Place, Line], models: Iterable[str], kind: str, count: int) -> list[int]:
    """The cases, those with the lowest PSNR inside the mask under the first LoRA first; as they are without a truth."""
    _, first, *_ = models
    return sorted(range(count), key=lambda index: lines[first, kind, index].get("psnr", 0.0))


def case_grid(
    source: CaseSource | Sequence[Case], kind: str, picked: Iterable[int], models: dict[str, str],
    lines: Mapping[Place, Line], picture_of: Callable[[Place], Image.Image],
) -> Image.Image:  # fmt: skip
    """A row for each picked case: garment, person, masked person, every model's result and, if it is known, the truth.
    Its label is its category and the first LoRA's PSNR inside the mask."""
    rows = []
    _, first, *_ = models
    for index in picked:
        case, line = source[index], lines[first, kind, index]
        masked = split_diptych(make_diptych(case.sample)[1])[1]
        pictures = [to_picture(picture) for picture in (case.sample.garment, case.sample.person, masked)]
        pictures += [picture_of((name, kind, index)) for name in models]
        pictures += [] if case.truth is None else [to_picture(case.truth)]
        rows.append((f"{line['category']} {line['psnr']:.1f} dB" if "psnr" in line else line["category"], pictures))
    headings = ["garment", "person", "masked", *models.values(), "truth"]
    return draw_grid(headings[: len(rows[0][1])], rows)


def changed_outside(results: Results) -> list[str]:
    """The headings of models that changed pixels outside the masks."""
    parts = [part for kind in results.values() for result in kind.values() for part in result.items()]
    return sorted({key for key, part in parts if isinstance(part, dict) and part.get("changed_outside")})


def overview(results: Results, models: dict[str, str]) -> Rows:
    """PSNR and SSIM inside the mask: a row for each category and kind that has a truth, a column for each model."""
    rows = [["PSNR in dB, SSIM", *models.values()]]
    for category in CATEGORIES:
        for kind, of_kind in results.items():
            scores = [of_kind.get(category, {}).get(heading, {}) for heading in models.values()]
            if all("psnr" in each for each in scores):
                cells = (f"{each['psnr']['mean']:.2f} {each['ssim']['mean']:.3f}" for each in scores)
                rows.append([f"{category}, {kind}", *cells])
    return rows


def tables(results: Results, names: dict[str, str]) -> dict[str, Rows]:
    """For each kind a table: a row for each category, model and difference of a LoRA, a column for each measure. Marked
    differences begin with a star. Nothing but a head where nothing was computed. names: see tryon.scores.names_of."""
    found = {}
    for kind, of_kind in results.items():
        measures = measures_of(of_kind)
        found[kind] = [["category", "model", *(how.heading for how in measures.values())]]
        for category, result in of_kind.items() if measures else ():
            for number, (heading, name) in enumerate(columns_of(result, names).items()):
                label = "" if number else f"{category} ({result['cases']})"
                values = {each: result[heading].get(each) for each in measures}
                cells = (cell(value, measures[each], result["cases"], STAR) for each, value in values.items())
                found[kind].append([label, name, *cells])
    return found


def markdown(rows: Rows) -> list[str]:
    """The table's lines in Markdown."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return [head, "|" + "---|" * len(rows[0]), *body]


def lengths(results: Results) -> list[str]:
    """A line that says how often shorts and trousers that were tried on end where they should; none where it is not
    known."""
    of_all = results.get("unpaired", {}).get(ALL, {})
    if "length_right" not in of_all.get("LoRA", {}):
        return []
    right, before = (of_all[heading]["length_right"] for heading in ("LoRA", "base"))
    count = right["cases"]
    return [
        f"length of trousers for shorts and the reverse: right in {right['mean'] * count:.0f} of {count}, "
        f"before in {before['mean'] * count:.0f}"
    ]


def findings(
    lines: Mapping[Place, Line], results: Results, models: dict[str, str], names: dict[str, str], cases: Cases
) -> list[str]:
    """Of several LoRAs first a sentence on the one that comes nearest to the truth, and whether its lead over the next
    counts, pair by pair; then one on each, see tryon.scores.verdict. None where no truth is known. names: see
    tryon.scores.names_of."""
    _, *loras = models
    called = {name: names[heading] for name, heading in models.items()}
    found = [f"{called[name]}: {said}." for name in loras if (said := verdict(results, models[name]))]
    if len(found) < 2:
        return found
    kind = judged_kind(results)
    values = {name: [lines[name, kind, index]["psnr"] for index in range(len(cases[kind]))] for name in loras}
    first, second, *_ = sorted(loras, key=lambda name: np.mean(values[name]), reverse=True)
    lead = difference_of(zip(values[first], values[second], strict=True))
    words = f"{cell(lead, OF_CASES['psnr'], lead['cases'])} against {called[second]}"
    doubt = "" if lead["marked"] else f", {FEW if lead['cases'] < LEAST_CASES else NEITHER}"
    return [f"{called[first]} has the highest PSNR: {words}{doubt}.", *found]


def web_page(
    settings: dict[str, Any], loras: dict[str, dict[str, Any]], said: list[str], missing: dict[str, str],
    results: Results, pictures: dict[str, Image.Image],
) -> str:  # fmt: skip
    """The content of evaluation.html. said: see findings. loras, missing: see tryon.evaluation.score. pictures: by
    their titles."""
    shown = short_tables(results, names_of(loras))
    return render(
        TEMPLATES / "comparison.html.j2", name="Scores", settings=settings, loras=legend_of(loras), said=said,
        tables=shown, stars=stars_in(shown), meaning=MEANING, missing=not_computed(missing),
        pictures={title: jpeg_url(picture) for title, picture in pictures.items()},
    )  # fmt: skip


def terminal(loras: dict[str, dict[str, Any]], said: list[str], missing: dict[str, str], results: Results) -> list[str]:
    """The lines that a terminal shows. loras, said, missing: see web_page."""
    shown = short_tables(results, names_of(loras))
    lines = ["", *(f"{name}: {what}" for name, what in legend_of(loras).items())]
    for kind, rows in shown.items():
        lines += ["", kind, *(aligned(rows, texts=2) if rows[1:] else ["nothing was computed: there is no truth"])]
    if stars := stars_in(shown):
        lines += ["", stars]
    return [*lines, "", *([not_computed(missing)] if missing else []), *said]


def page(
    data: str, loras: dict[str, dict[str, Any]], said: list[str], missing: dict[str, str], results: Results
) -> str:
    """The content of evaluation.md. data: what the cases are of. said: see findings. loras, missing: see
    tryon.evaluation.score."""
    shares = [
        f"{category} {cell(result['on_edges'], Measure('', 0, 100), result['cases'])} %"
        for category, result in next(iter(results.values())).items() if "on_edges" in result
    ]  # fmt: skip
    names = names_of(loras)
    changed, shown = changed_outside(results), tables(results, names)
    lines = ["# Scores", "", f"Data: {data}.", ""]
    lines += [f"- {names[heading]}: `{each['file']}`, step {each['step'] or 'unknown'}, sha256 {each['sha256']}"
              for heading, each in loras.items()]  # fmt: skip
    lines += [line for sentence in said for line in ("", sentence)]
    for kind, rows in shown.items():
        lines += ["", f"## {kind}", "", *(markdown(rows) if rows[1:] else ["Nothing was computed: there is no truth."])]
    lines += [
        "",
        f"{MEANING} {stars_in(shown)}".rstrip(),
        "",
        f"How much of the masks' outlines follows the picture, which may tell what was worn: {'; '.join(shares)}. "
        + (
            f"{', '.join(names.get(each, each) for each in changed)} CHANGED PIXELS OUTSIDE."
            if changed
            else "Outside the masks no pixel changed."
        ),
    ]
    lines += ["", not_computed(missing)] if missing else []
    return "\n".join(lines) + "\n"


def not_computed(missing: dict[str, str]) -> str:
    """A line that says which metrics are missing, and why; empty where none is."""
    names: dict[str, list[str]] = {}
    for name, why in missing.items():
        names.setdefault(why, []).append(name.upper())
    found = (f"{', '.join(each)} ({why})" for why, each in names.items())
    return f"Not computed: {'; '.join(found)}." if names else ""
