"""The lists of pairs of VITON-HD and DressCode folders, which folder_datasets describes. Imports nothing heavy."""

from itertools import zip_longest
from pathlib import Path

from tryon.data.category import CATEGORIES, Category

PARTS = ("image", "cloth", "agnostic-mask")  # folders of each split of VITON-HD
DRESSCODE_FOLDERS: dict[str, Category] = {"upper_body": "upper", "lower_body": "lower", "dresses": "full"}


def is_dresscode(dataroot: str) -> bool:
    """Whether the folder is laid out as DressCode is: with a folder for each part of the body."""
    return any((Path(dataroot).expanduser() / part).is_dir() for part in DRESSCODE_FOLDERS)


def viton_hd_pairs(dataroot: str, split: str, list_name: str, limit: int | None) -> tuple[list[str], list[Category]]:
    """Names and categories of the persons of the first `limit` pairs of <dataroot>/<list_name>, whose pictures lie in
    <dataroot>/<split>.

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
    _check_names(names, pairs)
    return names, read_categories(folder / "categories.txt", names)


def dresscode_pairs(dataroot: str, list_name: str, limit: int | None) -> list[tuple[Path, Path, Category]]:
    """Persons, garments and categories of the first `limit` pairs of <dataroot>/<upper_body, lower_body,
    dresses>/<list_name>, the folders by turns.

    Raises ValueError where there is none of these folders, and where a list is missing or names no pair.
    """
    root = Path(dataroot).expanduser()
    of_folder = []
    for name, category in DRESSCODE_FOLDERS.items():
        if not (root / name).is_dir():
            continue
        pairs = root / name / list_name
        if not pairs.is_file():
            raise ValueError(f"{pairs} is not there: name the list of pairs that lies in each of DressCode's folders")
        lines = [line.split() for line in pairs.read_text().splitlines() if line.strip()]
        if not lines or any(len(line) < 2 for line in lines):
            raise ValueError(f"{pairs} must have lines of `person.jpg garment.jpg`: give a list with at least one pair")
        _check_names([word for line in lines for word in line[:2]], pairs)
        images = root / name / "images"
        of_folder.append([(images / line[0], images / line[1], category) for line in lines])
    if not of_folder:
        raise ValueError(
            f"{dataroot} has none of {', '.join(DRESSCODE_FOLDERS)}: give a folder laid out as DressCode is"
        )
    return [pair for turn in zip_longest(*of_folder) for pair in turn if pair][:limit]


def _check_names(names: list[str], where: Path) -> None:
    """Raises ValueError where a list names files outside the data's folder."""
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{where} names {name}, which lies outside the folder: give names of files in it")


def read_categories(file: Path, names: list[str]) -> list[Category]:
    """Each name's category; without the file every garment is an upper-body one, as in VITON-HD."""
    if not file.is_file():
        return ["upper"] * len(names)
    categories = dict(line.split(maxsplit=1) for line in file.read_text().splitlines() if len(line.split()) > 1)
    for name in names:
        if categories.get(name) not in CATEGORIES:
            raise ValueError(f"{file} calls {name} {categories.get(name)}: write upper, lower or full")
    return [categories[name] for name in names]
