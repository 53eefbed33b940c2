"""What a folder of pictures holds, known by the names of its files. Imports nothing heavy."""

from pathlib import Path

from tryon.data.category import Category

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
DRESSCODE_FOLDERS: dict[str, Category] = {"upper_body": "upper", "lower_body": "lower", "dresses": "full"}
MOST_NAMED = 3  # files that a line names
LAYOUTS = "VITON-HD, DressCode, or image/ and cloth/ alone"


def metadata_files(folder: Path) -> list[Path]:
    """The tables of a folder of pictures; none where it is a data set of another kind: saved, or in parquet files."""
    if is_saved(folder) or any(file.name not in METADATA for file in folder.rglob("*.parquet")):
        return []
    return sorted(file for file in folder.rglob("metadata.*") if file.name in METADATA)


def is_saved(folder: Path) -> bool:
    """Whether `datasets.save_to_disk` has written the folder."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def holds_rows(folder: Path) -> bool:
    """Whether the folder is a data set of rows: saved, in parquet files, or pictures with a table."""
    return is_saved(folder) or next(folder.rglob("*.parquet"), None) is not None or bool(metadata_files(folder))


def rows_in_words(folder: Path) -> str:
    """What kind of data set of rows the folder is, with the first names of its files."""
    if is_saved(folder):
        return "a saved data set"
    tables = metadata_files(folder)
    files = [str(file.relative_to(folder)) for file in tables or sorted(folder.rglob("*.parquet"))]
    named = ", ".join([*files[:MOST_NAMED], *(["..."] if len(files) > MOST_NAMED else [])])
    return f"{'pictures with a table' if tables else 'parquet files'} ({named})"


def pairs_in_words(folder: Path) -> str:
    """How a folder for --dataroot is laid out."""
    if is_dresscode(str(folder)):
        return "DressCode"
    return "VITON-HD" if (folder / "train").is_dir() else "a person's own image/ and cloth/"


def holds_pairs(folder: Path) -> bool:
    """Whether the folder is laid out as --dataroot takes it, see LAYOUTS. A table beside pictures counts for more."""
    places = (folder, folder / "train", folder / "test")
    named = is_dresscode(str(folder)) or any((place / "cloth").is_dir() for place in places)
    return named and not holds_rows(folder)


def is_dresscode(dataroot: str) -> bool:
    """Whether the folder is laid out as DressCode is: with a folder for each part of the body."""
    return any((Path(dataroot).expanduser() / part).is_dir() for part in DRESSCODE_FOLDERS)


def run_prefix(dataroot: str) -> str:
    """How the names of runs on such a folder begin."""
    return "dresscode_lora" if is_dresscode(dataroot) else "viton_hd_lora"
