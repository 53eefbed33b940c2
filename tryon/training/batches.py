"""Which samples make up each batch: a pure function of the seed and the position in the run."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice

import numpy as np
from accelerate import Accelerator
from torch.utils.data import DataLoader

from tryon.config import TrainConfig
from tryon.data.category import CATEGORIES, Category
from tryon.data.sample import PromptEmbedding
from tryon.flux.encode import collate
from tryon.signals import ignore_in_worker
from tryon.training.latent_cache import LatentData

POWER = {"none": 1.0, "sqrt": 0.5, "equal": 0.0}  # a category with n rows gets a share proportional to n ** POWER


def load_batches(
    config: TrainConfig, data: LatentData, prompts: dict[str, PromptEmbedding], accelerator: Accelerator,
    first_step: int, max_steps: int,
) -> DataLoader:  # fmt: skip
    """This process's share of every global batch from `first_step` to the end, as FillBatches on the CPU."""
    per_process = config.train_batch_size
    global_batch = per_process * accelerator.num_processes
    first_batch = first_step * config.gradient_accumulation_steps
    batches = (max_steps - first_step) * config.gradient_accumulation_steps
    start = first_batch * global_batch
    order = sample_order(data, config.balance, config.seed, start)
    if data.try_offs:
        order = mix_in_try_offs(order, data, config.try_off_share, start)
    own = slice(accelerator.process_index * per_process, (accelerator.process_index + 1) * per_process)
    return DataLoader(
        data,
        batch_sampler=[[next(order) for _ in range(global_batch)][own] for _ in range(batches)],
        collate_fn=partial(collate, prompts=prompts),
        num_workers=config.dataloader_num_workers,
        worker_init_fn=ignore_in_worker,
        pin_memory=accelerator.device.type == "cuda",
    )


def sampled_in_step(data: LatentData, config: TrainConfig, step: int, processes: int) -> list[str]:
    """Names of the samples that optimiser step `step` (from 0) takes, in all processes together."""
    per_step = config.train_batch_size * config.gradient_accumulation_steps * processes
    order = sample_order(data, config.balance, config.seed, step * per_step)
    return [data.names[index % len(data.names)] for index in islice(order, per_step)]


def count_sampled(
    data: LatentData, balance: str, seed: int, first_step: int, steps: int, per_step: int
) -> dict[Category, int]:
    """How many samples of each category the steps from first_step to `steps` take, in all processes together."""
    order = sample_order(data, balance, seed, first_step * per_step)
    counts = Counter(
        data.categories[index % len(data.categories)] for index in islice(order, (steps - first_step) * per_step)
    )
    return {category: counts[category] for category in CATEGORIES if counts[category]}


def sampled_per_epoch(categories: list[Category], balance: str) -> dict[Category, int]:
    """How many samples of each category an epoch takes, which has as many samples as there are rows.

    Shares are proportional to n ** POWER[balance]; what rounding leaves goes to the largest remainders.
    """
    rows = {category: categories.count(category) for category in CATEGORIES if category in categories}
    weights = {category: count ** POWER[balance] for category, count in rows.items()}
    exact = {category: len(categories) * weight / sum(weights.values()) for category, weight in weights.items()}
    drawn = {category: int(share) for category, share in exact.items()}
    by_remainder = sorted(exact, key=lambda category: drawn[category] - exact[category])
    for category in by_remainder[: len(categories) - sum(drawn.values())]:
        drawn[category] += 1
    return drawn


def mix_in_try_offs(order: Iterator[int], data: LatentData, share: float, start: int) -> Iterator[int]:
    """The samples of sample_order from position `start`, with try-offs of the same pairs in the place of a share of
    them, evenly spread over the positions; a pair that has none stays as it is."""
    rows = len(data.categories)
    for position, index in enumerate(order, start):
        row = index % rows
        try_off = len(data) - rows + row
        has_one = data.files[try_off] != data.files[row]
        yield try_off if has_one and int((position + 1) * share) > int(position * share) else index


def sample_order(data: LatentData, balance: str, seed: int, start: int) -> Iterator[int]:
    """The endless stream of sample indices from position `start`.

    An epoch takes from each category what `sampled_per_epoch` says, in an order shuffled by (seed, epoch). All rows of
    a category, shuffled by (seed, category, round), come once before any comes again; the next round takes the next
    variant, try-offs aside.
    """
    rows_of = {category: [row for row, other in enumerate(data.categories) if other == category]
               for category in dict.fromkeys(data.categories)}  # fmt: skip
    per_epoch = sampled_per_epoch(data.categories, balance)
    turns = [category for category, count in per_epoch.items() for _ in range(count)]
    rows, variants = len(data.categories), len(data) // len(data.categories) - data.try_offs
    shuffled: dict[Category, tuple[int, np.ndarray]] = {}

    epoch, offset = divmod(start, rows)
    while True:
        drawn = {category: epoch * count for category, count in per_epoch.items()}
        for position, turn in enumerate(np.random.default_rng([seed, epoch]).permutation(len(turns)).tolist()):
            category = turns[turn]
            again, place = divmod(drawn[category], len(rows_of[category]))
            drawn[category] += 1
            if position < offset:
                continue
            if shuffled.get(category, (None,))[0] != again:
                rng = np.random.default_rng([seed, CATEGORIES.index(category), again])
                shuffled[category] = again, rng.permutation(rows_of[category])
            yield again % variants * rows + int(shuffled[category][1][place])
        epoch, offset = epoch + 1, 0
