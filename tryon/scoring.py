"""Scores of the base model and of LoRAs on the same cases, with intervals that say which differences mean something.

    <folder>/settings.json       what the pictures follow from; another command's are refused
    <folder>/measured.jsonl      a line for each model and case, written after each batch, and not done again
    <folder>/pictures/<model>/<kind>-<case>.png
    <folder>/evaluation.json, evaluation.md, worst-<kind>.png

A model is "base" or the hash of a LoRA's file. A case is a pair of one kind: "paired", a person in its own garment, or
"unpaired". All that is measured is measured on the pictures as they are saved.
"""

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tryon.config import save_json
from tryon.evaluate import Case, dressed
from tryon.metrics import interior, psnr, ssim
from tryon.outline import outline_on_edges
from tryon.perceptual import Perception, frechet_distance, kernel_distance
from tryon.pipeline import TryOnModel
from tryon.sample import (
    CATEGORIES,
    SampleSource,
    UnreadablePicture,
    check_unreadable,
    fit_picture,
    make_diptych,
    read_picture,
    split_diptych,
    to_picture,
)
from tryon.tracking import progress_bar
from tryon.validate import draw_grid

logger = logging.getLogger(__name__)

BASE = "base"
ALL = "all"  # the categories together: every case counts the same
SETTINGS, LINES = "settings.json", "measured.jsonl"
RESAMPLES = 2000  # of the bootstrap
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


class CaseSource(Protocol):
    """Cases, each built when it is asked for."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """What tells case `index` from any other, cheaply."""

    def name(self, index: int) -> str:
        """What a message calls it."""

    def __getitem__(self, index: int) -> Case:
        """Builds it. Raises UnreadablePicture where a picture cannot be used."""


@dataclass(frozen=True)
class HeldOut:
    """Pairs of a data set as a CaseSource: each person in its own garment, or in that of another person, of which
    nobody knows the truth. persons, garments: places in the data, one each for every case."""

    data: SampleSource
    persons: list[int]
    garments: list[int]

    def __len__(self) -> int:
        return len(self.persons)

    def key(self, index: int) -> str:
        return f"{self.data.key(self.persons[index])} {self.data.key(self.garments[index])}"

    def name(self, index: int) -> str:
        person, garment = self.persons[index], self.garments[index]
        given = "" if garment == person else f" in the garment of {self.data.name(garment)}"
        return self.data.name(person) + given

    def __getitem__(self, index: int) -> Case:
        sample = self.data[self.persons[index]]
        if self.garments[index] == self.persons[index]:
            return Case(sample, sample.person)
        return Case(replace(sample, garment=self.data[self.garments[index]].garment), None)


def held_out(data: SampleSource, per_category: int | None, item: Callable[[int], str]) -> dict[str, HeldOut]:
    """The data's first pairs of each category, or all, paired and unpaired. Unpaired, a person is given the garment of
    the next pair of its category that shows another item; one for whom there is none is left out.

    item: what pair `index` shows; pairs of one item may show one garment. Pairs that cannot be read are left out, too.
    Raises ValueError where there is no pair, and where too many cannot be read: before hours of dressing, not after.
    """
    paired: list[int] = []
    unpaired: list[tuple[int, int]] = []
    unreadable = 0
    for category in CATEGORIES:
        picked = [index for index in range(len(data) // data.variants) if data.category(index) == category]
        readable = [index for index in picked[:per_category] if can_be_read(data, index)]
        unreadable += len(picked[:per_category]) - len(readable)
        picked = readable
        paired += picked
        for place, person in enumerate(picked):
            others = (*picked[place + 1 :], *picked[:place])
            garment = next((index for index in others if item(index) != item(person)), None)
            if garment is not None:
                unpaired.append((person, garment))
    check_unreadable(unreadable, len(paired) + unreadable, "held-out pairs")
    cases = {"paired": HeldOut(data, paired, paired)}
    if unpaired:
        persons, garments = map(list, zip(*unpaired, strict=True))
        cases["unpaired"] = HeldOut(data, persons, garments)
    if len(unpaired) < len(paired):
        logger.warning("%d persons have no other garment of their category to try on", len(paired) - len(unpaired))
    return cases


def can_be_read(data: SampleSource, index: int) -> bool:
    """Whether a pair's pictures can be used; if not, the log says why."""
    try:
        data[index]
    except UnreadablePicture as error:
        logger.warning("skipped: %s", error)
        return False
    return True


def open_folder(folder: Path, settings: dict[str, Any], cases: dict[str, CaseSource]) -> None:
    """Makes the folder one of these settings and cases. Raises ValueError, with the differences, where it is another's
    already, and where it cannot be written."""
    digests = {
        kind: sha256("\n".join(source.key(index) for index in range(len(source))).encode()).hexdigest()[:16]
        for kind, source in cases.items()
    }
    settings = {**settings, **{f"{kind} cases": f"{len(cases[kind])} {digest}" for kind, digest in digests.items()}}
    file = folder / SETTINGS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            save_json(file, settings)
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error.strerror}): name another with --output_dir") from error
    was = json.loads(file.read_text())
    changed = [name for name in {**was, **settings} if was.get(name) != settings.get(name)]
    if changed:
        differences = "; ".join(f"{name} was {was.get(name)} and is {settings.get(name)}" for name in changed)
        raise ValueError(
            f"{folder} holds scores of other settings: {differences}: give the same, or name another folder with "
            "--output_dir"
        )


