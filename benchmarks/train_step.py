"""Times a training step, in variants, beside the step that trainers of this field take today. Nothing is downloaded.

    python -m benchmarks.train_step --size toy
    python -m benchmarks.train_step --size full --variants none,compile,full --steps 20 --json step.json

The toy's models are the pretrained ones; the full size is FLUX-Fill's and FLUX's VAE with random weights, as neither
speed nor memory depends on their values. Pictures are random too.

The reference step has the same dtype, batch, attention and LoRA, with the prompt encoded once, and does what the
published trainers do: it encodes the picture and the masked picture with the VAE in every step, recomputes the
activations of every block, compiles nothing and updates each parameter by itself. From the same pictures and noise its
first loss is that of our step to 1e-5 in float32.

TFLOP/s: those of the step's linear layers and attention, without what is recomputed (tryon/speed.py), by the median
time of a step; the share is of the data sheet's peak.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.variants import check_settings
from tryon.config import TrainConfig, full, on_toy, quick_test, setting
from tryon.entry import check_first, run_script
from tryon.flags import parse_flags

CHANGES: dict[str, dict[str, Any]] = {
    "none": {},
    "every_4": {"gradient_checkpointing": "4"},
    "every_2": {"gradient_checkpointing": "2"},
    "full": {"gradient_checkpointing": "full"},
    "auto": {"gradient_checkpointing": "auto"},
    "compile": {"compile": True},
    "compile_full": {"compile": True, "gradient_checkpointing": "full"},
    "fp8": {"quantization": "fp8"},
    "int8": {"quantization": "int8"},
    "nf4": {"quantization": "nf4"},
    "fp8_full": {"quantization": "fp8", "gradient_checkpointing": "full"},
    "nf4_full": {"quantization": "nf4", "gradient_checkpointing": "full"},
    "nf4_auto": {"quantization": "nf4", "gradient_checkpointing": "auto"},
    "nf4_compile_full": {"quantization": "nf4", "gradient_checkpointing": "full", "compile": True},
    "nf4_offload": {"quantization": "nf4", "gradient_checkpointing": "full", "offload": True},
    "adamw8bit": {"optimizer": "adamw8bit"},
}


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """Which steps are timed, at which size."""

    size: Literal["toy", "full"] = setting("toy", "the toy, or the 12 billion parameters of FLUX-Fill")
    variants: str = setting("none", f"separated by commas, of {', '.join(CHANGES)}")
    reference: Literal["yes", "no"] = setting("yes", "whether the reference step is timed too")
    batch: int | None = setting(None, "samples per step; the toy's quick test's 8, or 1, if not given", 1)
    rank: int | None = setting(None, "rank of the LoRA; the profile's if not given", 1)
    steps: int = setting(10, "steps that are timed", 1)
    warm_up: int = setting(3, "steps before them", 1)
    memory_limit: float | None = setting(None, "GB of the GPU that may be used", 1)
    json: str | None = setting(None, "a file for the rows and the ratio")


def read_settings(argv: list[str]) -> StepConfig:
    """The flags, checked. Raises ValueError, in one sentence, for every mistake."""
    description = "Times a training step in variants, beside the step of today's trainers."
    (given,) = parse_flags(argv, "python -m benchmarks.train_step", description, StepConfig)
    config = StepConfig(**given)
    check_settings(config, config.variants.split(","), CHANGES)
    return config


if __name__ == "__main__":
    check_first(read_settings)  # --help and a wrong flag answer before the heavy imports


import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, FluxTransformer2DModel

from tryon.encode import collate, encode_pictures, encode_sample
from tryon.geometry import pack_latents, pack_mask
from tryon.memory import (
    choose_quantization,
    free_before_training,
    recomputed_every,
    training_memory,
    transformer_costs,
)
from tryon.models import FILL_CONFIG, load_transformer, load_vae
from tryon.prepare import prepare_transformer
from tryon.sample import FillBatch, PromptEmbedding, TryOnSample, make_diptych
from tryon.speed import device_name, peak_flops, step_flops
from tryon.step import batch_loss, draw_noise, draws_of, make_lr_scheduler, make_optimizer, on_device, optimiser_step
from tryon.timing import Clock
from tryon.toy.model import toy_model
from tryon.tracking import set_up_logging

VAE_CONFIG = {  # FLUX.1-dev's
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}


@dataclass(frozen=True)
class Row:
    """One variant's figures. seconds: of each timed step. peak: bytes of tensors on the GPU, None on a CPU; planned:
    what tryon.memory said. parts: mean seconds. loss: of the first step."""

    name: str
    seconds: list[float]
    batch: int
    peak: int | None
    planned: int
    flops: float
    parts: dict[str, float]
    loss: float

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def train_config(config: StepConfig) -> TrainConfig:
    """The profile whose step is timed, nothing recomputed or quantised."""
    profile = on_toy(quick_test()) if config.size == "toy" else full()
    batch = config.batch or (profile.train_batch_size if config.size == "toy" else 1)
    rank = config.rank or profile.lora_rank
    return replace(
        profile, train_batch_size=batch, gradient_accumulation_steps=1, lora_rank=rank, lora_alpha=rank,
        gradient_checkpointing="none", quantization="none",
    )  # fmt: skip


def make_transformer(config: TrainConfig) -> FluxTransformer2DModel:
    """The transformer in the host's memory; at full size with the same random numbers in every layer."""
    if config.toy:
        return load_transformer(toy_model(Path(config.data_cache_dir)).transformer, torch.float32)
    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(FILL_CONFIG).to(torch.bfloat16)
    transformer = transformer.to_empty(device="cpu").requires_grad_(False)
    numbers = 0.02 * torch.randn(2**22, dtype=torch.bfloat16)
    for parameter in transformer.parameters():
        flat = parameter.view(-1)
        for start in range(0, len(flat), len(numbers)):
            part = flat[start : start + len(numbers)]
            part.copy_(numbers[: len(part)])
    return transformer


