"""Whom a run was trained on, by the persons' pictures: the same picture is known again in another folder or format."""

import json
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Protocol

from PIL import Image

from tryon.console import progress_bar
from tryon.data.sample import UNREADABLE, SampleSource
from tryon.files import replacing

PERSONS = "persons.json"


class PhotographSource(SampleSource, Protocol):
    """A data set that shows photographs of persons."""

    def person(self, index: int) -> Image.Image:
        """The person of sample `index`, RGB, in its own size. Raises one of UNREADABLE where it is broken."""


def person_digests(data: PhotographSource) -> Iterator[str | None]:
    """For each pair a hash of its person's decoded pixels; None where the picture cannot be read."""

    def digest(index: int) -> str | None:
        try:
            picture = data.person(index)
        except UNREADABLE:
            return None
        return sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()[:16]

    rows = len(data) // data.variants
    with (
        progress_bar(rows, "comparing persons", visible=True) as bar,
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads,
    ):
        for found in threads.map(digest, range(rows)):
            yield found
            bar.update()


def write_persons(run: Path, digests: Iterable[str | None]) -> None:
    """Records whom the run is trained on. digests: see person_digests."""
    with replacing(run / PERSONS) as staging:
        staging.write_text(json.dumps(sorted(filter(None, set(digests))), indent=0) + "\n")


def read_persons(run: Path | None) -> set[str] | None:
    """The digests of those whom the run was trained on; None where it has not recorded them, or there is no run."""
    file = run / PERSONS if run else None
    return set(json.loads(file.read_text())) if file and file.is_file() else None
