"""The order of the samples: a pure function of seed and position, balanced over the categories."""

from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest

from tryon.data.category import Category
from tryon.training.batches import count_sampled, mix_in_try_offs, sample_order, sampled_per_epoch
from tryon.training.latent_cache import LatentData

SKEWED: list[Category] = ["upper"] * 16 + ["lower"] * 4 + ["full"] * 1


def data(categories: list[Category], variants: int = 1) -> LatentData:
    return LatentData(
        [Path(str(index)) for index in range(variants * len(categories))],
        categories,
        [f"row {row}" for row in range(len(categories))],
    )


def test_as_they_come_every_epoch_has_every_row() -> None:
    positions = list(islice(sample_order(data(SKEWED), "none", 0, 0), 4 * len(SKEWED)))
    epochs = [positions[start : start + len(SKEWED)] for start in range(0, len(positions), len(SKEWED))]
    assert all(sorted(epoch) == list(range(len(SKEWED))) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


@pytest.mark.parametrize(
    ("balance", "expected"),
    [("none", (16, 4, 1)), ("sqrt", (12, 6, 3)), ("equal", (7, 7, 7))],
)
def test_shares_of_the_categories(balance: str, expected: tuple[int, ...]) -> None:
    assert sampled_per_epoch(SKEWED, balance) == dict(zip(("upper", "lower", "full"), expected, strict=True))
    positions = list(islice(sample_order(data(SKEWED), balance, 0, 0), 2 * len(SKEWED)))
    counts = Counter(SKEWED[position] for position in positions)
    assert [counts[name] for name in ("upper", "lower", "full")] == [2 * count for count in expected]


def test_what_rounding_leaves_goes_to_the_largest_remainders() -> None:
    assert sampled_per_epoch(["upper"] * 3 + ["lower"], "sqrt") == {"upper": 3, "lower": 1}  # of 2.54 and 1.46
    assert sampled_per_epoch(["full"], "sqrt") == {"full": 1}


def test_no_row_comes_again_before_all_of_its_category_came() -> None:
    positions = list(islice(sample_order(data(SKEWED), "equal", 3, 0), 16 * len(SKEWED)))
    for category in ("upper", "lower"):
        rows = [row for row, other in enumerate(SKEWED) if other == category]
        drawn = [position for position in positions if SKEWED[position] == category]
        rounds = [drawn[start : start + len(rows)] for start in range(0, len(drawn) - len(rows) + 1, len(rows))]
        assert len(rounds) > 5 and all(sorted(each) == rows for each in rounds)


def test_draws_are_counted_over_any_steps() -> None:
    assert count_sampled(data(SKEWED), "sqrt", 0, 0, 21, per_step=2) == {"upper": 24, "lower": 12, "full": 6}
    parts = [count_sampled(data(SKEWED), "sqrt", 0, first, last, per_step=4) for first, last in ((0, 3), (3, 10))]
    whole = count_sampled(data(SKEWED), "sqrt", 0, 0, 10, per_step=4)
    assert {name: sum(part.get(name, 0) for part in parts) for name in whole} == whole


@pytest.mark.parametrize("balance", ["none", "sqrt", "equal"])
def test_a_start_in_the_middle_goes_on_exactly(balance: str) -> None:
    source = data(SKEWED, variants=2)
    whole = list(islice(sample_order(source, balance, 5, 0), 100))
    for start in (1, 20, 21, 22, 63, 77):
        assert list(islice(sample_order(source, balance, 5, start), 100 - start)) == whole[start:]
    assert whole != list(islice(sample_order(source, balance, 6, 0), 100))


def test_each_round_takes_the_next_variant() -> None:
    positions = list(islice(sample_order(data(SKEWED, variants=3), "none", 0, 0), 6 * len(SKEWED)))
    for number in range(6):
        epoch = positions[number * len(SKEWED) : (number + 1) * len(SKEWED)]
        assert {position // len(SKEWED) for position in epoch} == {number % 3}


def test_a_share_of_the_samples_are_try_offs_of_the_same_pairs() -> None:
    """Two variants and the try-offs, of which the last row has none: there the first variant's file comes again."""
    source, rows = data(SKEWED, variants=3), len(SKEWED)
    source = replace(source, files=[*source.files[:-1], source.files[rows - 1]], try_offs=True)
    plain = list(islice(sample_order(source, "none", 0, 0), 4 * rows))
    assert plain == list(islice(sample_order(data(SKEWED, variants=2), "none", 0, 0), 4 * rows))

    def mixed(share: float, start: int = 0) -> list[int]:
        return list(islice(mix_in_try_offs(sample_order(source, "none", 0, start), source, share, start), 84 - start))

    assert mixed(0) == plain
    every = mixed(1)
    assert all(index == 2 * rows + own % rows for index, own in zip(every, plain, strict=True) if own % rows < rows - 1)
    assert [own for index, own in zip(every, plain, strict=True) if index == own] == [20, 41, 20, 41]
    some = mixed(0.25)
    places = [place for place, (index, own) in enumerate(zip(some, plain, strict=True)) if index != own]
    assert set(places) <= set(range(3, 84, 4)) and len(places) >= 21 - 4
    assert all(some[place] in (every[place], plain[place]) for place in range(84))
    assert mixed(0.25, start=37) == some[37:]
