"""Times a try-on, in variants, beside diffusers' stock pipeline, and says how far each one's picture is from the eager
one. Nothing is downloaded.

    python -m benchmarks.inference --size toy --denoising_steps 8 --variants none,first_block:0.1,compile
    python -m benchmarks.inference --size full --variants none,compile,compile_first_block:0.1 --json inference.json

    stock   FluxFillPipeline as its documentation uses it: eager, the LoRA in layers of its own, the VAE in one piece
    eager   our pipeline in the same way: its pictures are those that the others' are compared with
    none    the LoRA folded into the weights, as in all others whose weights are neither quantised nor offloaded

All get the same prompt embeddings, as text encoders run once a session in ours. Timed pictures differ in person,
garment and noise. PSNR is taken inside the mask, since nothing else is repainted, and the lowest is printed; stock has
none, as it starts from other noise. `all blocks` is in how many denoising steps of a picture all blocks ran; `truth`
the mean PSNR to the person as it was drawn.

The toy's models are the trained ones, its pictures drawn. The full size has random weights and pictures of noise: there
PSNR tells whether a variant computes the same, but neither what a cache costs in quality nor how often it hits, which
follows from trained weights. The LoRA is random and seeded in both, and small, so that the toy still dresses people.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.inference_variants import ALWAYS, VARIANTS
from benchmarks.variants import unknown_variants
from tryon.cli import parse, run_script
from tryon.config import MOST, MOST_DENOISING, setting
from tryon.console import MODEL_LIBRARIES, load_libraries, set_up_logging
from tryon.files import replace_json


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """Which try-ons are timed, at which size."""

    size: Literal["toy", "full"] = setting("toy", "the toy, or the 12 billion parameters of FLUX-Fill")
    variants: str = setting("none", f"separated by commas, of {', '.join(VARIANTS)}")
    denoising_steps: int = setting(30, "denoising steps of a picture", 1, MOST_DENOISING)
    pictures: int = setting(3, "pictures that are timed", 1, MOST)
    json: str | None = setting(None, "a file for the rows, written again after each")


def read_settings(argv: list[str]) -> InferenceConfig:
    """The flags, checked. Raises ValueError, in one sentence, for every mistake."""
    description = "Times a try-on in variants, beside diffusers' stock pipeline."
    (config,) = parse(argv, "python -m benchmarks.inference", description, InferenceConfig, problems=problems_of)
    return config


def problems_of(config: InferenceConfig) -> Iterator[str]:
    """What is wrong with the flags beyond single values."""
    return unknown_variants(config.variants.split(","), VARIANTS)


def main(argv: list[str]) -> None:
    asked = read_settings(argv)
    set_up_logging(is_main_process=True)
    load_libraries(*MODEL_LIBRARIES)
    import torch

    from benchmarks.inference_timing import HEADER, Work, in_words, prompt_of, samples_of, time_variants
    from benchmarks.models import train_config
    from tryon.training.speed import device_name

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = train_config(asked.size, batch=asked.pictures, rank=None)
    work = Work(samples_of(config), prompt_of(config, device), asked.denoising_steps, device)
    variants = ALWAYS | {name: VARIANTS[name] for name in asked.variants.split(",")}
    size = f"{config.height} x {2 * config.width}, {work.steps} denoising steps, rank {config.lora_rank}"
    result: dict[str, Any] = {
        "device": device_name(device), "torch": torch.__version__, "size": size, "rows": [], "failed": [],
    }  # fmt: skip
    print(f"{result['device']}, PyTorch {torch.__version__}, {size}\n{HEADER}", flush=True)
    stock = None
    for name, row in time_variants(variants, config, work):
        if row is None:
            print(f"{name}: does not fit", flush=True)
            result["failed"].append(name)
        else:
            stock = stock or row
            ratio = stock.median / row.median
            print(in_words(row, ratio), flush=True)
            result["rows"].append({**asdict(row), "median": row.median, "ratio": ratio})
        if asked.json:
            replace_json(Path(asked.json), result)


if __name__ == "__main__":
    run_script(main)
