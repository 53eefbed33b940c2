"""Files and folders: written whole or not at all, hashed, listed in manifests by which damage is noticed; and what the
disk has free for them. Imports nothing heavy."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
MODEL_FILES = (".json", ".safetensors", ".txt", ".model")  # configurations, weights, vocabularies
# Of files larger than this (bytes) a fingerprint reads only PLACES parts of PLACE_SIZE bytes.
WHOLE_FILE = 2**28
PLACES, PLACE_SIZE = 64, 2**20


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` for a file or folder that takes its place when the block ends: a reader finds the old one or
    the new one, never a part. Nothing stays of a block that raises.

    Raises OSError where a folder would take the place of one that is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}.partial")
    remove(staging)  # of a killed process with this id
    try:
        yield staging
        staging.replace(path)
    finally:
        remove(staging)


def remove(path: Path) -> None:
    """Deletes the file or folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def save_json(path: Path, content: dict[str, Any]) -> None:
    """Writes the dictionary, indented, with a newline at the end."""
    path.write_text(json.dumps(content, indent=2) + "\n")


def replace_json(path: Path, content: dict[str, Any]) -> None:
    """Writes the dictionary as `replacing` does."""
    with replacing(path) as staging:
        save_json(staging, content)


def read_json(path: Path) -> dict[str, Any]:
    """The dictionary that was written there; an empty one where there is no file. Raises ValueError where the file
    holds something else."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__} in place of names and values")
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}): put a whole copy in its place") from error
    return content


def full_path(name: str | Path) -> Path:
    """The path from the root: without `~`, and where it has a `..`, without that and without links."""
    path = Path(name).expanduser().absolute()
    return path.resolve() if ".." in path.parts else path


def free_disk(folder: Path) -> int:
    """Bytes that are free on the disk where the folder lies, or would lie."""
    return shutil.disk_usage(nearest_existing(folder)).free


def nearest_existing(folder: Path) -> Path:
    """The folder, or where it is not there yet the nearest one that it would lie in."""
    return next(path for path in (folder, *folder.expanduser().absolute().parents) if path.exists())


def write_manifest(folder: Path) -> None:
    """Writes size and sha256 of every file below the folder into its manifest: last, for it says that all is there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    save_json(folder / MANIFEST, {str(path.relative_to(folder)): _facts(path) for path in files})


def damage(folder: Path) -> str | None:
    """What is wrong with the folder, in a clause: no manifest, or the first file that is missing or changed."""
    manifest = _read(folder)
    if manifest is None:
        return f"{folder} is no whole checkpoint (it has no readable {MANIFEST})"
    for name, facts in manifest.items():
        if not (folder / name).is_file():
            return f"{folder / name} is missing"
        try:
            found = _facts(folder / name)
        except OSError as error:
            return f"{folder / name} cannot be read ({error})"
        if found != facts:
            return f"{folder / name} is damaged"
    return None


def is_listed_otherwise(folder: Path, file: Path) -> bool:
    """Whether the folder has a manifest that says of the file something else than what it is now."""
    manifest = _read(folder)
    return manifest is not None and manifest.get(str(file.relative_to(folder))) != _facts(file)


def _read(folder: Path) -> dict[str, dict[str, int | str]] | None:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def file_hash(path: Path) -> str:
    """The file's sha256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_fingerprint(*where: Path) -> str:
    """A hash of the names, sizes and contents of files, and of those in folders that models are loaded from: the same
    on every machine, whatever else was downloaded with them.

    Gigabytes are not read whole: of a large file, 64 evenly spaced megabytes. Other weights differ everywhere.
    """
    digest = hashlib.sha256()
    for root in where:
        paths = sorted(path for path in root.iterdir() if path.suffix in MODEL_FILES) if root.is_dir() else [root]
        assert paths, f"{root} holds no files"
        for path in paths:
            size = path.stat().st_size
            digest.update(f"{path.relative_to(root) if path != root else ''} {size} ".encode())
            with path.open("rb") as file:
                if size <= WHOLE_FILE:
                    digest.update(file.read())
                    continue
                for place in range(PLACES):
                    file.seek((size - PLACE_SIZE) * place // (PLACES - 1))
                    digest.update(file.read(PLACE_SIZE))
    return digest.hexdigest()


def _facts(path: Path) -> dict[str, int | str]:
    return {"size": path.stat().st_size, "sha256": file_hash(path)}
