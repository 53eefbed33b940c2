"""Takes and times the steps of benchmarks/train_step.py."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import repeat

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, FluxTransformer2DModel

from benchmarks.models import CPU, make_prompt, make_samples, make_transformer, make_vae
from benchmarks.step_variants import REFERENCES, VARIANTS, Reference, Variant
from tryon.config import TrainConfig
from tryon.data.sample import FillBatch, PromptEmbedding, TryOnSample, make_diptych
from tryon.flux.attention import attention_in_use
from tryon.flux.compiler import no_compiler
from tryon.flux.encode import collate, encode_pictures, encode_sample
from tryon.flux.flow_matching import UNIFORM, draw_sigma_and_noise
from tryon.flux.load import FILL_CONFIG
from tryon.flux.lora import add_lora
from tryon.flux.memory import (
    choose_quantization,
    free_before_training,
    recomputed_every,
    training_memory,
    transformer_costs,
    which_recompute,
)
from tryon.flux.packing import pack_latents, pack_mask
from tryon.flux.placement import prepare_transformer
from tryon.training.check_blocks import collect
from tryon.training.clock import Clock
from tryon.training.speed import step_flops
from tryon.training.step import (
    batch_loss,
    draws_of,
    make_lr_scheduler,
    make_optimizer,
    make_passes,
    on_device,
    optimiser_step,
)

COLUMNS = ("s/step", "least", "most", "samples/s", "peak GB", "planned", "TFLOP/s", "share", "first loss")
HEADER = f"{'variant':22}" + "".join(f"{title:>11}" for title in COLUMNS)


@dataclass(frozen=True)
class Bench:
    """What the steps of all variants share. steps: that are timed; warm_up: how many come before them."""

    accelerator: Accelerator
    vae: AutoencoderKL
    prompt: PromptEmbedding
    warm_up: int
    steps: int


@dataclass(frozen=True)
class Row:
    """What the steps of a variant took. Where it was on a CPU, peak and reserved are None.

    seconds: of each timed step. samples: of one. recomputed, attention: which blocks, which kernel. peak, reserved:
    bytes on the GPU in tensors, and held by torch's allocator; planned: what tryon.flux.memory said of peak. flops: of
    a step, without what is recomputed. parts: mean seconds. losses: of every step, from the first untimed one on.
    """

    name: str
    seconds: list[float]
    samples: int
    rank: int
    recomputed: str
    attention: str
    peak: int | None
    reserved: int | None
    planned: int
    flops: float
    parts: dict[str, float]
    losses: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def make_bench(config: TrainConfig, warm_up: int, steps: int) -> Bench:
    """The GPU where there is one, the VAE on it, where it stays as in training, and a prompt."""
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=config.mixed_precision)
    shapes = dict(make_transformer(config).config) if config.toy else FILL_CONFIG
    dtype = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
    vae = make_vae(config, accelerator.device)
    return Bench(accelerator, vae, make_prompt(config, shapes, dtype), warm_up, steps)


def time_variant(name: str, config: TrainConfig, bench: Bench, memory_limit: float | None) -> Row:
    """The steps of a variant or a reference. memory_limit: GB of the GPU that those may use which name no limit."""
    limit_memory((VARIANTS[name].memory if name in VARIANTS else None) or memory_limit)
    if name in REFERENCES:
        return time_reference(name, REFERENCES[name], config, bench)
    return time_ours(name, VARIANTS[name], config, bench)


def free_memory(bench: Bench) -> None:
    """Gives back what the last variant held: cycles of references keep it until they are looked for."""
    torch.compiler.reset()  # it keeps the blocks that it compiled,
    bench.accelerator.free_memory()  # and this one what it prepared, which it lets go of at its very end
    collect(bench.accelerator.device)


def encoded(vae: AutoencoderKL, samples: list[TryOnSample], prompt: PromptEmbedding) -> FillBatch:
    """The batch as it comes out of the cache, on the CPU."""
    batch = collate([encode_sample(vae, sample) for sample in samples], {"upper": prompt})
    return batch.pin_memory() if vae.device.type == "cuda" else batch


def time_ours(name: str, variant: Variant, config: TrainConfig, bench: Bench) -> Row:
    """Our step in a variant, as the loop takes it."""
    accelerator, device = bench.accelerator, bench.accelerator.device
    config = replace(config, **variant.settings)
    config = replace(config, quantization=choose_quantization(config.quantization, device))
    if config.compile and (problem := no_compiler(device)):
        raise ValueError(f"nothing can be compiled here: {problem}")  # training would go on without
    batches = repeat(encoded(bench.vae, make_samples(config), bench.prompt))
    # Quantised weights go to the device layer by layer, as a card that needs them could not hold the others.
    in_full = config.quantization == "none" and not config.offload
    transformer = make_transformer(config, device if in_full else CPU)
    parameters = prepare_transformer(transformer, config, device, None)
    costs = transformer_costs(config, dict(transformer.config))
    every = recomputed_every(config, costs, free_before_training(config, costs, device))
    optimizer = make_optimizer(config, parameters)
    lr_scheduler = make_lr_scheduler(config, optimizer, 0, bench.warm_up + bench.steps)
    model, clock = accelerator.prepare(transformer).train(), Clock(device)
    passes = make_passes(config, model, parameters, accelerator)

    def step(index: int) -> float:
        metrics = optimiser_step(
            config, UNIFORM, index, model, passes, batches, optimizer, lr_scheduler, accelerator, clock,
            lambda: ["random pictures"],
        )  # fmt: skip
        return metrics["train/loss"]

    return measure(name, config, transformer, every, step, clock, bench)


def time_reference(name: str, reference: Reference, config: TrainConfig, bench: Bench) -> Row:
    """The step as others take it, on diffusers' own blocks, from the same pictures, noise and LoRA."""
    accelerator, device, samples = bench.accelerator, bench.accelerator.device, make_samples(config)
    cached = encoded(bench.vae, samples, bench.prompt)
    image, masked, mask = (torch.stack(parts) for parts in zip(*map(make_diptych, samples), strict=True))
    transformer = make_transformer(config, device)
    parameters = add_lora(transformer, config.lora_rank, config.lora_alpha, config.seed)
    transformer.set_attention_backend("native")  # said, as diffusers would keep what our rows have chosen
    if reference.recomputes:
        transformer.enable_gradient_checkpointing()
    foreach = False if reference.one_by_one else None  # None: torch's own choice
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay, eps=config.adam_epsilon, foreach=foreach,
    )  # fmt: skip
    lr_scheduler = make_lr_scheduler(config, optimizer, 0, bench.warm_up + bench.steps)
    model, clock = accelerator.prepare(transformer).train(), Clock(device)

    def step(index: int) -> float:
        with clock.part("transfer"):
            batch = cached.to(device)
        if reference.encodes:
            with clock.part("VAE"):
                x0, hidden = (pack_latents(encode_pictures(bench.vae, pictures)) for pictures in (image, masked))
                batch = replace(batch, x0=x0, cond=torch.cat([hidden, pack_mask(mask).to(hidden)], dim=2))
        with clock.part("forward"):
            draws = draws_of(config.seed, index, 0, 0, len(batch.x0))
            sigma, noise = on_device(draw_sigma_and_noise(batch.x0.shape[1:], UNIFORM, draws), device)
            loss = batch_loss(config, model, batch, sigma, noise)
        with clock.part("backward"):
            accelerator.backward(loss)
        with clock.part("optimiser"):
            torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm, foreach=foreach)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.item()

    return measure(name, config, transformer, 1 if reference.recomputes else None, step, clock, bench)


