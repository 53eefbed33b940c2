"""What can be said of VITON-HD and DressCode folders without a picture: the settings of a training on one, and its
pairs. folder_datasets.py describes the folders. Imports nothing heavy."""

from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tryon.cli import checked, parse_flags
from tryon.config import DEFAULT_PARSER, PARSER_FILES, MaskConfig, PlanConfig, TrainConfig, setting
from tryon.data.category import CATEGORIES, Category, plain
from tryon.data.layout import DRESSCODE_FOLDERS, LAYOUTS, holds_rows, is_dresscode, rows_in_words, run_prefix
from tryon.data.split import split_by_item, used_parts
from tryon.files import full_path
from tryon.profiles import cuda_device_count, resolve
from tryon.runs import with_paths
from tryon.units import plural

MASKS = "agnostic-mask"  # the folder of each split of VITON-HD that a person's own folder may lack
CATEGORY_OF = {category: category for category in CATEGORIES} | {plain(n): c for n, c in DRESSCODE_FOLDERS.items()}


@dataclass(frozen=True)
class FolderPair:
    """A person and the garment it wears. name: what messages call it. mask: its mask, or the label map that the mask is
    made from; None: a human parser has to make one."""

    name: str
    person: Path
    garment: Path
    mask: Path | None
    category: Category


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """Which folder is trained on."""

    dataroot: str | None = setting(None, f"a folder laid out as {LAYOUTS}", needed=True)
    train_data_list: str | None = setting(
        None,
        "list of training pairs, in dataroot or in each of its folders (default train_pairs.txt, or all pictures where "
        "there is none)",
    )
    validation_data_list: str | None = setting(
        None,
        "list of validation pairs (default test_pairs.txt, and test_pairs_paired.txt for DressCode; where there is "
        "none, all pictures of test, or else a tenth of the training's garments)",
    )
    parser: str | None = setting(
        None,
        "hub name or folder of the SegFormer that masks are made with where a folder like VITON-HD has none (default "
        f"{DEFAULT_PARSER}, or the toy's)",
    )


def read_settings(argv: list[str]) -> tuple[TrainConfig, FolderConfig, MaskConfig, PlanConfig]:
    """The run's resolved configuration and folder. Raises ValueError, in one sentence, for every mistake."""
    description = f"Trains a try-on LoRA on a folder laid out as {LAYOUTS}. Defaults shown are the full profile's."
    others = (FolderConfig, MaskConfig, PlanConfig)
    given, *rest = parse_flags(argv, "python train_flux_inpaint.py", description, TrainConfig, *others)
    folders, masks, plan = checked(others, rest)
    # Only of the drawings the quick test leaves a part out.
    config = resolve({"base_categories": "none"} | given, cuda_device_count(), plan)
    folders = checked_folder(folders, rest[1])
    read_pairs(folders, config)
    if needs_parser(folders) and not (plan.plan or plan.check):  # which download nothing
        folders = with_parser(folders, config)
    return with_paths(config, run_prefix(folders.dataroot)), folders, masks, plan


def checked_folder(folders: FolderConfig, of_masks: dict[str, Any]) -> FolderConfig:
    """The folder by its whole path, with its usual lists. of_masks: the flags of masks that were given. Raises
    ValueError where it has masks or label maps, and flags say how to make some."""
    folders = with_lists(replace(folders, dataroot=str(full_path(folders.dataroot))))
    root = Path(folders.dataroot)
    if has_masks(root) and of_masks:
        raise ValueError(f"--{next(iter(of_masks))} was given, but VITON-HD folders have their own masks: leave it out")
    if folders.parser and not needs_parser(folders):
        raise ValueError(f"--parser was given, but {root} has masks or label maps of its own: leave it out")
    return folders


def needs_parser(folders: FolderConfig) -> bool:
    """Whether masks can only be made with a human parser."""
    return not (is_dresscode(folders.dataroot) or has_masks(Path(folders.dataroot).expanduser()))


def with_lists(folders: FolderConfig) -> FolderConfig:
    """The folder with the usual lists where no others are named and these are there."""
    root, dresscode = Path(folders.dataroot).expanduser(), is_dresscode(folders.dataroot)
    places = [root / name for name in DRESSCODE_FOLDERS] if dresscode else [root]

    def usual(name: str) -> str | None:
        return name if any((place / name).is_file() for place in places) else None

    return replace(
        folders,
        train_data_list=folders.train_data_list or usual("train_pairs.txt"),
        validation_data_list=folders.validation_data_list
        or usual("test_pairs_paired.txt" if dresscode else "test_pairs.txt"),
    )


