"""Is this machine fit for this run? Every part that depends on a GPU is compared with plain arithmetic
(check_numerics.py), then its memory is measured and its time extrapolated (check_cost.py)."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

import torch

from tryon.config import TrainConfig, first_line
from tryon.files import replace_json
from tryon.flux.attention_kernels import machine
from tryon.flux.compiler import no_compiler
from tryon.flux.memory import dtype_of, resolved
from tryon.training.check_blocks import DEPTH, Row, random_batch, random_transformer
from tryon.training.check_cost import Estimate, memory_rows, plan_row, time_rows
from tryon.training.check_numerics import attention_rows, block_rows, lora_row
from tryon.training.speed import kind_of_step
from tryon.units import duration, plural

CHECKS_FILE = "checks.json"  # in the data cache


def check(
    config: TrainConfig, transformer_config: dict[str, Any], device: torch.device, folder: Path,
    price_per_hour: float | None,
) -> bool:  # fmt: skip
    """Prints a table of what was checked, found and allowed, each line as soon as it is known, then the verdict.

    Returns whether everything that the run depends on is right. Verdict and times are kept for `--plan`.
    price_per_hour: of the machine, in any currency.
    """
    print(f"{'checked':46} {'found':72} {'allowed':>16}", flush=True)
    failed, estimate = [], None
    try:
        for found in check_machine(config, transformer_config, device, folder):
            if isinstance(found, Estimate):
                estimate = found
                continue
            result = {None: "", True: "right", False: "WRONG" if found.needed else "wrong, not used"}[found.right]
            print(f"{found.what:46} {found.found:72} {found.allowed:>16}  {result}".rstrip(), flush=True)
            if found.needed and found.right is False:
                failed.append(found.what)
    except (ValueError, torch.AcceleratorError) as error:  # no kernel is right, or the GPU gave up: nothing more to see
        failed.append(first_line(error))
    remember_check(config, device, estimate, failed)
    if estimate and not config.num_train_epochs:
        seconds, steps = config.max_train_steps * estimate.step, plural(config.max_train_steps, "step")
        cost = (
            "" if price_per_hour is None else f", {seconds / 3600 * price_per_hour:,.2f} at {price_per_hour:g} an hour"
        )
        print(f"{steps}: about {duration(seconds)}{cost}, validation and checkpoints aside")
    print("fit for this run: everything it depends on is right" if not failed
          else f"NOT FIT for this run: {'; '.join(failed)}")  # fmt: skip
    return not failed


def check_machine(
    config: TrainConfig, transformer_config: dict[str, Any], device: torch.device, folder: Path
) -> Iterator[Row | Estimate]:
    """Checks and times, and yields each row as soon as it is known, the estimate last. folder: where checkpoints go.

    config: as for training; what is "auto" is resolved here. Raises ValueError where no attention kernel is right.
    """
    config, asked_to_compile = resolved(config, device), config.compile
    dtype = dtype_of(config)
    yield Row("machine", machine(device))
    yield from attention_rows(config, transformer_config, dtype, device)
    with quiet():
        few = {**transformer_config, "num_layers": DEPTH[0], "num_single_layers": DEPTH[1]}
        base = random_transformer(few, dtype, torch.device("cpu"))
        batch = random_batch(config, transformer_config, dtype, device)
        if asked_to_compile and (problem := no_compiler(device)):
            yield Row("compiled blocks", f"nothing can be compiled here: {problem}")
        yield from block_rows(base, config, batch)
        yield lora_row(base, config, batch)
        yield from memory_rows(base, config, batch)
        yield plan_row(config, transformer_config, device)
        yield from time_rows(base, config, transformer_config, batch, folder)


def remember_check(config: TrainConfig, device: torch.device, estimate: Estimate | None, failed: list[str]) -> None:
    """Keeps the verdict, and the estimate where there is one, in the data cache, by machine and kind of step."""
    file = Path(config.data_cache_dir) / CHECKS_FILE
    known = json.loads(file.read_text()) if file.is_file() else {}
    kind = kind_of_step(resolved(config, device), device)
    seconds = asdict(estimate) if estimate else {}
    known.setdefault(machine(device), {})[kind] = {**seconds, "failed": failed, "date": str(date.today())}
    replace_json(file, known)


def remembered_check(config: TrainConfig, device: torch.device) -> dict[str, Any] | None:
    """What the last `--check` of this machine for such steps left: Estimate's seconds where it came to its end, what
    failed, the date; None where there was none. config: with quantization resolved."""
    file = Path(config.data_cache_dir) / CHECKS_FILE
    if not file.is_file():
        return None
    return json.loads(file.read_text()).get(machine(device), {}).get(kind_of_step(config, device))


@contextmanager
def quiet() -> Iterator[None]:
    """What handles the model says nothing below warnings meanwhile."""
    logger = logging.getLogger("tryon.flux")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
