"""Numbers in words: sizes in GB of 10^9 bytes, durations, and counts of things."""

from collections.abc import Iterable
from math import floor

GB = 10**9


def gigabytes(size: float) -> str:
    """A number of bytes in words: "13.9 GB", below 1 GB "0.87 GB", below 0.01 GB "under 0.01 GB"."""
    if 0 < size < 0.01 * GB:
        return "under 0.01 GB"
    return f"{size / GB:,.{2 if size < GB else 1}f} GB"


def duration(seconds: float) -> str:
    """Seconds in words: "2.1 h", below an hour "4.0 min", below a minute "17 s"."""
    if seconds < 60:
        return f"{seconds:.2g} s"
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def plural(count: int, thing: str) -> str:
    """A count in words: "1 pair", "0 pairs", "1,200 pairs"."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def gigabytes_that_add_up(sizes: Iterable[float]) -> list[str]:
    """Each number of bytes and, last, their sum, in words with one decimal, so that what is shown adds up.

    The sum is rounded as usual. The parts are rounded down, and those that lost most by it up, until they add up: each
    is less than 0.1 GB off.
    """
    tenths = [10 * size / GB for size in sizes]
    parts, total = [floor(each) for each in tenths], round(sum(tenths))
    by_loss = sorted(range(len(parts)), key=lambda index: parts[index] - tenths[index])
    for index in by_loss[: total - sum(parts)]:
        parts[index] += 1
    return [f"{each / 10:,.1f} GB" for each in (*parts, total)]
