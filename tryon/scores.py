"""Where evaluate_lora.py keeps what it measures, and what an evaluation.json says, in tables and in a sentence.

tryon.evaluation.score describes the folder, tryon.evaluation.compare the file. Imports nothing heavy.
"""

import json
from collections import Counter
from dataclasses import dataclass
from math import isclose
from pathlib import Path
from typing import Any

from tryon.runs import LORA_FILE, lora_name, run_of
from tryon.units import plural

LINES = "measured.jsonl"
INPUTS = "person", "garment"  # of a case, which are saved too
BASE = "base"  # the heading of the model without a LoRA
ALL = "all"  # the categories together: every case counts the same
STAR = "*"  # before a difference that is marked
LEAST_CASES = 6  # for a difference to be marked: of five cases all may well have one sign by chance
STARS = (
    f"A star ({STAR}) is before differences that count: their 95 % interval, in brackets, excludes 0, of {LEAST_CASES} "
    "cases or more. One in twenty does so by chance."
)
LONGEST_NAME = 20  # letters of a LoRA's name that fit over a column on a phone
VERDICTS = "better than the base", "worse than the base", "mixed", "no clear difference", "too few to say"
BETTER, WORSE, MIXED, NEITHER, FEW = VERDICTS
JUDGED = "psnr", "ssim", "lpips"
LOWER_IS_BETTER = "lpips", "leftovers"

Results = dict[str, dict[str, dict[str, Any]]]  # the "scores" of evaluation.json
Rows = list[list[str]]  # of a table, its head first


def picture_path(folder: Path, place: tuple[str, str, int]) -> Path:
    """Where a result lies. place: model, kind, case."""
    name, kind, index = place
    return folder / "pictures" / name / f"{kind}-{index:05d}.png"


def input_path(folder: Path, name: str, kind: str, index: int) -> Path:
    """Where a case's person or garment lies."""
    return folder / "inputs" / name / f"{kind}-{index:05d}.png"


def read_lines(folder: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """What was measured, by place. A line that was cut short, by a kill, or whose picture is gone, is left out."""
    file = folder / LINES
    lines = {}
    for text in file.read_text().splitlines() if file.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        place = line["model"], line["kind"], line["case"]
        if picture_path(folder, place).is_file():
            lines[place] = line
    return lines


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
    "psnr_diptych": Measure("PSNR, diptych", 2),  # of the VAE alone
    "lpips": Measure("LPIPS", 3),
    "text": Measure("text, %", 0, 100),
    "length_right": Measure("length right, %", 0, 100),
    "leftovers": Measure("leftovers, %", 1, 100),
}
OF_SETS = {"fid": Measure("FID", 1), "kid": Measure("KID x 1000", 2)}


def names_of(loras: dict[str, dict[str, Any]]) -> dict[str, str]:
    """What the models of an evaluation.json are called where people read it, by their headings, BASE first: a LoRA by
    its run, and its step where several are of one run, or by its file; long names are cut in the middle. One that is
    alone, and those that would share a name, keep their headings. loras: as in the file."""
    if len(loras) == 1:
        return {heading: heading for heading in (BASE, *loras)}
    files = {heading: Path(lora["file"]) for heading, lora in loras.items()}
    of_run = Counter(map(run_of, files.values()))
    names = {BASE: BASE, **{heading: _short_name(file, of_run[run_of(file)] > 1) for heading, file in files.items()}}
    count = Counter(names.values())
    return {heading: name if count[name] == 1 else heading for heading, name in names.items()}


def _short_name(file: Path, with_step: bool) -> str:
    of_hub, step = next((part for part in file.parts if part.startswith("models--")), ""), ""
    if run := run_of(file):
        name, step = run.name, lora_name(file).removeprefix(run.name) if with_step else ""
    elif of_hub:  # models--<owner>--<name>/snapshots/<commit>/<file>
        name = of_hub.rpartition("--")[2]
    else:
        name = file.parent.name if file.name == LORA_FILE else file.stem
    return (name if len(name) <= LONGEST_NAME else f"{name[:8]}…{name[9 - LONGEST_NAME :]}") + step