def with_parser(folders: FolderConfig, config: TrainConfig) -> FolderConfig:
    """The folder, its parser downloaded where it is not there yet, or, where it is a folder, named by its whole path.
    Raises ValueError where it cannot be had."""
    from tryon.hub import hub_or_folder

    if config.toy and not folders.parser:
        return folders  # the toy has one of its own
    name = folders.parser or DEFAULT_PARSER
    try:
        found = hub_or_folder(name, PARSER_FILES, config.cache_dir)
    except ValueError as error:
        raise ValueError(
            f"{folders.dataroot} has no masks in {MASKS}, and none can be made without a human parser: {error}"
        ) from error
    return replace(folders, parser=str(found)) if Path(name).expanduser().is_dir() else folders


def read_pairs(folders: FolderConfig, config: TrainConfig) -> tuple[list[FolderPair], list[FolderPair]]:
    """Training and validation pairs, which share no person. Where the folder has none to validate on, a tenth of the
    garments is held back, as of any data set.

    Raises ValueError as pairs_of does, and where both lists name a person.
    """
    root = folders.dataroot
    listed = pairs_of(root, "train", folders.train_data_list)
    if not has_validation(folders):
        return used_parts(*split_by_item(listed, garment_of, config), config)
    trained, validated = used_parts(listed, pairs_of(root, "test", folders.validation_data_list), config)
    if both := {pair.person for pair in trained} & {pair.person for pair in validated}:
        lists = f"{folders.train_data_list} and {folders.validation_data_list}"
        raise ValueError(f"{lists} share {plural(len(both), 'person')}: give lists that share none")
    return trained, validated


def has_validation(folders: FolderConfig) -> bool:
    """Whether the folder has pairs of its own to validate on."""
    return bool(folders.validation_data_list) or keeps_tests_apart(folders.dataroot)


def keeps_tests_apart(dataroot: str) -> bool:
    """Whether the folder has another folder for the pictures of tests, as VITON-HD has."""
    return (Path(dataroot).expanduser() / "test" / "image").is_dir()


def garment_of(pair: FolderPair) -> str:
    """A hash of the garment's picture: it may be there more than once, under the name of each person who wears it."""
    return sha256(pair.garment.read_bytes() if pair.garment.is_file() else b"").hexdigest()


def has_masks(root: Path) -> bool:
    """Whether a folder like VITON-HD brings masks."""
    return any((folder / MASKS).is_dir() for folder in (root, root / "train", root / "test"))


def pairs_of(dataroot: str, split: str, list_name: str | None) -> list[FolderPair]:
    """The pairs of a list, or, without one, of all pictures. split: train or test, where VITON-HD's pictures lie.

    Raises ValueError where folders or the list are missing, where there is no pair, or none whose files are all there,
    where a list names files outside the folder, and where a category is missing or unknown.
    """
    root = Path(dataroot).expanduser()
    pairs = _dresscode_pairs(root, list_name) if is_dresscode(dataroot) else _viton_hd_pairs(root, split, list_name)
    if all(map(_absent, pairs)):  # single ones are left out when they are read
        raise ValueError(
            f"none of {plural(len(pairs), 'pair')} is complete, {_absent(pairs[0])} is not there: see docs/data.md for "
            "the names"
        )
    return pairs


def _absent(pair: FolderPair) -> Path | None:
    """A file of the pair that is not there."""
    return next((file for file in (pair.person, pair.garment, pair.mask) if file and not file.is_file()), None)


