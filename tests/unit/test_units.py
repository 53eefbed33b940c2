"""Numbers in words."""

from decimal import Decimal

import numpy as np
import pytest

from conftest import PROJECT
from tryon.units import duration, gigabytes, gigabytes_that_add_up, plural


def test_sizes_are_in_gb_of_ten_to_the_ninth() -> None:
    sizes = [0, 3_000_000, 28_600_000, 867_000_000, 2**30, 13_949_000_000, 1_300_000_000_000]
    shown = ["0.00 GB", "under 0.01 GB", "0.03 GB", "0.87 GB", "1.1 GB", "13.9 GB", "1,300.0 GB"]
    assert [gigabytes(size) for size in sizes] == shown


def test_durations_have_the_unit_that_reads_well() -> None:
    assert [duration(seconds) for seconds in (1.7, 17.1, 240, 7700)] == ["1.7 s", "17 s", "4.0 min", "2.1 h"]


@pytest.mark.parametrize("seed", range(20))
def test_rounded_parts_add_up_to_the_rounded_sum(seed: int) -> None:
    sizes = (np.random.default_rng(seed).random(6) * 10 ** np.random.default_rng(seed).uniform(7, 11, 6)).tolist()
    *parts, total = [Decimal(shown.removesuffix(" GB").replace(",", "")) for shown in gigabytes_that_add_up(sizes)]
    assert sum(parts) == total == round(Decimal(sum(sizes)) / 10**9, 1)
    assert all(abs(float(part) - size / 1e9) < 0.1 for part, size in zip(parts, sizes, strict=True))


def test_no_other_unit_is_shown() -> None:
    for path in [*PROJECT.glob("*.py"), *PROJECT.glob("tryon/**/*.py"), *PROJECT.glob("deepfashion_training/*.py")]:
        assert "format_sizeof" not in path.read_text(), f"{path}: tryon.units.gigabytes shows sizes"


def test_one_thing_is_not_many() -> None:
    assert [plural(count, "pair") for count in (0, 1, 1200)] == ["0 pairs", "1 pair", "1,200 pairs"]