def make_vae(config: TrainConfig, device: torch.device) -> AutoencoderKL:
    if config.toy:
        return load_vae(toy_model(Path(config.data_cache_dir)).base, torch.float32, device)
    return AutoencoderKL.from_config(VAE_CONFIG).requires_grad_(False).eval().to(device, torch.bfloat16)


def make_samples(config: TrainConfig) -> list[TryOnSample]:
    """A batch of random pictures, the person's lower half hidden."""
    generator, size = torch.Generator().manual_seed(0), (3, config.height, config.width)
    mask = torch.zeros(1, *size[1:])
    mask[:, config.height // 2 :] = 1

    def picture() -> torch.Tensor:
        return torch.rand(size, generator=generator) * 2 - 1

    return [TryOnSample(str(i), picture(), picture(), mask, "upper") for i in range(config.train_batch_size)]


def make_prompt(config: TrainConfig, transformer_config: dict[str, Any], dtype: torch.dtype) -> PromptEmbedding:
    generator = torch.Generator().manual_seed(1)
    widths = transformer_config["joint_attention_dim"], transformer_config["pooled_projection_dim"]
    return PromptEmbedding(
        torch.randn(config.max_sequence_length, widths[0], generator=generator).to(dtype),
        torch.randn(widths[1], generator=generator).to(dtype),
    )


def encoded(vae: AutoencoderKL, samples: list[TryOnSample], prompt: PromptEmbedding) -> FillBatch:
    """The batch as it comes out of the cache, on the CPU."""
    batch = collate([encode_sample(vae, sample) for sample in samples], {"upper": prompt})
    return batch.pin_memory() if vae.device.type == "cuda" else batch


def time_ours(name: str, config: TrainConfig, batch: FillBatch, accelerator: Accelerator, steps: StepConfig) -> Row:
    """Our step in a variant, as the loop takes it."""
    config = replace(config, **CHANGES[name])
    config = replace(config, quantization=choose_quantization(config.quantization, accelerator.device))
    transformer = make_transformer(config)
    parameters = prepare_transformer(transformer, config, accelerator.device, None)
    costs = transformer_costs(config, dict(transformer.config))
    every = recomputed_every(config, costs, free_before_training(config, costs, accelerator.device))
    planned = training_memory(config, costs, every).tensors
    optimizer = make_optimizer(config, parameters)
    lr_scheduler = make_lr_scheduler(config, optimizer, 0, steps.warm_up + steps.steps)
    model, clock = accelerator.prepare(transformer).train(), Clock(accelerator.device)

    def same() -> Iterator[FillBatch]:
        while True:
            yield batch

    batches, losses = same(), []

    def step(index: int) -> None:
        metrics = optimiser_step(
            config, index, model, batches, optimizer, lr_scheduler, accelerator, clock, lambda: ["random pictures"]
        )
        losses.append(metrics["train/loss"])

    flops = step_flops(config, dict(transformer.config), None).total * config.train_batch_size
    return measure(Row(name, [], config.train_batch_size, None, planned, flops, {}, 0.0), step, losses, clock, steps)


def time_reference(
    config: TrainConfig,
    vae: AutoencoderKL,
    samples: list[TryOnSample],
    batch: FillBatch,
    accelerator: Accelerator,
    steps: StepConfig,
) -> Row:
    """The step of today's trainers. Of `batch` only the prompt and the ids are taken."""
    device = accelerator.device
    transformer = make_transformer(config)
    parameters = prepare_transformer(transformer, config, device, None)
    transformer.enable_gradient_checkpointing()
    optimizer = torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay, eps=config.adam_epsilon, foreach=False,
    )  # fmt: skip
    lr_scheduler = make_lr_scheduler(config, optimizer, 0, steps.warm_up + steps.steps)
    model, clock = accelerator.prepare(transformer).train(), Clock(device)
    prompt = {name: getattr(batch, name).to(device) for name in ("prompt", "pooled", "img_ids", "txt_ids")}
    image, masked, mask = (torch.stack(parts) for parts in zip(*map(make_diptych, samples), strict=True))
    losses = []

    def step(index: int) -> None:
        with clock.part("VAE"):
            x0, hidden = (pack_latents(encode_pictures(vae, pictures)) for pictures in (image, masked))
        whole = FillBatch(x0=x0, cond=torch.cat([hidden, pack_mask(mask).to(hidden)], dim=2), **prompt)
        with clock.part("forward"):
            sigma, noise = on_device(draw_noise(config, whole, draws_of(config.seed, index, 0, 0, len(x0))), device)
            loss = batch_loss(config, model, whole, sigma, noise)
        with clock.part("backward"):
            accelerator.backward(loss)
        with clock.part("optimiser"):
            torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm, foreach=False)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())

    costs = transformer_costs(config, dict(transformer.config))
    planned = training_memory(config, costs, 1).tensors
    flops = step_flops(config, dict(transformer.config), None).total * config.train_batch_size
    return measure(Row("reference", [], len(batch.x0), None, planned, flops, {}, 0.0), step, losses, clock, steps)


