"""What every inspection shares: pictures and masks measured, what is said of them, and the page."""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tryon.data.category import CATEGORIES, Category
from tryon.data.split import few_pairs
from tryon.pages import jpeg_url, render
from tryon.units import plural

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

RARE = 0.05  # of all pairs; a category with fewer is rare
GREY = (8, 247)  # values of a mask between these are noise or soft edges
NOISY = 0.01  # a mask with a larger share of grey pixels counts as noisy
CENTRES = {"upper": (0.0, 0.7), "lower": (0.3, 1.0), "full": (0.2, 0.8)}  # heights in which a garment's middle may be
# A mask with a smaller share of the picture's height, or of its area, shows no such garment.
SHORTEST, SMALLEST = {"upper": 0.1, "lower": 0.1, "full": 0.25}, 0.01
TOO_LARGE = 0.25  # a mask with a larger share of its outline in even colour is larger than its garment
PAIRS_SHOWN = 8  # of each category, on the page
MOST_SHOWN = 8  # rows or values that a line names
THUMBNAIL = 240  # pixels of height


@dataclass(frozen=True)
class Findings:
    """lines: what the data hold. warnings: what may harm the training. faults: why it cannot begin."""

    lines: list[str]
    warnings: list[str]
    faults: list[str]


# A category's pairs that can be read: each a caption and its pictures.
PicturesOf = Callable[[Category], Iterator[tuple[str, list["Image.Image"]]]]
Inspected = tuple[Findings, list[str], PicturesOf]  # the list: what each of a pair's pictures shows


@dataclass(frozen=True)
class Look:
    """What was seen of a pair. name: what warnings call it. problem: why it cannot be used; empty where it can.
    measured: as far as it can be read what `measure` returns, the picture's size, its digest, and `resized`, whether
    the mask has to be."""

    name: int | str
    category: Category
    problem: str
    measured: dict[str, Any]


def few_or_rare(categories: list[Category], validation: int, of_base: Sequence[str]) -> list[str]:
    """A warning for each part that has few pairs, and for each category that is rare among the training's.
    validation: how many pairs are validated on. of_base: categories that are left out on purpose."""
    found, wanted = Counter(categories), [category for category in CATEGORIES if category not in of_base]
    rare = [category for category in wanted if found[category] < RARE * len(categories)]
    few = few_pairs(len(categories), validation)
    return few + [f"{found[category]} of {len(categories)} training pairs are {category}" for category in rare]


def measure(person: "Image.Image", worn: "Image.Image") -> dict[str, Any]:
    """Measures a picture and its mask, "L" of 0 and 255.

    area, height, middle: the garment's share of the picture and of its height, and where its middle is, 0..1. still:
    share of the mask's outline around which no colour changes.
    """
    import numpy as np

    from tryon.data.outline import outline_on_edges

    inside = np.asarray(worn) > 0
    rows = np.flatnonzero(inside.any(1))
    on_edges = outline_on_edges(person, worn)
    return {
        "size": person.size,
        "area": float(inside.mean()),
        "height": float((rows[-1] + 1 - rows[0]) / len(inside)),
        "middle": float((rows[0] + rows[-1] + 1) / 2 / len(inside)),
        "still": 0.0 if on_edges is None else 1 - on_edges,
    }


def measure_stored(mask: "Image.Image") -> dict[str, Any]:
    """A mask's mode as it is stored, and its noise: the share of grey pixels."""
    import numpy as np

    values = np.asarray(mask.convert("L"))
    return {"mask_mode": mask.mode, "noise": float(((values > GREY[0]) & (values < GREY[1])).mean())}


