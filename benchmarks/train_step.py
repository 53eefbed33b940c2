"""Times a training step, in variants, beside the steps that other trainers take. Nothing is downloaded.

    python -m benchmarks.train_step --size toy
    python -m benchmarks.train_step --size full --variants reference_cached,none,compile --steps 5 --json step.json

The toy's models are the pretrained ones; the full size is FLUX-Fill's and FLUX's VAE with seeded random weights.
Pictures, LoRA and noise are seeded too, so that the first losses of all rows compare.

The reference rows have the same dtype, batch and LoRA as ours, diffusers' own blocks, the prompt encoded once, and
torch's own choice of the attention kernel:

    reference_script       as CatVTON-Flux's author trains: picture and masked picture pass through the VAE in every
                           step, every block recomputes its activations, nothing is compiled, and AdamW and the norm of
                           the gradients take one parameter after the other
    reference_cached       as kohya's scripts, ai-toolkit and SimpleTuner are run: latents out of a cache, every
                           block recomputes its activations, nothing is compiled, torch's own choice of AdamW
    reference_cached_none  as those are where nothing is recomputed

TFLOP/s: those of the step's linear layers and attention, without what is recomputed (tryon/training/speed.py), by the
median time of a step; the share is of the data sheet's peak.
"""

import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.step_variants import REFERENCES, VARIANTS
from benchmarks.variants import unknown_variants, versions
from tryon.cli import parse, run_script
from tryon.config import MOST, MOST_AT_ONCE, MOST_GPU_MEMORY, MOST_RANK, setting
from tryon.console import MODEL_LIBRARIES, load_libraries, set_up_logging
from tryon.files import replace_json


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """Which steps are timed, at which size."""

    size: Literal["toy", "full"] = setting("toy", "the toy, or the 12 billion parameters of FLUX-Fill")
    variants: str = setting(
        ",".join([*REFERENCES, "none"]), f"separated by commas, of {', '.join([*REFERENCES, *VARIANTS])}"
    )
    batch: int | None = setting(None, "samples per step; the toy's quick test's 8, or 1, if not given", 1, MOST_AT_ONCE)
    rank: int | None = setting(None, "rank of the LoRA; the profile's if not given", 1, MOST_RANK)
    steps: int = setting(10, "steps that are timed", 1, MOST)
    warm_up: int = setting(3, "steps before them", 1, MOST)
    memory_limit: float | None = setting(
        None, "GB of the GPU that variants may use which name no limit", 1, MOST_GPU_MEMORY
    )
    json: str | None = setting(None, "a file for the rows, written again after each")


def read_settings(argv: list[str]) -> StepConfig:
    """The flags, checked. Raises ValueError, in one sentence, for every mistake."""
    description = "Times a training step in variants, beside the steps of other trainers."
    (config,) = parse(argv, "python -m benchmarks.train_step", description, StepConfig, problems=problems_of)
    return config


def problems_of(config: StepConfig) -> Iterator[str]:
    """What is wrong with the flags beyond single values."""
    return unknown_variants(config.variants.split(","), [*REFERENCES, *VARIANTS])


def main(argv: list[str]) -> None:
    asked = read_settings(argv)
    set_up_logging(is_main_process=True)
    load_libraries(*MODEL_LIBRARIES)
    from benchmarks.models import train_config
    from benchmarks.step_timing import HEADER, Row, free_memory, in_words, make_bench, ratios, time_variant
    from tryon.flux.attention_kernels import machine
    from tryon.training.speed import device_name, peak_of

    config = train_config(asked.size, asked.batch, asked.rank)
    bench = make_bench(config, asked.warm_up, asked.steps)
    device = bench.accelerator.device
    size = f"{config.height} x {2 * config.width}, batch {config.train_batch_size}, rank {config.lora_rank}"
    result: dict[str, Any] = {
        "machine": machine(device), "versions": versions(), "size": size,
        "rows": [], "failed": {}, "ratios": {},
    }  # fmt: skip
    print(f"{machine(device)}; {size}, {config.mixed_precision}, {bench.steps} steps\n{HEADER}", flush=True)
    rows: list[Row] = []
    for name in asked.variants.split(","):
        try:
            rows.append(time_variant(name, config, bench, asked.memory_limit))
        except Exception as error:  # the others' figures are wanted all the same; it is said, and fails the command
            traceback.print_exc()
            result["failed"][name] = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"{name}: failed: {result['failed'][name]}", flush=True)
        else:
            print(in_words(rows[-1], peak_of(device_name(device))), flush=True)
        result["rows"] = [{**vars(row), "median": row.median} for row in rows]
        result["ratios"] = ratios(rows)
        if asked.json:
            replace_json(Path(asked.json), result)
        free_memory(bench)

    losses = {row.name: row.losses[0] for row in rows}
    for ours, beside in ratios(rows).items():
        for reference, ratio in beside.items():
            apart = abs(losses[ours] / losses[reference] - 1)
            print(f"{ours} is {ratio:.2f} times as fast as {reference}; first losses differ by {apart:.1e}")
    if failed := result["failed"]:
        raise ValueError(f"there are no figures of {', '.join(failed)}: what went wrong is said above")


if __name__ == "__main__":
    run_script(main)
