"""Draws and times the try-ons of benchmarks/inference.py."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxFillPipeline, FluxTransformer2DModel
from diffusers.training_utils import free_memory
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from benchmarks.inference_variants import Variant
from benchmarks.models import make_prompt, make_samples, make_transformer, make_vae
from tryon.config import TrainConfig
from tryon.data.sample import PromptEmbedding, TryOnSample, make_diptych
from tryon.evaluation.metrics import psnr
from tryon.flux.compiler import compile_blocks
from tryon.flux.load import FILL_CONFIG
from tryon.flux.lora import add_lora, fold_lora
from tryon.flux.offload import blocks_of
from tryon.flux.placement import place, quantise
from tryon.flux.prompt_cache import cache_prompts
from tryon.flux.prompts import prompt_for
from tryon.inference.pipeline import build_pipeline, try_on_batch
from tryon.toy.examples import EVALUATION_SEED, DrawnData
from tryon.toy.model import scheduler, toy_model

GUIDANCE = 30.0
LORA_SHARE = 0.05  # the size of what the LoRA adds to a weight, beside the weight's own
WARM_UP_STEPS = 2  # of a picture before those that are timed, in which everything is compiled and chosen
COLUMNS = ("s/picture", "least", "most", "x stock", "all blocks", "PSNR", "truth")
HEADER = f"{'variant':26}" + "".join(f"{title:>11}" for title in COLUMNS)


@dataclass(frozen=True)
class Work:
    """What every variant draws: each sample, from the noise of its index as the seed, in so many denoising steps."""

    samples: list[TryOnSample]
    prompt: PromptEmbedding
    steps: int
    device: torch.device


@dataclass(frozen=True)
class Row:
    """One variant's figures of each timed picture: seconds; steps in which all blocks ran; dB to the eager picture and
    to the truth, None where there is none."""

    name: str
    seconds: list[float]
    computed: list[int]
    psnr: list[float] | None
    truth: list[float] | None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def time_variants(variants: dict[str, Variant], config: TrainConfig, work: Work) -> Iterator[tuple[str, Row | None]]:
    """The variants' rows, each when it is there; None: there is not enough memory for it.

    What is folded or compiled stays so: those of a placement run in that order, on one transformer.
    """
    names = sorted(variants, key=lambda name: (variants[name].placement, variants[name].fold, variants[name].compile))
    vae, eager = make_vae(config, work.device), []
    for _, group in groupby(names, lambda name: variants[name].placement):
        transformer, before = None, Variant()
        for name in group:
            variant = variants[name]
            try:
                if transformer is None:
                    transformer = make_transformer(config, work.device).eval()
                    attach_random_lora(transformer, config.lora_rank)
                    quantise(transformer, variant.quantization, variant.offload, work.device)
                    place(transformer, variant.offload, work.device)
                if variant.fold and not before.fold:
                    fold_lora(transformer, {})
                if variant.compile and not before.compile:
                    compile_blocks(transformer)
                before = variant
                if name == "stock":
                    draw = partial(draw_stock, stock_pipeline(transformer, vae), work)
                else:
                    draw = partial(draw_ours, build_pipeline(transformer, vae, scheduler()), work, variant.cache)
                seconds, computed, pictures = measure(draw, transformer, work)
            except torch.OutOfMemoryError:
                yield name, None
                continue
            if name == "eager":
                eager = pictures
            to_eager = to_truth = None
            if name != "stock":
                to_eager = [inside(*each) for each in zip(pictures, eager, work.samples, strict=True)]
                if config.toy:
                    to_truth = [inside(picture, s.person, s) for picture, s in zip(pictures, work.samples, strict=True)]
            yield name, Row(name, seconds, computed, to_eager, to_truth)
        del transformer
        torch.compiler.reset()  # it keeps the blocks that it compiled, until cycles of references are looked for
        free_memory()


def samples_of(config: TrainConfig) -> list[TryOnSample]:
    """Drawn upper-body garments, which the toy's own weights know, on their wearers; at full size noise."""
    if config.toy:
        count = config.train_batch_size
        drawn = DrawnData(count, EVALUATION_SEED, ("upper",), config.height, config.width)
        return [drawn[index] for index in range(count)]
    return make_samples(config)