def measure(row: Row, step: Callable[[int], None], losses: list[float], clock: Clock, steps: StepConfig) -> Row:
    """Takes the steps, the first ones untimed; the row with what they took. losses: where step leaves them."""
    on_gpu = torch.cuda.is_available()
    for index in range(steps.warm_up):
        step(index)
    clock.take()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for index in range(steps.steps):
        started = time.perf_counter()
        step(steps.warm_up + index)
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    parts = {part: spent / steps.steps for part, spent in clock.take().items()}
    peak = torch.cuda.max_memory_allocated() if on_gpu else None
    return replace(row, seconds=seconds, peak=peak, parts=parts, loss=losses[0])


def table(rows: list[Row], peak: float | None) -> list[str]:
    """The rows in words."""
    titles = ("s/step", 9), ("least", 9), ("most", 9), ("samples/s", 11), ("peak GB", 9), ("planned", 9), ("TFLOP/s", 9)
    lines = [f"{'variant':18}" + "".join(f"{title:>{width}}" for title, width in (*titles, ("share", 7)))]
    for row in rows:
        rates = f"{row.batch / row.median:11.2f}", f"{row.flops / row.median / 1e12:9.2f}"
        memory = f"{row.peak / 1e9:9.1f}{row.planned / 1e9:9.1f}" if row.peak else f"{'-':>9}{'-':>9}"
        share = f"{100 * row.flops / row.median / peak:.0f} %" if peak else "-"
        seconds = "".join(f"{each:9.3f}" for each in (row.median, min(row.seconds), max(row.seconds)))
        lines.append(f"{row.name:18}{seconds}{rates[0]}{memory}{rates[1]}{share:>7}")
    parts = [", ".join(f"{part} {spent:.3f} s" for part, spent in row.parts.items()) for row in rows]
    return [*lines, *(f"{row.name}: {words}" for row, words in zip(rows, parts, strict=True))]


def main(argv: list[str]) -> None:
    steps = read_settings(argv)
    set_up_logging(is_main_process=True)
    config = train_config(steps)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=config.mixed_precision)
    device = accelerator.device
    if steps.memory_limit and device.type == "cuda":
        share = steps.memory_limit * 1e9 / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(share, 1.0), torch.cuda.current_device())

    vae, samples = make_vae(config, device), make_samples(config)
    transformer_config = FILL_CONFIG if steps.size == "full" else dict(make_transformer(config).config)
    dtype = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
    batch = encoded(vae, samples, make_prompt(config, transformer_config, dtype))
    rows = []
    if steps.reference == "yes":
        rows.append(time_reference(config, vae, samples, batch, accelerator, steps))
        accelerator.free_memory()
    del vae
    for name in steps.variants.split(","):
        try:
            rows.append(time_ours(name, config, batch, accelerator, steps))
        except torch.OutOfMemoryError:
            print(f"{name}: does not fit", flush=True)
        accelerator.free_memory()  # it keeps what it prepared
        torch.compiler.reset()

    size = f"{config.height} x {2 * config.width}, batch {config.train_batch_size}, rank {config.lora_rank}"
    print(f"{device_name(device)}, PyTorch {torch.__version__}, {size}, {config.mixed_precision}, {steps.steps} steps")
    print("\n".join(table(rows, peak_flops(device))))
    ours = [row for row in rows if row.name != "reference"]
    result: dict[str, Any] = {"device": device_name(device), "torch": torch.__version__, "size": size, "ratio": None}
    if steps.reference == "yes" and ours:
        best, reference = min(ours, key=lambda row: row.median), rows[0]
        result["ratio"] = reference.median / best.median
        difference = abs(best.loss / reference.loss - 1)
        words = f"{best.name} is {result['ratio']:.2f} times as fast as the reference step"
        print(f"{words}; first losses differ by {difference:.1e}")
    if steps.json:
        result["rows"] = [{**vars(row), "median": row.median} for row in rows]
        Path(steps.json).write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    run_script(main)
