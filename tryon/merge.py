"""Averages the LoRAs of a run's checkpoints into one, after the training.

    python -m tryon.merge runs/<run> [--last N]

What is averaged are the weights that were trained, A and B of each layer, in float32, as a moving average of them does
and as is usual along one training: stochastic weight averaging (Izmailov et al. 2018, arXiv:1803.05407), the average of
the latest checkpoints (Kaddour 2022, arXiv:2209.14981). A layer adds B A x, and the product of the means is not the
mean of the products: they differ by the covariance of A and B over the checkpoints. It is small where these came one
after the other from the same A and B: 2 % on the toy, 0.01 dB of its try-ons (benchmarks/log.md). It is not for LoRAs
of different runs, whose ranks do not correspond. The mean of the products needs as many times the rank as there are
checkpoints.
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from tryon.cli import parse, run_script
from tryon.config import MOST, setting
from tryon.files import replacing
from tryon.flux.lora_check import check_lora
from tryon.flux.lora_header import read_adapter, read_header, verify_lora
from tryon.runs import checkpoints, lora_file, step_of
from tryon.units import plural


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Which checkpoints are averaged."""

    run: str = setting(None, "the run's folder", positional=True)
    last: int | None = setting(None, "average the newest N checkpoints; all if not given", 2, MOST)


def newest_checkpoints(run: Path, last: int | None) -> list[Path]:
    """The run's newest `last` checkpoints, or all, the oldest first. Raises ValueError where there are too few."""
    found, needed = checkpoints(run), last or 2
    if len(found) < needed:
        raise ValueError(f"{run} has {plural(len(found), 'checkpoint')} of the {needed} to average: name another run")
    return found[-last:] if last else found


def merge(averaged: Sequence[Path]) -> Path:
    """Writes the mean of the LoRAs of a run's checkpoints, the oldest first, into a folder beside them, and returns
    that: merged-<first step>-<last step>. The header is the newest one's.

    Raises ValueError where a LoRA is damaged or cannot be right, and where the folder cannot be written.
    """
    files = [lora_file(checkpoint) for checkpoint in averaged]
    mean: dict[str, np.ndarray] = {}
    for file in files:
        verify_lora(file)
        weights = load_file(file)
        check_lora(file, read_adapter(file), weights)
        assert not mean or mean.keys() == weights.keys(), "a run's checkpoints have the same layers"
        mean = {key: mean.get(key, 0) + tensor / np.float32(len(files)) for key, tensor in weights.items()}
    first, last = step_of(averaged[0]), step_of(averaged[-1])
    folder = averaged[0].with_name(f"merged-{first}-{last}")
    try:
        with replacing(lora_file(folder)) as staging:
            save_file(mean, staging, read_header(files[-1]))
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error}): make room on the disk") from error
    return folder


def main(argv: list[str]) -> None:
    description = "Averages the LoRAs of a run's checkpoints."
    (config,) = parse(argv, "python -m tryon.merge", description, MergeConfig)
    averaged = newest_checkpoints(Path(config.run).expanduser(), config.last)
    folder = merge(averaged)
    print(f"the mean of {', '.join(checkpoint.name for checkpoint in averaged)}: {lora_file(folder)}")
    print(f"score it beside them: python evaluate_lora.py --lora {shlex.join(map(str, [*averaged, folder]))}")


if __name__ == "__main__":
    run_script(main)