def legend_of(loras: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Which file each LoRA of an evaluation.json is, and of which step, by its name."""
    names = names_of(loras)
    return {names[heading]: f"{each['file']}, step {each['step'] or 'unknown'}" for heading, each in loras.items()}


def short_tables(results: Results, names: dict[str, str]) -> dict[str, Rows]:
    """For each kind a row for each category and measure, a column for each model's mean and for each difference of a
    LoRA. Marked differences begin with a star. Nothing but a head where nothing was computed. names: see names_of."""
    found = {}
    for kind, of_kind in results.items():
        columns = columns_of(of_kind[ALL], names)
        found[kind] = [["category", "measure", *columns.values()]]
        for category, result in of_kind.items():
            for number, (name, how) in enumerate(measures_of({category: result}).items()):
                label = "" if number else f"{category} ({result['cases']})"
                values = (result[column].get(name) for column in columns)
                shown = (each if each is None or "marked" in each else {**each, "low": None} for each in values)
                found[kind].append([label, how.heading, *(cell(each, how, result["cases"], STAR) for each in shown)])
    return found


def stars_in(tables: dict[str, Rows]) -> str:
    """What the tables' stars say; empty where there are none."""
    return STARS if any(each.startswith(STAR) for rows in tables.values() for row in rows for each in row) else ""


def aligned(rows: Rows, texts: int = 1) -> list[str]:
    """The table's lines for a terminal: the first `texts` columns to the left, those of numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust] * texts + [str.rjust] * (len(widths) - texts)
    return ["  ".join(side(*each) for side, *each in zip(sides, row, widths, strict=True)).rstrip() for row in rows]


def measures_of(of_kind: dict[str, dict[str, Any]]) -> dict[str, Measure]:
    """What was measured of any category. PSNR of the whole picture is left out where its differences are those inside
    the mask, as they are where all outside of it is the photograph's own."""
    parts = [part for result in of_kind.values() for part in result.values() if isinstance(part, dict)]
    gains = [
        (part["psnr"]["mean"], part["psnr_whole"]["mean"]) for part in parts if "marked" in part.get("psnr_whole", ())
    ]
    repeated = {"psnr_whole"} if gains and all(isclose(*each, abs_tol=1e-3) for each in gains) else ()
    known = {each for part in parts for each in part}.difference(repeated)
    return {each: how for each, how in {**OF_CASES, **OF_SETS}.items() if each in known}


def columns_of(result: dict[str, Any], names: dict[str, str]) -> dict[str, str]:
    """The models' names by their headings, each LoRA's followed by that of its difference from the base."""
    pairs = ((heading + end, name + end) for heading, name in names.items() for end in ("", f" - {BASE}"))
    return {heading: name for heading, name in pairs if heading in result}


def cell(value: dict[str, Any] | None, how: Measure, cases: int, mark: str = "") -> str:
    """A value in words, behind `mark` where it is marked. cases: the number of the category's; a value of fewer says so
    behind it."""
    if value is None:
        return ""
    sign = "+" if "marked" in value else ""
    shown = f"{value['mean'] * how.scale:{sign}.{how.digits}f}"
    if value.get("low") is not None and value["low"] < value["high"]:  # all the same: too few to say how sure that is
        low, high = (f"{value[each] * how.scale:{sign}.{how.digits}f}" for each in ("low", "high"))
        shown += f" [{low}, {high}]"
    if value.get("cases", cases) != cases:
        shown += f" ({value['cases']})"
    return f"{mark}{shown}" if value.get("marked") else shown


def verdict(results: Results, lora: str) -> str:
    """What a LoRA improved and what it made worse, in a clause; empty where no difference from the base is known. Of
    each category the first measure that counts is named, with its interval. lora: its heading.

    The rule: PSNR and SSIM inside the mask, and LPIPS, of unpaired pairs where their truth is known, else of paired
    ones. A difference counts where it is marked: pair by pair, its 95 % interval excludes 0, and there are at least six
    pairs. A category, or all together, is better where at least one difference counts and each that does is for the
    better; worse in the reverse case; mixed where some are for either; else the spread hides what difference there is.
    Of fewer than six pairs in all nothing is said.
    """
    kind = judged_kind(results)
    if not _judged(results, kind, ALL, lora):
        return ""
    if (count := results[kind][ALL]["cases"]) < LEAST_CASES:
        return f"{plural(count, f'{kind} pair')} cannot say whether it is better than the base: look at the pictures"
    found: dict[str, list[str]] = {judgement: [] for judgement in VERDICTS}
    categories = [each for each in results[kind] if each != ALL]
    for category in categories if len(categories) == 1 else [*categories, ALL]:
        differences = _judged(results, kind, category, lora)
        counted = {name: value for name, value in differences.items() if value["marked"]}
        gained = {(value["mean"] < 0) == (name in LOWER_IS_BETTER) for name, value in counted.items()}
        judgement = MIXED if len(gained) > 1 else BETTER if True in gained else WORSE if gained else NEITHER
        judgement = FEW if results[kind][category]["cases"] < LEAST_CASES else judgement
        shown = [(name.upper(), cell(value, OF_CASES[name], value["cases"]))
                 for name, value in (counted or differences).items()]  # fmt: skip
        words = ", ".join(" ".join(each) for each in (shown if judgement == MIXED else shown[:1]))
        found[judgement].append(f"{category} ({words})")
    clauses = [f"{judgement} on {', '.join(each)}" for judgement, each in found.items() if each]
    return f"on {plural(count, f'{kind} pair')} {'; '.join(clauses)}"


def judged_kind(results: Results) -> str:
    """The kind of pairs that LoRAs are judged by."""
    return "unpaired" if "psnr" in results.get("unpaired", {}).get(ALL, {}).get(BASE, {}) else "paired"


def _judged(results: Results, kind: str, category: str, lora: str) -> dict[str, Any]:
    differences = results.get(kind, {}).get(category, {}).get(f"{lora} - {BASE}", {})
    return {name: differences[name] for name in JUDGED if name in differences}
