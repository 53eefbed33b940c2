"""What the benches' command lines share. Imports nothing heavy."""

from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version

from tryon.config import PROJECT


def unknown_variants(asked: Iterable[str], known: Iterable[str]) -> Iterator[str]:
    """A clause that names the variants which were asked for and do not exist."""
    if unknown := [name for name in asked if name not in known]:
        yield f"--variants {','.join(unknown)} is not known: name some of {', '.join(known)}"


def versions() -> dict[str, str]:
    """What is installed of the packages that requirements.txt names; "none" where one is not."""
    lines = (PROJECT / "requirements.txt").read_text().splitlines()
    names = [line.split("==")[0] for line in lines if not line.startswith("#")]
    return {name: _version(name) for name in names}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