def prompt_of(config: TrainConfig, device: torch.device) -> PromptEmbedding:
    if config.toy:
        text, cache = prompt_for(config.prompt, "upper"), Path(config.data_cache_dir)
        length = config.max_sequence_length
        return cache_prompts([text], toy_model(cache).base, length, torch.float32, device, cache)[text]
    return make_prompt(config, FILL_CONFIG, torch.bfloat16)


@torch.no_grad()
def attach_random_lora(transformer: FluxTransformer2DModel, rank: int) -> None:
    """A LoRA in layers of its own, as they are used: in the transformer's dtype."""
    dtype = transformer.dtype
    add_lora(transformer, rank, rank, seed=0)
    generator = torch.Generator().manual_seed(1)
    for layer in transformer.modules():
        if isinstance(layer, LoraLayer):
            down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            numbers = torch.randn(up.shape, generator=generator).to(up)
            # Each entry of B A is a sum of `rank` products.
            up.copy_(numbers * LORA_SHARE * layer.weight.float().std() / (down.std() * rank**0.5))
    transformer.to(dtype)


def stock_pipeline(transformer: FluxTransformer2DModel, vae: AutoencoderKL) -> FluxFillPipeline:
    pipeline = FluxFillPipeline(
        scheduler=scheduler(), vae=vae, transformer=transformer,
        text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_stock(pipeline: FluxFillPipeline, work: Work, index: int, steps: int) -> Any:
    """A picture, as a direct call of the pipeline makes it."""
    image, _, mask = (part[None] for part in make_diptych(work.samples[index]))
    device, dtype = pipeline.transformer.device, pipeline.transformer.dtype
    return pipeline(
        image=(image + 1) / 2,
        mask_image=mask,
        height=image.shape[-2],
        width=image.shape[-1],
        num_inference_steps=steps,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(index),
        prompt_embeds=work.prompt.embeds[None].to(device, dtype),
        pooled_prompt_embeds=work.prompt.pooled[None].to(device, dtype),
    ).images[0]


def draw_ours(pipeline: FluxFillPipeline, work: Work, cache: float | None, index: int, steps: int) -> Tensor:
    """[3, H, W/2] in [-1, 1]"""
    sample, settings = work.samples[index], {"steps": steps, "guidance": GUIDANCE, "seeds": [index], "cache": cache}
    return try_on_batch(pipeline, [sample], [work.prompt], **settings)[0]


def measure(
    draw: Callable[[int, int], Any], transformer: FluxTransformer2DModel, work: Work
) -> tuple[list[float], list[int], list[Any]]:
    """For each picture the seconds, the steps in which all blocks ran, and what `draw(index, steps)` returns."""
    draw(0, WARM_UP_STEPS)
    seconds, computed, pictures = [], [], []
    for index in range(len(work.samples)):
        with steps_computed(transformer) as ran:
            started = time.perf_counter()
            pictures.append(draw(index, work.steps))
            if work.device.type == "cuda":
                torch.cuda.synchronize(work.device)
            seconds.append(time.perf_counter() - started)
        computed.append(sum(ran))
    return seconds, computed, pictures


@contextmanager
def steps_computed(transformer: FluxTransformer2DModel) -> Iterator[list[bool]]:
    """Whether all blocks ran, of each step in here: one that is skipped returns the very tensor that it was given."""
    ran: list[bool] = []

    def note(block: nn.Module, args: tuple, given: dict[str, Tensor], returned: tuple[Tensor, Tensor]) -> None:
        ran.append(returned[1] is not given["hidden_states"])

    handle = blocks_of(transformer)[1].register_forward_hook(note, with_kwargs=True)
    try:
        yield ran
    finally:
        handle.remove()


def inside(picture: Tensor, other: Tensor, sample: TryOnSample) -> float:
    """PSNR in dB of two pictures [3, H, W/2] inside the sample's mask."""
    return psnr(picture[None].float().cpu(), other[None].float().cpu(), sample.mask[None]).item()


def in_words(row: Row, ratio: float) -> str:
    """The row below HEADER."""
    cells = [
        *(f"{each:.3f}" for each in (row.median, min(row.seconds), max(row.seconds))),
        f"{ratio:.2f}",
        f"{statistics.mean(row.computed):.1f}",
        "-" if row.psnr is None else f"{min(row.psnr):.1f}",
        "-" if row.truth is None else f"{statistics.mean(row.truth):.2f}",
    ]
    return f"{row.name:26}{''.join(f'{cell:>11}' for cell in cells)}"
