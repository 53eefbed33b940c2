"""Which try-ons are asked for: a line each of a CSV file, and the files of their results. Imports nothing heavy."""

import csv
import io
import logging
from dataclasses import dataclass
from pathlib import Path

from tryon.data.category import Category

logger = logging.getLogger(__name__)

PICTURE_KINDS = (".png", ".jpg", ".jpeg", ".webp")
COLUMNS = {"person": True, "garment": True, "mask": False, "category": False, "output": True}  # whether each is needed
SEPARATORS = ",;\t"  # of cells: which one a spreadsheet writes depends on the country


@dataclass(frozen=True)
class Request:
    """One try-on as it was asked for."""

    person: Path
    garment: Path
    mask: Path | None
    worn: Path | None
    category: Category | None
    output: Path


def results_of(output: Path, seeds: range) -> list[Path]:
    """The files of a try-on's results, in their order: several are named after their seeds."""
    return [output if len(seeds) == 1 else output.with_stem(f"{output.stem}-seed{seed}") for seed in seeds]


def unwritable(what: str, path: Path) -> list[str]:
    """Why no picture can be written there."""
    problems = []
    if not path.expanduser().absolute().parent.is_dir():
        problems.append(f"{what} {path} lies in a folder that does not exist")
    if path.suffix.lower() not in PICTURE_KINDS:
        problems.append(f"{what} {path} must end in one of {', '.join(PICTURE_KINDS)}")
    return problems


def read_pairs(path: Path, seeds: range, output_grid: Path | None) -> list[tuple[int, dict[str, str]]]:
    """The lines of a CSV file of try-ons, with their numbers; its first line names COLUMNS, between SEPARATORS. seeds:
    of each try-on's results. output_grid: a file that is written too. Raises ValueError for what is wrong with the
    whole file."""
    try:
        text = path.read_bytes().decode("utf-8-sig")  # as spreadsheets write it
        header = next(iter(text.splitlines()), "")
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(SEPARATORS, key=header.count))
        columns = set(reader.fieldnames or [])
        lines = [(reader.line_num, line) for line in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"--pairs {path} cannot be read ({error}): give a CSV file in UTF-8") from error
    if missing := [name for name, needed in COLUMNS.items() if needed and name not in columns]:
        raise ValueError(
            f"--pairs {path} has no column {', '.join(missing)}: its first line names the columns, between commas, "
            "semicolons or tabs"
        )
    if unknown := sorted(columns - COLUMNS.keys()):
        raise ValueError(f"--pairs {path} has the column {unknown[0]}: there may be {', '.join(COLUMNS)}")
    if not lines:
        raise ValueError(f"--pairs {path} has no line below its first: give a try-on a line")
    _check_outputs(path, lines, seeds, output_grid)
    return lines


def _check_outputs(path: Path, lines: list[tuple[int, dict[str, str]]], seeds: range, output_grid: Path | None) -> None:
    """Raises ValueError where a line writes a file that is read, or written by something else too."""
    users = {path.resolve(): "--pairs"} | ({output_grid.resolve(): "--output_grid"} if output_grid else {})
    written = []
    for number, line in lines:
        for name in ("person", "garment", "mask", "output"):
            if cell := (line.get(name) or "").strip():
                file = path.parent / Path(cell).expanduser()
                if name != "output":
                    users.setdefault(file.resolve(), f"line {number}")
                elif file.name:
                    written += [(number, each.resolve()) for each in results_of(file, seeds)]
    for number, file in written:
        if user := users.get(file):
            raise ValueError(
                f"line {number} of --pairs {path} writes {file}, which {user} reads or writes too: give each line an "
                "output of its own"
            )
        users[file] = f"line {number}"


def requests_of(lines: list[tuple[int, dict[str, str]]], folder: Path, category: Category | None) -> dict[int, Request]:
    """The try-ons of the lines of read_pairs, by number. Warns of each line that asks for none. Makes the folders of
    their outputs. folder: what paths are taken from; category: where a line names none."""
    requests = {}
    for number, line in lines:
        try:
            requests[number] = _request_of_line(line, folder, category)
        except ValueError as error:
            logger.warning("line %d: %s", number, error)
    return requests


def _request_of_line(line: dict[str, str], folder: Path, category: Category | None) -> Request:
    """Raises ValueError for what is missing or wrong."""
    if None in line or None in line.values():  # as DictReader tells of a line that is longer or shorter
        raise ValueError(
            "it has not as many cells as the first line: a path that holds the separator wants quotation marks"
        )
    cells = {name: text.strip() for name, text in line.items()}
    if empty := [name for name, needed in COLUMNS.items() if needed and not cells[name]]:
        raise ValueError(f"its {empty[0]} is empty: name a file")
    paths = {
        name: folder / Path(cells[name]).expanduser() if cells.get(name) else None
        for name in ("person", "garment", "mask", "output")
    }
    try:
        paths["output"].parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the folder of its output {paths['output']} cannot be made ({error.strerror})") from error
    if problems := unwritable("its output", paths["output"]):
        raise ValueError(problems[0])
    return Request(**paths, worn=None, category=cells.get("category") or category)
