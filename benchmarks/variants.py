"""What the benches' command lines share. Imports nothing heavy."""

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tryon.config import PROJECT, mistakes


def check_settings(config: Any, asked: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError, in one sentence, for every value of the dataclass out of range and every unknown variant."""
    problems = list(mistakes(config))
    if unknown := [name for name in asked if name not in known]:
        problems.append(f"--variants {','.join(unknown)} is not known: name some of {', '.join(known)}")
    if problems:
        raise ValueError("; ".join(problems))


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