Line = dict[str, Any]
Place = tuple[str, str, int]  # of a line: model, kind, case


def read_lines(folder: Path) -> dict[Place, Line]:
    """What was measured. A line that was cut short, by a kill, is left out: its batch is done again."""
    file = folder / LINES
    lines = {}
    for text in file.read_text().splitlines() if file.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        lines[line["model"], line["kind"], line["case"]] = line
    return lines


def is_measured(folder: Path, name: str, cases: dict[str, CaseSource]) -> bool:
    """Whether nothing is left to do for the model `name`."""
    lines = read_lines(folder)
    return all((name, kind, index) in lines for kind, source in cases.items() for index in range(len(source)))


def measure(
    folder: Path,
    name: str,
    model: TryOnModel,
    cases: dict[str, CaseSource],
    *,
    steps: int,
    guidance: float,
    seed: int,
    batch_size: int,
) -> None:
    """Dresses, saves and measures what is not there yet for the model `name`, "base" with its LoRA switched off.

    Case i starts from the noise of seed + i. Batches are always the same ones, wherever the work was interrupted, so
    that the pictures are, too.
    """
    (model.pipeline.transformer.disable_adapters if name == BASE else model.pipeline.transformer.enable_adapters)()
    lines, pictures = read_lines(folder), folder / "pictures" / name
    pictures.mkdir(parents=True, exist_ok=True)
    bar = progress_bar(sum(map(len, cases.values())), f"trying on, {name}", visible=True)
    with (folder / LINES).open("a") as file:
        file.write("\n")  # ends a line that was cut short
        for kind, source in cases.items():
            for start in range(0, len(source), batch_size):
                batch = range(start, min(start + batch_size, len(source)))
                bar.update(len(batch))
                if all((name, kind, index) in lines for index in batch):
                    continue
                opened = [source[index] for index in batch]
                samples, seeds = [case.sample for case in opened], [seed + index for index in batch]
                worn = dressed(model, samples, steps=steps, guidance=guidance, seeds=seeds)
                for index, case, tensor in zip(batch, opened, worn, strict=True):
                    path = picture_path(folder, name, kind, index)
                    to_picture(tensor).save(path)
                    what = {"model": name, "kind": kind, "case": index, "name": source.name(index)}
                    line = {**what, "category": case.sample.category, **measured(case, read_picture(path))}
                    file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
    bar.close()


def picture_path(folder: Path, name: str, kind: str, index: int) -> Path:
    """Where a result lies."""
    return folder / "pictures" / name / f"{kind}-{index:05d}.png"


def measured(case: Case, picture: Image.Image) -> dict[str, float]:
    """The scores of a result of the panel's size, against the truth at that size, where there is one.

    changed_outside: share of the pixels outside the mask that are not the person's. on_edges: how much of the mask's
    outline follows the picture, see tryon.outline.
    """
    sample, result = case.sample, as_tensor(picture)
    person, hidden = to_picture(sample.person), sample.mask[0].bool().numpy()
    outside = (np.asarray(picture) != np.asarray(person)).any(-1)[~hidden]
    on_edges = outline_on_edges(person, Image.fromarray(hidden.astype(np.uint8) * 255))
    scores = {"changed_outside": float(outside.mean()) if outside.size else 0.0, "on_edges": on_edges}
    if case.truth is not None:
        both, mask = (result[None], as_tensor(to_picture(case.truth))[None]), sample.mask[None]
        scores |= {"psnr": psnr(*both, mask).item(), "ssim": ssim(*both, mask).item()}
        scores["psnr_whole"] = psnr(*both, torch.ones_like(mask)).item()
        scores["ssim_whole"] = ssim(*both, interior(mask)).item()
    if case.ends_right:
        scores["length_right"] = float(case.ends_right(result))
    return {name: value for name, value in scores.items() if value is not None}


def as_tensor(picture: Image.Image) -> Tensor:
    """[3, H, W] in [-1, 1]: the picture as it is."""
    return fit_picture(picture, picture.height, picture.width)


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
    """The 95 % interval of the mean of values [N], by the percentile bootstrap (Efron 1979) with a fixed seed."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
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
    """A value in words. cases: the number of the category's; a value of fewer says of how many it is."""
    if value is None:
        return ""
    sign = "+" if "marked" in value else ""
    shown = f"{value['mean'] * how.scale:{sign}.{how.digits}f}"
    if value.get("low") is not None:
        low, high = (f"{value[each] * how.scale:{sign}.{how.digits}f}" for each in ("low", "high"))
        shown += f" [{low}, {high}]"
    if value.get("cases", cases) != cases:
        shown += f" of {value['cases']}"
    return f"**{shown}**" if value.get("marked") else shown


def outlines(results: dict[str, Any]) -> list[str]:
    """Lines that say how much of the masks' outlines follows the pictures."""
    of_kind = next(iter(results.values()))
    shares = {category: result["on_edges"] for category, result in of_kind.items() if "on_edges" in result}
    return [
        f"{category} {_cell(share, Measure('', 0, 100), of_kind[category]['cases'])} %"
        for category, share in shares.items()
    ]
