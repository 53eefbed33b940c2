"""What the benches' command lines share. Imports nothing heavy."""

from collections.abc import Iterable
from typing import Any

from tryon.config import mistakes


def check_settings(config: Any, asked: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError, in one sentence, for every value of the dataclass out of range and every unknown variant."""
    problems = list(mistakes(config))
    if unknown := [name for name in asked if name not in known]:
        problems.append(f"--variants {','.join(unknown)} is not known: name some of {', '.join(known)}")
    if problems:
        raise ValueError("; ".join(problems))
