"""Which pairs of a data set are left out, which are held back for validation where it has no split of its own, and
whether the parts are large enough. Imports nothing heavy."""

import hashlib
import logging
from collections.abc import Callable
from itertools import zip_longest
from typing import Protocol, TypeVar

from tryon.config import TrainConfig, base_categories
from tryon.data.category import Category
from tryon.units import plural

logger = logging.getLogger(__name__)

Pair = TypeVar("Pair")
SMALL = 100  # pairs; with fewer a training learns little


def few_pairs(training: int, validation: int) -> list[str]:
    """A warning for each part that has few pairs."""
    warnings = [f"only {plural(training, 'pair')} to train on"] if training < SMALL else []
    return warnings + (["only 1 pair to validate on, whose loss and scores say little"] if validation == 1 else [])


class OfCategory(Protocol):
    """What has a garment's category."""

    @property
    def category(self) -> Category: ...


CategoryPair = TypeVar("CategoryPair", bound=OfCategory)


def trained_pairs(pairs: list[CategoryPair], config: TrainConfig) -> list[CategoryPair]:
    """The pairs without those that --base_categories leaves to the model without the LoRA. Raises ValueError where none
    is left."""
    of_base = base_categories(config)
    kept = [pair for pair in pairs if pair.category not in of_base]
    if not kept:
        raise ValueError(
            f"all of {plural(len(pairs), 'pair')} are of --base_categories {config.base_categories}: leave one out"
        )
    if len(kept) < len(pairs):
        logger.info(
            "%d of %s left out: --base_categories %s", len(pairs) - len(kept), plural(len(pairs), "pair"),
            config.base_categories,
        )  # fmt: skip
    return kept


def split_by_item(
    pairs: list[Pair], item_of: Callable[[Pair], str], seed: int, max_train: int | None, max_validation: int
) -> tuple[list[Pair], list[Pair]]:
    """Training and validation pairs that share no item: a tenth of the items is held back, but no more of them than
    validation samples are wanted, and at least one. item_of: the name of a pair's item.

    Items are ordered by a hash of their name and the seed; from this order the limits take the first. One view of each
    held-back item comes before the second of any, so that a small validation set still has many items. Raises
    ValueError where all pairs are of one item.
    """
    items: dict[str, list[Pair]] = {}
    for pair in pairs:
        items.setdefault(item_of(pair), []).append(pair)
    order = sorted(items, key=lambda item: hashlib.sha256(f"{seed} {item}".encode()).digest())
    if len(order) < 2:
        raise ValueError(
            "the data set has a single item (a garment, or a pid): give at least two, one is held back for validation"
        )
    held_back = max(1, min(max_validation, len(order) // 10))
    by_turns = zip_longest(*(items[item] for item in order[:held_back]))
    validation = [pair for turn in by_turns for pair in turn if pair]
    train = [pair for item in order[held_back:] for pair in items[item]]
    return train[:max_train], validation[:max_validation]