def judge_pictures(findings: Findings, what: str, train: list[Look], validation: list[Look]) -> None:
    """Adds the findings that need the decoded pictures. what: the names of looks name, "row" or "pair"."""
    from tryon.data.sample import check_unreadable

    looks = [*train, *validation]
    seen = [look for look in looks if "digest" in look.measured]
    masked = [look for look in seen if "area" in look.measured]
    stored = [look.measured for look in masked if "mask_mode" in look.measured]
    sizes = Counter("{} x {}".format(*look.measured["size"]) for look in seen)
    findings.lines.append("picture sizes: " + in_words(sizes))
    if stored:
        noisy = sum(each["noise"] > NOISY for each in stored)
        findings.lines.append("mask modes: " + in_words(Counter(each["mask_mode"] for each in stored)))
        findings.lines.append(f"masks: {len(stored) - noisy} binary, {noisy} noisy or soft (thresholded)")

    def warn(said: str, of: Iterable[Look], advice: str) -> None:
        if names := sorted(look.name for look in of):
            shown = ", ".join(map(str, names[:MOST_SHOWN])) + (", ..." if len(names) > MOST_SHOWN else "")
            findings.warnings.append(f"{said}: {plural(len(names), what)} ({shown}); {advice}")

    warn("masks that do not have their picture's size, and are resized",
         (look for look in masked if look.measured.get("resized")),
         "nothing to do if they are masks of these pictures")  # fmt: skip
    for category, (low, high) in CENTRES.items():
        of_category = [look for look in masked if look.category == category]
        if areas := sorted(look.measured["area"] for look in of_category):
            findings.lines.append(f"masks of {category} garments: {areas[0]:.0%} to {areas[-1]:.0%} of the picture, "
                                  f"median {areas[len(areas) // 2]:.0%}")  # fmt: skip
        warn(f"masks of {category} garments look larger than the garment: more than {TOO_LARGE:.0%} of their outline "
             "runs through even colour", (look for look in of_category if look.measured["still"] > TOO_LARGE),
             "they can be trained on, but hide more of the person than they need: look at them, and cut them closer "
             "unless the garment merely has the colour of what is behind it")  # fmt: skip
        warn(f"masks of {category} garments are where on a picture no such garment is",
             (look for look in of_category if not low <= look.measured["middle"] <= high),
             "look at them: where mask or category is wrong, the pair teaches the wrong thing")  # fmt: skip
        warn(f"masks of {category} garments are too short or too small to show one",
             (look for look in of_category if look.measured["height"] < SHORTEST[category]
              or look.measured["area"] < SMALLEST),
             "look at them: where the mask misses the garment, leave the pair out")  # fmt: skip
    same: dict[str, list[Look]] = defaultdict(list)
    for look in seen:
        same[look.measured["digest"]].append(look)
    again = (look for looks in same.values() for look in sorted(looks, key=lambda look: look.name)[1:])
    warn("pictures that are there more than once", again, "each counts as often as it is there")
    held_back = {look.measured.get("digest") for look in validation} - {None}
    warn("training pictures that are in the validation too",
         (look for look in train if look.measured.get("digest") in held_back),
         "the validation will look better than it is: leave them out of one of the two")  # fmt: skip

    problems = [look for look in looks if look.problem]
    warn("cannot be used and are left out", problems, "why is said above")
    for why, count in Counter(look.problem for look in problems).most_common(5):
        findings.lines.append(f"{plural(count, what)} cannot be used: {why}")
    for part, of in (("training pairs", train), ("validation pairs", validation)):
        try:
            check_unreadable(sum(bool(look.problem) for look in of), len(of), part)
        except ValueError as error:
            findings.faults.append(str(error))


def log_findings(findings: Findings, indent: str = "") -> None:
    """Writes lines and warnings to the log."""
    for line in findings.lines:
        logger.info("%s%s", indent, line)
    for line in findings.warnings:
        logger.warning("warning: %s", line)


def write_page(
    file: Path, name: str, findings: Findings, verdict: str, columns: list[str], pictures_of: PicturesOf
) -> None:
    """Writes the findings and some pairs of each category as one HTML file. columns: what each of a pair's pictures
    shows. pictures_of: gives a category's pairs, each with a caption."""
    shown = {category: [(caption, list(map(thumbnail_url, pictures)))
                        for caption, pictures in islice(pictures_of(category), PAIRS_SHOWN)]
             for category in CATEGORIES}  # fmt: skip
    template = Path(__file__).with_name("inspection.html.j2")
    file.write_text(
        render(
            template, name=name, verdict=verdict, columns=columns, shown=shown, thumbnail=THUMBNAIL, **vars(findings)
        )
    )


def shaded(person: "Image.Image", mask: "Image.Image") -> "Image.Image":
    """The person with the masked region in magenta."""
    shaded = person.copy()
    shaded.paste((255, 0, 200), mask=mask.point(lambda value: 150 if value else 0))
    return shaded


def thumbnail_url(picture: "Image.Image") -> str:
    """An address that holds the picture, at most THUMBNAIL high and twice as wide."""
    small = picture.copy()
    small.thumbnail((2 * THUMBNAIL, THUMBNAIL))
    return jpeg_url(small, quality=85)


def in_words(counter: Counter) -> str:
    shown = ", ".join(f"{value} ({count})" for value, count in counter.most_common(MOST_SHOWN))
    return shown + (f", {len(counter) - MOST_SHOWN} more" if len(counter) > MOST_SHOWN else "")
