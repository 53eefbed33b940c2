"""What can be said of VITON-HD and DressCode folders without a picture: the settings of a training on one, and the
lists of pairs. folder_datasets.py describes the folders. Imports nothing heavy."""

from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from tryon.cli import checked, parse_flags
from tryon.config import MaskConfig, TrainConfig, cuda_device_count, resolve, setting
from tryon.data.category import CATEGORIES, Category
from tryon.runs import with_paths

PARTS = ("image", "cloth", "agnostic-mask")  # folders of each split of VITON-HD
DRESSCODE_FOLDERS: dict[str, Category] = {"upper_body": "upper", "lower_body": "lower", "dresses": "full"}


@dataclass(frozen=True)
class FolderPair:
    """A person and the garment it wears. name: what messages call it. mask: its mask, or the label map that the mask is
    made from."""

    name: str
    person: Path
    garment: Path
    mask: Path
    category: Category


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """Which folder train_flux_inpaint.py trains on."""

    dataroot: str | None = setting(None, "a folder laid out as VITON-HD or DressCode is", needed=True)
    train_data_list: str = setting("train_pairs.txt", "list of training pairs, in dataroot or in each of its folders")
    validation_data_list: str | None = setting(
        None, "list of validation pairs (default test_pairs.txt, and test_pairs_paired.txt for DressCode)"
    )


def read_settings(argv: list[str]) -> tuple[TrainConfig, FolderConfig, MaskConfig]:
    """The run's resolved configuration and folder. Raises ValueError, in one sentence, for every mistake."""
    description = "Trains a try-on LoRA on VITON-HD or DressCode. Defaults shown are the full profile's."
    others = (FolderConfig, MaskConfig)
    given, *rest = parse_flags(argv, "python train_flux_inpaint.py", description, TrainConfig, *others)
    folders, masks = checked(others, rest)
    config = resolve(given, cuda_device_count())
    folders = replace(folders, dataroot=str(Path(folders.dataroot).expanduser().absolute()))
    dresscode = is_dresscode(folders.dataroot)
    if not dresscode and (of_masks := rest[1]):
        raise ValueError(f"--{next(iter(of_masks))} was given, but VITON-HD folders have their own masks: leave it out")
    if folders.validation_data_list is None:
        found = "test_pairs_paired.txt" if dresscode else "test_pairs.txt"
        folders = replace(folders, validation_data_list=found)
    check_lists(folders, config)
    return with_paths(config, "dresscode_lora" if dresscode else "viton_hd_lora"), folders, masks


def check_lists(folders: FolderConfig, config: TrainConfig) -> None:
    """Raises ValueError where a list of pairs cannot be used, or DressCode's two share persons."""
    root, train_list, validation_list = folders.dataroot, folders.train_data_list, folders.validation_data_list
    limits = config.max_train_samples, config.max_validation_samples
    if not is_dresscode(root):
        viton_hd_pairs(root, "train", train_list, limits[0])
        viton_hd_pairs(root, "test", validation_list, limits[1])
        return
    trained, validated = dresscode_pairs(root, train_list, limits[0]), dresscode_pairs(root, validation_list, limits[1])
    if both := {pair.person for pair in trained} & {pair.person for pair in validated}:
        raise ValueError(f"{train_list} and {validation_list} share {len(both)} persons: give lists that share none")


def is_dresscode(dataroot: str) -> bool:
    """Whether the folder is laid out as DressCode is: with a folder for each part of the body."""
    return any((Path(dataroot).expanduser() / part).is_dir() for part in DRESSCODE_FOLDERS)


def viton_hd_pairs(dataroot: str, split: str, list_name: str, limit: int | None) -> list[FolderPair]:
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
    _check_names(names, pairs)
    people, garments, masks = (folder / part for part in PARTS)
    return [
        FolderPair(name, people / name, garments / name, masks / f"{Path(name).stem}_mask.png", category)
        for name, category in zip(names, read_categories(folder / "categories.txt", names), strict=True)
    ]


def dresscode_pairs(dataroot: str, list_name: str, limit: int | None) -> list[FolderPair]:
    """The first `limit` pairs of <dataroot>/<upper_body, lower_body, dresses>/<list_name>, the folders by turns.

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
        images, maps = root / name / "images", root / name / "label_maps"
        of_folder.append([
            FolderPair(f"{name}/{Path(person).name}", images / person, images / garment,
                       maps / f"{Path(person).stem.removesuffix('_0')}_4.png", category)
            for person, garment, *_ in lines
        ])  # fmt: skip
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
