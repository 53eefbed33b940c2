"""Pictures in folders beside a table that names them, as the hub's `imagefolder` has them: what can be said of them
before they are read. Imports nothing heavy."""

from pathlib import Path

from tryon.units import plural

# What the hub calls the folders of other splits than the training's.
HELD_BACK = {"validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation"}


def is_held_back(file: Path, folder: Path) -> bool:
    """Whether a table lies in a folder of its own for validation or tests."""
    return bool({part.lower() for part in file.relative_to(folder).parts[:-1]} & HELD_BACK)


def check_metadata(file: Path) -> None:
    """Raises ValueError where a table cannot be read, lacks a column or rows, or names a picture that is not there or
    lies outside the table's folder."""
    from pyarrow import ArrowException, csv, json, parquet
    from pyarrow.types import is_binary

    read = {".csv": csv.read_csv, ".jsonl": json.read_json, ".parquet": parquet.read_table}[file.suffix]
    try:
        table = read(file)
    except (ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read ({str(error).splitlines()[0]}): check the file") from error
    columns = [name for name in table.column_names if name == "file_name" or name.endswith("_file_name")]
    if "mask_file_name" not in columns or not {"file_name", "image_file_name", "images_file_name"} & {*columns}:
        commas = ", between commas," if file.suffix == ".csv" else ""  # a spreadsheet may write semicolons
        raise ValueError(
            f"{file} has the columns {', '.join(table.column_names)}: needed are{commas} the person as file_name and "
            "the garment's region as mask_file_name; used if there: cloth_file_name, cloth_type, pid, pose, caption"
        )
    if twice := [name for name in columns if table.column_names.count(name) > 1]:
        raise ValueError(f"{file} has the column {twice[0]} twice: leave one of them out")
    if not table.num_rows:
        raise ValueError(f"{file} has no row below its first: add one for each picture of a person")
    if any(is_binary(table.schema.field(name).type) for name in columns):
        raise ValueError(f"{file} names pictures in another encoding than UTF-8: save it in UTF-8")
    named = [str(name) for column in columns for name in table[column].to_pylist() if name]
    if outside := [name for name in named if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise ValueError(f"{file} names {outside[0]}, which lies outside the folder: give names of files in it")
    if missing := [name for name in named if not (file.parent / name).is_file()]:
        more = f", like {len(missing) - 1} more of its {plural(len(named), 'picture')}" if missing[1:] else ""
        raise ValueError(f"{file} names {missing[0]}, which is not there{more}: add what is missing, or take rows out")