def measure(
    name: str,
    config: TrainConfig,
    transformer: FluxTransformer2DModel,
    every: int | None,
    step: Callable[[int], float],
    clock: Clock,
    bench: Bench,
) -> Row:
    """Takes the steps, the first ones untimed. every: as in training_memory. step: takes one and returns its loss."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:  # once: passes that are recorded by then do not count what they work with
        torch.cuda.reset_peak_memory_stats()
    losses = [step(index) for index in range(bench.warm_up)]
    clock.take()
    seconds = []
    for index in range(bench.steps):
        started = time.perf_counter()
        losses.append(step(bench.warm_up + index))
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    samples = config.train_batch_size * config.gradient_accumulation_steps
    shapes = dict(transformer.config)
    return Row(
        name=name,
        seconds=seconds,
        samples=samples,
        rank=config.lora_rank,
        recomputed=which_recompute(every),
        attention=attention_in_use(transformer),
        peak=torch.cuda.max_memory_allocated() if on_gpu else None,
        reserved=torch.cuda.max_memory_reserved() if on_gpu else None,
        planned=training_memory(config, transformer_costs(config, shapes), every).tensors,
        flops=step_flops(config, shapes, None) * samples,
        parts={part: spent / bench.steps for part, spent in clock.take().items()},
        losses=losses,
    )


def in_words(row: Row, peak: float | None) -> str:
    """The row below HEADER, and a line of what its time went into. peak: the device's operations per second."""
    rate = row.flops / row.median
    cells = [
        *(f"{each:.3f}" for each in (row.median, min(row.seconds), max(row.seconds))),
        f"{row.samples / row.median:.2f}",
        *(["-", "-"] if row.peak is None else [f"{row.peak / 1e9:.1f}", f"{row.planned / 1e9:.1f}"]),
        f"{rate / 1e12:.2f}",
        f"{100 * rate / peak:.0f} %" if peak else "-",
        f"{row.losses[0]:.6f}",
    ]
    parts = ", ".join(f"{part} {spent:.3f} s" for part, spent in row.parts.items())
    return (
        f"{row.name:22}{''.join(f'{cell:>11}' for cell in cells)}\n"
        f"    {parts}; {row.recomputed} recomputes; attention {row.attention}"
    )


def ratios(rows: list[Row]) -> dict[str, dict[str, float]]:
    """How many times as fast as each reference each of our rows is that has its rank and samples per step."""
    references = [row for row in rows if row.name in REFERENCES]
    return {
        ours.name: {
            other.name: other.median / ours.median
            for other in references
            if (other.samples, other.rank) == (ours.samples, ours.rank)
        }
        for ours in rows
        if ours.name not in REFERENCES
    }


def limit_memory(gigabytes: float | None) -> None:
    """Lets this process use so much of the GPU, or all of it."""
    if torch.cuda.is_available():
        device = torch.cuda.current_device()
        share = 1.0
        if gigabytes:
            share = min(1.0, gigabytes * 1e9 / torch.cuda.get_device_properties(device).total_memory)
        torch.cuda.set_per_process_memory_fraction(share, device)
