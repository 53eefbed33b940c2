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


def used_parts(
    train: list[CategoryPair], validation: list[CategoryPair], config: TrainConfig
) -> tuple[list[CategoryPair], list[CategoryPair]]:
    """What a run uses of a data set's parts: no pair that --base_categories leaves to the model without the LoRA, and
    no more than its limits. Pairs are held back before, so that runs with and without it hold back the same ones.
    Raises ValueError where nothing is left of one part."""
    of_base, used = base_categories(config), []
    for what, part in (("training", train), ("validation", validation)):
        used.append([pair for pair in part if pair.category not in of_base])
        if part and not used[-1]:
            raise ValueError(
                f"all of {plural(len(part), f'{what} pair')} are of --base_categories {config.base_categories}: give "
                "others too, or leave one out"
            )
    if left := len(train) + len(validation) - sum(map(len, used)):
        all_of = plural(len(train) + len(validation), "pair")
        logger.info("%d of %s left out: --base_categories %s", left, all_of, config.base_categories)
    return used[0][: config.max_train_samples], used[1][: config.max_validation_samples]


def split_by_item(
    pairs: list[CategoryPair], item_of: Callable[[CategoryPair], str], config: TrainConfig
) -> tuple[list[CategoryPair], list[CategoryPair]]:
    """Training and validation pairs that share no item: a tenth of the items is held back, but no more of them than
    validation samples are wanted, and at least one; more only until one is not left out by --base_categories. item_of:
    the name of a pair's item.

    Items are ordered by a hash of their name and the seed; limits take the first of this order. One view of each
    held-back item comes before the second of any, so that a small validation set still has many items. Raises
    ValueError where all pairs are of one item.
    """
    items: dict[str, list[CategoryPair]] = {}
    for pair in pairs:
        items.setdefault(item_of(pair), []).append(pair)
    order = sorted(items, key=lambda item: hashlib.sha256(f"{config.seed} {item}".encode()).digest())
    if len(order) < 2:
        raise ValueError(
            "the data set has a single item (a garment, or a pid): give at least two, one is held back for validation"
        )
    of_base = base_categories(config)
    used = (place for place, item in enumerate(order) if any(pair.category not in of_base for pair in items[item]))
    tenth = min(config.max_validation_samples, len(order) // 10)
    held_back = min(max(tenth, next(used, 0) + 1), len(order) - 1)
    by_turns = zip_longest(*(items[item] for item in order[:held_back]))
    validation = [pair for turn in by_turns for pair in turn if pair]
    train = [pair for item in order[held_back:] for pair in items[item]]
    return train, validation
