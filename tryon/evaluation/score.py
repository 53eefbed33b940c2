"""The base model and LoRAs measured on the same cases; tryon.evaluation.compare says what that means.

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
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tryon.console import progress_bar
from tryon.data.category import CATEGORIES
from tryon.data.outline import outline_on_edges
from tryon.data.sample import SampleSource, UnreadablePicture, check_unreadable, fit_picture, read_picture, to_picture
from tryon.evaluation.cases import Case, dressed
from tryon.evaluation.metrics import interior, psnr, ssim
from tryon.files import save_json
from tryon.inference.pipeline import TryOnModel

logger = logging.getLogger(__name__)

BASE = "base"
SETTINGS, LINES = "settings.json", "measured.jsonl"


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
    """What was measured. A line that was cut short, by a kill, or whose picture is gone, is left out: its batch is done
    again."""
    file = folder / LINES
    lines = {}
    for text in file.read_text().splitlines() if file.exists() else []:
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        place = line["model"], line["kind"], line["case"]
        if picture_path(folder, *place).is_file():
            lines[place] = line
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
    that the pictures are, too. Raises ValueError where the folder cannot be written.
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
                try:
                    for index, case, tensor in zip(batch, opened, worn, strict=True):
                        path = picture_path(folder, name, kind, index)
                        to_picture(tensor).save(path)
                        what = {"model": name, "kind": kind, "case": index, "name": source.name(index)}
                        line = {**what, "category": case.sample.category, **measured(case, read_picture(path))}
                        file.write(json.dumps(line) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                except OSError as error:
                    raise ValueError(
                        f"{folder} cannot be written ({error}): make room on the disk, then give the same command again"
                    ) from error
    bar.close()


def picture_path(folder: Path, name: str, kind: str, index: int) -> Path:
    """Where a result lies."""
    return folder / "pictures" / name / f"{kind}-{index:05d}.png"


def measured(case: Case, picture: Image.Image) -> dict[str, float]:
    """The scores of a result of the panel's size, against the truth at that size, where there is one.

    changed_outside: share of the pixels outside the mask that are not the person's. on_edges: how much of the mask's
    outline follows the picture, see tryon.data.outline.
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
