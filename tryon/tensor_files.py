"""Tensors in safetensors files that are there whole or not at all, and whose damage is noticed."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tryon.console import progress_bar
from tryon.files import replacing

logger = logging.getLogger(__name__)

# Bump when the way from picture to latents or from prompt to embedding changes: all files are made again.
CACHE_VERSION = 2


class DamagedFile(ValueError):
    """A file of the cache whose content is not what was written."""


def content_key(*parts: object) -> str:
    """A hash of the parts, told apart by their JSON form."""
    return sha256(json.dumps([CACHE_VERSION, *parts]).encode()).hexdigest()


def write_whole(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes the file, whole or not at all. Raises ValueError where there is no room for it."""
    try:
        with replacing(path) as staging:
            save_file(tensors, staging, {**(metadata or {}), "sha256": _digest(tensors)})
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} cannot be written ({error}): make room, or put the cache elsewhere with --data_cache_dir; what is "
            "there already stays, and the next start goes on from there"
        ) from error


def read_whole(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata that write_whole wrote. Raises DamagedFile where the file holds something else."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
    except SafetensorError as error:
        raise DamagedFile(f"the cached {path} is damaged ({error}): delete it and start again") from error
    if metadata.get("sha256") != _digest(tensors):
        raise DamagedFile(f"the cached {path} is damaged (its content has changed): delete it and start again")
    return tensors, metadata


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = sha256()
    for name in sorted(tensors):
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def drop_damaged(paths: list[Path], what: str) -> None:
    """Reads every file that is there, and removes those that are damaged: they are encoded again."""
    there = [path for path in dict.fromkeys(paths) if path.exists()]

    def is_damaged(path: Path) -> bool:
        try:
            read_whole(path)
        except DamagedFile:
            return True
        return False

    damaged = 0
    # Threads, as reading and hashing wait for each other, and not for Python.
    with ThreadPoolExecutor() as pool, progress_bar(len(there), f"checking {what}", visible=True) as bar:
        for path, bad in zip(there, pool.map(is_damaged, there), strict=True):
            if bad:
                path.unlink(missing_ok=True)
            damaged += bad
            bar.update()
    if damaged:
        logger.warning("%d of %d encoded %s were damaged and are encoded again", damaged, len(there), what)
