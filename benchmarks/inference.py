"""Times a try-on, in variants, beside diffusers' stock pipeline. Random weights at full size: nothing is downloaded.

    python -m benchmarks.inference --size toy --denoising_steps 2
    python -m benchmarks.inference --size full --variants none,compile,nf4 --json inference.json

The stock pipeline is FluxFillPipeline as its documentation uses it: bf16, eager, the VAE in one piece, one picture at a
time. Both get the same prompt embeddings, as text encoders run once a session in ours.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.variants import check_settings
from tryon.config import setting
from tryon.entry import check_first, run_script
from tryon.flags import parse_flags

CHANGES: dict[str, dict[str, Any]] = {
    "none": {},
    "compile": {"compile": True},
    "fp8": {"quantization": "fp8"},
    "fp8_compile": {"quantization": "fp8", "compile": True},
    "nf4": {"quantization": "nf4"},
    "nf4_compile": {"quantization": "nf4", "compile": True},
    "nf4_offload": {"quantization": "nf4", "offload": True},
}


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """Which try-ons are timed, at which size."""

    size: Literal["toy", "full"] = setting("toy", "the toy, or the 12 billion parameters of FLUX-Fill")
    variants: str = setting("none", f"separated by commas, of {', '.join(CHANGES)}")
    denoising_steps: int = setting(30, "denoising steps of a picture", 1)
    pictures: int = setting(3, "pictures that are timed, after one that is not", 1)
    json: str | None = setting(None, "a file for the rows and the ratio")


def read_settings(argv: list[str]) -> InferenceConfig:
    """The flags, checked. Raises ValueError, in one sentence, for every mistake."""
    description = "Times a try-on in variants, beside diffusers' stock pipeline."
    (given,) = parse_flags(argv, "python -m benchmarks.inference", description, InferenceConfig)
    config = InferenceConfig(**given)
    check_settings(config, config.variants.split(","), CHANGES)
    return config


if __name__ == "__main__":
    check_first(read_settings)  # --help and a wrong flag answer before the heavy imports


import torch
from diffusers import FluxFillPipeline
from diffusers.training_utils import free_memory

from benchmarks.train_step import StepConfig, make_prompt, make_samples, make_transformer, make_vae, train_config
from tryon.lora import add_lora
from tryon.models import FILL_CONFIG
from tryon.pipeline import build_pipeline, try_on_batch
from tryon.prepare import compile_blocks, place
from tryon.sample import PromptEmbedding, TryOnSample, make_diptych
from tryon.speed import device_name
from tryon.toy.model import scheduler
from tryon.tracking import set_up_logging


def main(argv: list[str]) -> None:
    asked = read_settings(argv)
    set_up_logging(is_main_process=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = train_config(StepConfig(size=asked.size, batch=1))
    (sample,), vae = make_samples(config), make_vae(config, device)
    transformer = make_transformer(config)
    shapes = FILL_CONFIG if asked.size == "full" else dict(transformer.config)
    prompt = make_prompt(config, shapes, transformer.dtype)

    pipeline = stock_pipeline(transformer.to(device), vae)
    seconds = {
        "stock": measure(
            lambda pipeline=pipeline: stock(pipeline, sample, prompt, asked.denoising_steps), asked, device
        )
    }
    del pipeline, transformer
    for name in asked.variants.split(","):
        free_memory()
        variant = replace(config, **CHANGES[name])
        transformer = make_transformer(config)
        add_lora(transformer, config.lora_rank, config.lora_rank, seed=0)
        place(transformer.eval().to(transformer.dtype), variant.quantization, variant.offload, device)
        if variant.compile:
            compile_blocks(transformer, device)
        ours = build_pipeline(transformer, vae, scheduler())
        try:
            seconds[name] = measure(
                lambda pipeline=ours: try_on_batch(
                    pipeline, [sample], [prompt], steps=asked.denoising_steps, guidance=30.0, seeds=[0]
                ),
                asked,
                device,
            )
        except torch.OutOfMemoryError:
            print(f"{name}: does not fit", flush=True)
        del ours, transformer
        torch.compiler.reset()

    print(f"{device_name(device)}, PyTorch {torch.__version__}, {config.height} x {2 * config.width}, ", end="")
    print(f"{asked.denoising_steps} denoising steps, rank {config.lora_rank}")
    for name, each in seconds.items():
        print(f"{name:14} {statistics.median(each):8.3f} s/picture ({min(each):.3f} to {max(each):.3f})")
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    best = min(medians, key=lambda name: (name == "stock", medians[name]))
    ratio = medians["stock"] / medians[best]
    print(f"{best} is {ratio:.2f} times as fast as the stock pipeline")
    if asked.json:
        Path(asked.json).write_text(json.dumps({"device": device_name(device), "ratio": ratio, **seconds}, indent=2))


def stock_pipeline(transformer: Any, vae: Any) -> FluxFillPipeline:
    pipeline = FluxFillPipeline(
        scheduler=scheduler(), vae=vae, transformer=transformer,
        text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock(pipeline: FluxFillPipeline, sample: TryOnSample, prompt: PromptEmbedding, steps: int) -> Any:
    """A picture, as whoever calls the pipeline by hand gets it."""
    image, _, mask = (part[None] for part in make_diptych(sample))
    device, dtype = pipeline.transformer.device, pipeline.transformer.dtype
    return pipeline(
        image=(image + 1) / 2,
        mask_image=mask,
        height=image.shape[-2],
        width=image.shape[-1],
        num_inference_steps=steps,
        guidance_scale=30.0,
        generator=torch.Generator().manual_seed(0),
        prompt_embeds=prompt.embeds[None].to(device, dtype),
        pooled_prompt_embeds=prompt.pooled[None].to(device, dtype),
    ).images[0]


def measure(draw: Callable[[], Any], asked: InferenceConfig, device: torch.device) -> list[float]:
    """Seconds of each picture but the first."""
    seconds = []
    for _ in range(asked.pictures + 1):
        started = time.perf_counter()
        draw()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


if __name__ == "__main__":
    run_script(main)
