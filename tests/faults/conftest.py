"""Counts the faults, and says at the very end how many were survived."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

import pytest

COUNT = {"injected": 0, "survived": 0}


class Faults(Protocol):
    def __call__(self, number: int = 1) -> AbstractContextManager[None]: ...


@pytest.fixture
def faults() -> Faults:
    """A context in which so many faults are injected: they are survived where it ends without an error."""

    @contextmanager
    def inject(number: int = 1) -> Iterator[None]:
        COUNT["injected"] += number
        yield
        COUNT["survived"] += number

    return inject


def pytest_unconfigure() -> None:
    if COUNT["injected"]:
        injected, survived = COUNT["injected"], COUNT["survived"]
        print(f"faults: {injected} injected, {survived} survived, {injected - survived} lost")
