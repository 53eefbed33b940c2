"""Drawn people and garments as pictures to try things with.

    python -m tryon.toy.draw drawn

The app's examples are the same ones.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from tryon.cli import parse, run_script
from tryon.config import setting
from tryon.console import set_up_logging
from tryon.data.category import CATEGORIES, Category
from tryon.toy.drawing import draw_garment, draw_person
from tryon.toy.people import VIEW, random_example

logger = logging.getLogger(__name__)

SEED = 7  # of people and garments that are worth a look
SIZE = 768, 576  # height and width, as photographs have


@dataclass(frozen=True, kw_only=True)
class DrawConfig:
    """Where the pictures go."""

    folder: str = setting(None, "where the pictures are written", positional=True)


def write_pictures(folder: Path) -> list[tuple[Path, Path, Category]]:
    """Writes person-<i>.png and garment-<i>.png, two of each category, and returns them. The person wears another
    garment of the category. Raises ValueError where the folder cannot be written."""
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for index, category in enumerate(2 * CATEGORIES):
            drawn = random_example(SEED, index, category)
            person, garment = folder / f"person-{index}.png", folder / f"garment-{index}.png"
            draw_person(drawn.person, drawn.outfit, VIEW, *SIZE).image.save(person)
            draw_garment(drawn.other, *SIZE).image.save(garment)
            written.append((person, garment, category))
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error}): name another folder") from error
    return written


def main(argv: list[str]) -> None:
    (config,) = parse(argv, "python -m tryon.toy.draw", "Draws people and garments.", DrawConfig)
    set_up_logging(is_main_process=True)
    for person, garment, category in write_pictures(Path(config.folder).expanduser()):
        logger.info("%s and %s: --category %s", person, garment, category)


if __name__ == "__main__":
    run_script(main)