def _viton_hd_pairs(root: Path, split: str, list_name: str | None) -> list[FolderPair]:
    flat = (root / "image").is_dir() and not (root / split).is_dir()
    folder = root if flat else root / split
    people, garments = folder / "image", folder / "cloth"
    masks = folder / MASKS if has_masks(root) else None
    if not root.is_dir():
        raise ValueError(f"--dataroot {root} is no folder: check the path")
    if list_name and not (root / list_name).is_file():
        raise ValueError(f"{root / list_name} is not there: name the list of {split} pairs that lies in --dataroot")
    missing = [str(path) for path in (people, garments, masks) if path and not path.exists()]
    if missing and holds_rows(root):
        raise ValueError(f"--dataroot {root} holds {rows_in_words(root)}: give it as --dataset_name")
    if missing:
        raise ValueError(
            f"--dataroot {root} lacks {', '.join(missing)}: give a folder with image/ and cloth/, or one laid out as "
            "VITON-HD or DressCode (docs/data.md)"
        )
    if list_name:
        names = [(name, name) for name, *_ in _lines(root / list_name, 1)]
    else:
        garment_named = {Path(name).stem: name for name in _files(garments)}
        names = _with_garments({name: garment_named.get(Path(name).stem) for name in _files(people)}, people)
    categories = read_categories(folder / "categories.txt", [name for name, _ in names])
    return [
        FolderPair(name, people / name, garments / garment, masks and masks / f"{Path(name).stem}_mask.png", category)
        for (name, garment), category in zip(names, categories, strict=True)
    ]


def _dresscode_pairs(root: Path, list_name: str | None) -> list[FolderPair]:
    """The folders of the parts of the body by turns."""
    of_folder = []
    for part, category in DRESSCODE_FOLDERS.items():
        folder = root / part
        if not folder.is_dir():
            continue
        images, maps = folder / "images", folder / "label_maps"
        if list_name and not (folder / list_name).is_file():
            raise ValueError(
                f"{folder / list_name} is not there: name the list of pairs that lies in each of DressCode's folders"
            )
        if list_name:
            names = [(person, garment) for person, garment, *_ in _lines(folder / list_name, 2)]
        else:
            stems = {Path(name).stem: name for name in _files(images)}
            people = {name: stems.get(f"{stem[:-2]}_1") for stem, name in stems.items() if stem.endswith("_0")}
            names = _with_garments(people, images)
        of_folder.append([
            FolderPair(f"{part}/{Path(person).name}", images / person, images / garment,
                       maps / f"{Path(person).stem.removesuffix('_0')}_4.png", category)
            for person, garment in names
        ])  # fmt: skip
    return [pair for turn in zip_longest(*of_folder) for pair in turn if pair]


def _lines(file: Path, words: int) -> list[list[str]]:
    """The lines of a list of pairs, in words of which the first few name files. Raises ValueError where there is none,
    where one has fewer words, and where they lead out of the folder."""
    lines = [line.split() for line in _text_lines(file) if line.strip()]
    if not lines or any(len(line) < words for line in lines):
        raise ValueError(f"{file} must have lines of `person.jpg garment.jpg`: give a list with at least one pair")
    for name in (word for line in lines for word in line[:words]):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{file} names {name}, which lies outside the folder: give names of files in it")
    return lines


def _text_lines(file: Path) -> list[str]:
    """Raises ValueError where the file is no text."""
    try:
        return file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read ({error}): give a list in UTF-8") from error


def _files(folder: Path) -> list[str]:
    """The names of the folder's files, hidden ones aside: of any kind, so that no picture is left out quietly."""
    return sorted(path.name for path in folder.glob("[!.]*"))


def _with_garments(garment_of_person: dict[str, str | None], folder: Path) -> list[tuple[str, str]]:
    """The pairs. Raises ValueError where there is no person in the folder, or one without a garment."""
    if not garment_of_person:
        raise ValueError(f"{folder} has no pictures of people, and no list names any: see docs/data.md for the layout")
    if alone := [person for person, garment in garment_of_person.items() if garment is None]:
        example = f"such as {alone[0]}" if alone[1:] else alone[0]
        raise ValueError(
            f"{plural(len(alone), 'person')} of {folder} without a garment of that name, {example}: name "
            "garments as their persons are named, or list the pairs that are complete"
        )
    return list(garment_of_person.items())


def read_categories(file: Path, names: list[str]) -> list[Category]:
    """Each name's category; without the file every garment is an upper-body one, as in VITON-HD."""
    if not file.is_file():
        return ["upper"] * len(names)
    lines = [line.split(maxsplit=1) for line in _text_lines(file)]
    words = dict(line for line in lines if len(line) == 2)
    for name in names:
        if plain(words.get(name, "")) not in CATEGORY_OF:
            raise ValueError(f"{file} calls {name} {words.get(name)}: write upper, lower or full")
    return [CATEGORY_OF[plain(words[name])] for name in names]
