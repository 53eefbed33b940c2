"""Try-on data sets that lie in folders, as TryOnSamples. VITON-HD:

    <dataroot>/train/image/00001_00.jpg               the person
    <dataroot>/train/cloth/00001_00.jpg               the garment it wears
    <dataroot>/train/agnostic-mask/00001_00_mask.png  white: to be repainted
    <dataroot>/train_pairs.txt                        lines of `person.jpg garment.jpg`

and the same below `test`. The second name of a line is the garment of the unpaired test: training and validation pair a
person with the garment of its own name. VITON-HD has upper-body garments only; folders with others say so in

    <dataroot>/train/categories.txt                   lines of `person.jpg upper`, or lower, or full
"""

import hashlib
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tryon.sample import (
    CATEGORIES,
    UNREADABLE,
    Category,
    TryOnSample,
    UnreadablePicture,
    fit_mask,
    fit_picture,
    read_mask,
    read_picture,
)

logger = logging.getLogger(__name__)

PARTS = ("image", "cloth", "agnostic-mask")


@dataclass(frozen=True)
class VitonHdData:
    """The pairs of one list as samples of one panel size: a SampleSource."""

    folder: Path
    names: list[str]
    categories: list[Category]
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.names)

    def files(self, index: int) -> tuple[Path, Path, Path]:
        """Person, garment and mask of pair `index`."""
        name = self.names[index]
        mask = self.folder / "agnostic-mask" / f"{Path(name).stem}_mask.png"
        return self.folder / "image" / name, self.folder / "cloth" / name, mask

    def key(self, index: int) -> str:
        """A hash of the files' bytes, of the category and of the panel size. A missing file counts as an empty one."""
        digest = hashlib.sha256(repr(("viton-hd", self.categories[index], self.height, self.width)).encode())
        for file in self.files(index):
            digest.update(hashlib.sha256(file.read_bytes() if file.is_file() else b"").digest())
        return digest.hexdigest()

    def __getitem__(self, index: int) -> TryOnSample:
        try:
            person_file, garment_file, mask_file = self.files(index)
            person, garment = read_picture(person_file), read_picture(garment_file)
            mask = read_mask(mask_file, person.size)
        except UNREADABLE as error:
            raise UnreadablePicture(f"{self.names[index]}: {error}") from error
        return TryOnSample(
            key=self.key(index),
            garment=fit_picture(garment, self.height, self.width),
            person=fit_picture(person, self.height, self.width),
            mask=fit_mask(mask, self.height, self.width),
            category=self.categories[index],
        )


def load_viton_hd(dataroot: str, split: str, list_name: str, height: int, width: int, limit: int | None) -> VitonHdData:
    """The first `limit` pairs of <dataroot>/<list_name>, whose pictures lie in <dataroot>/<split>.

    Raises ValueError where list or folders are missing, the list is empty, or a category is missing or unknown.
    """
    root = Path(dataroot).expanduser()
    folder, pairs = root / split, root / list_name
    if root.is_dir() and not pairs.is_file():
        raise ValueError(f"{pairs} is not there: name the list of {split} pairs that lies in --dataroot")
    missing = [str(path) for path in (root, *(folder / name for name in PARTS)) if not path.exists()]
    if missing:
        raise ValueError(f"--dataroot {dataroot} lacks {', '.join(missing)}: give a folder laid out as VITON-HD is")
    names = [line.split()[0] for line in pairs.read_text().splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{pairs} names no pair: write lines of `person.jpg garment.jpg`")
    names = names[:limit]
    categories = read_categories(folder / "categories.txt", names)
    counts = Counter(categories)
    found = ", ".join(f"{counts[category]} {category}" for category in CATEGORIES if counts[category])
    why = "" if (folder / "categories.txt").is_file() else "; all upper, because there is no categories.txt"
    logger.info("%s pairs: %d  (%s%s)", split, len(names), found, why)
    return VitonHdData(folder, names, categories, height, width)


def read_categories(file: Path, names: list[str]) -> list[Category]:
    """Each name's category; without the file every garment is an upper-body one, as in VITON-HD."""
    if not file.is_file():
        return ["upper"] * len(names)
    categories = dict(line.split(maxsplit=1) for line in file.read_text().splitlines() if len(line.split()) > 1)
    for name in names:
        if categories.get(name) not in CATEGORIES:
            raise ValueError(f"{file} calls {name} {categories.get(name)}: write upper, lower or full")
    return [categories[name] for name in names]
