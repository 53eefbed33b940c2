"""Which samples make up each batch: a pure function of the seed and the position in the run."""

from collections.abc import Iterator
from functools import partial

import numpy as np
from accelerate import Accelerator
from torch.utils.data import DataLoader

from tryon.cache import LatentData
from tryon.config import TrainConfig
from tryon.encode import collate
from tryon.sample import Category, PromptEmbedding


def load_batches(
    config: TrainConfig,
    data: LatentData,
    prompts: dict[Category, PromptEmbedding],
    accelerator: Accelerator,
    first_step: int,
    max_steps: int,
) -> DataLoader:
    """This process's share of every global batch from `first_step` to the end, as FillBatches on the CPU."""
    per_process = config.train_batch_size
    global_batch = per_process * accelerator.num_processes
    first_batch = first_step * config.gradient_accumulation_steps
    batches = (max_steps - first_step) * config.gradient_accumulation_steps
    order = sample_order(len(data), config.seed, first_batch * global_batch)
    own = slice(accelerator.process_index * per_process, (accelerator.process_index + 1) * per_process)
    return DataLoader(
        data,
        batch_sampler=[[next(order) for _ in range(global_batch)][own] for _ in range(batches)],
        collate_fn=partial(collate, prompts=prompts),
        num_workers=config.dataloader_num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )


def sample_order(count: int, seed: int, start: int) -> Iterator[int]:
    """The endless stream of sample indices from position `start`: epoch after epoch, each shuffled by (seed, epoch)."""
    epoch, offset = divmod(start, count)
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(count)
        yield from order[offset:].tolist()
        epoch, offset = epoch + 1, 0
