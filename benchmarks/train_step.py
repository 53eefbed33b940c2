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

import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.variants import check_settings, versions
from tryon.config import TrainConfig, full, on_toy, quick_test, setting
from tryon.entry import check_first, run_script
from tryon.files import replace_json
from tryon.flags import parse_flags


@dataclass(frozen=True)
class Variant:
    """A way to take our step. settings: what differs from train_config. memory: GB of the GPU that it may use."""

    settings: dict[str, Any] = field(default_factory=dict)
    memory: float | None = None


@dataclass(frozen=True)
class Reference:
    """A way in which others take the step. encodes: the VAE encodes in every step. recomputes: every block does.
    one_by_one: clipping and AdamW take one parameter after the other."""

    encodes: bool
    recomputes: bool
    one_by_one: bool


REFERENCES = {
    "reference_script": Reference(encodes=True, recomputes=True, one_by_one=True),
    "reference_cached": Reference(encodes=False, recomputes=True, one_by_one=False),
    "reference_cached_none": Reference(encodes=False, recomputes=False, one_by_one=False),
}
H100 = {"lora_rank": 128, "lora_alpha": 128, "compile": True}  # the profile's 8 samples per step, in three ways
VARIANTS = {
    "none": Variant(),
    "every_4": Variant({"gradient_checkpointing": "4"}),
    "every_2": Variant({"gradient_checkpointing": "2"}),
    "full": Variant({"gradient_checkpointing": "full"}),
    "auto": Variant({"gradient_checkpointing": "auto"}),
    "compile": Variant({"compile": True}),
    "compile_full": Variant({"compile": True, "gradient_checkpointing": "full"}),
    "fp8": Variant({"quantization": "fp8"}),
    "int8": Variant({"quantization": "int8"}),
    "nf4": Variant({"quantization": "nf4"}),
    "fp8_full": Variant({"quantization": "fp8", "gradient_checkpointing": "full"}),
    "nf4_full": Variant({"quantization": "nf4", "gradient_checkpointing": "full"}),
    "nf4_auto": Variant({"quantization": "nf4", "gradient_checkpointing": "auto"}),
    "nf4_compile_full": Variant({"quantization": "nf4", "gradient_checkpointing": "full", "compile": True}),
    "nf4_offload": Variant({"quantization": "nf4", "gradient_checkpointing": "full", "offload": True}),
    "adamw8bit": Variant({"optimizer": "adamw8bit"}),
    "h100_1x8": Variant({**H100, "train_batch_size": 1, "gradient_accumulation_steps": 8}, memory=76),
    "h100_2x4": Variant({**H100, "train_batch_size": 2, "gradient_accumulation_steps": 4}, memory=76),
    "h100_4x2": Variant(
        {**H100, "train_batch_size": 4, "gradient_accumulation_steps": 2, "gradient_checkpointing": "2"}, memory=76
    ),
    "full_24gb": Variant({"quantization": "nf4", "gradient_checkpointing": "auto", "compile": True}, memory=24),
    "full_24gb_every_2": Variant({"quantization": "nf4", "gradient_checkpointing": "2", "compile": True}, memory=24),
    "full_16gb": Variant({"quantization": "nf4", "gradient_checkpointing": "full", "compile": True}, memory=16),
    "full_12gb": Variant({"quantization": "nf4", "gradient_checkpointing": "full", "offload": True}, memory=12),
}


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """Which steps are timed, at which size."""

    size: Literal["toy", "full"] = setting("toy", "the toy, or the 12 billion parameters of FLUX-Fill")
    variants: str = setting(
        ",".join([*REFERENCES, "none"]), f"separated by commas, of {', '.join([*REFERENCES, *VARIANTS])}"
    )
    batch: int | None = setting(None, "samples per step; the toy's quick test's 8, or 1, if not given", 1)
    rank: int | None = setting(None, "rank of the LoRA; the profile's if not given", 1)
    steps: int = setting(10, "steps that are timed", 1)
    warm_up: int = setting(3, "steps before them", 1)
    memory_limit: float | None = setting(None, "GB of the GPU that variants may use which name no limit", 1)
    json: str | None = setting(None, "a file for the rows, written again after each")


def read_settings(argv: list[str]) -> StepConfig:
    """The flags, checked. Raises ValueError, in one sentence, for every mistake."""
    description = "Times a training step in variants, beside the steps of other trainers."
    (given,) = parse_flags(argv, "python -m benchmarks.train_step", description, StepConfig)
    config = StepConfig(**given)
    check_settings(config, config.variants.split(","), [*REFERENCES, *VARIANTS])
    return config


if __name__ == "__main__":
    check_first(read_settings)  # --help and a wrong flag answer before the heavy imports


import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, FluxTransformer2DModel

from tryon.console import set_up_logging
from tryon.data.sample import FillBatch, PromptEmbedding, TryOnSample, make_diptych
from tryon.flux.attention import attention_in_use, machine
from tryon.flux.compiler import no_compiler
from tryon.flux.encode import collate, encode_pictures, encode_sample, to_device
from tryon.flux.load import FILL_CONFIG, load_transformer, load_vae
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
from tryon.toy.model import toy_model
from tryon.training.check_blocks import random_transformer
from tryon.training.clock import Clock
from tryon.training.speed import peak_flops, step_flops
from tryon.training.step import (
    batch_loss,
    draw_noise,
    draws_of,
    make_lr_scheduler,
    make_optimizer,
    on_device,
    optimiser_step,
)

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
CPU = torch.device("cpu")


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


def train_config(config: StepConfig) -> TrainConfig:
    """The profile whose step is timed, nothing recomputed, quantised or compiled."""
    profile = on_toy(quick_test()) if config.size == "toy" else full()
    batch = config.batch or (profile.train_batch_size if config.size == "toy" else 1)
    rank = config.rank or profile.lora_rank
    return replace(
        profile, train_batch_size=batch, gradient_accumulation_steps=1, lora_rank=rank, lora_alpha=rank,
        gradient_checkpointing="none", quantization="none", compile=False,
    )  # fmt: skip


def make_transformer(config: TrainConfig, device: torch.device = CPU) -> FluxTransformer2DModel:
    """The transformer, frozen, in the device's memory: the toy's, or the full size with seeded random weights."""
    if config.toy:
        return load_transformer(toy_model(Path(config.data_cache_dir)).transformer, torch.float32).to(device)
    return random_transformer(FILL_CONFIG, torch.bfloat16, device)


def make_vae(config: TrainConfig, device: torch.device) -> AutoencoderKL:
    """The toy's VAE, or FLUX's with torch's own first weights, seeded."""
    if config.toy:
        return load_vae(toy_model(Path(config.data_cache_dir)).base, torch.float32, device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL.from_config(VAE_CONFIG)
    return vae.requires_grad_(False).eval().to(device, torch.bfloat16)


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


def time_ours(
    name: str, config: TrainConfig, vae: AutoencoderKL, prompt: PromptEmbedding, accelerator: Accelerator,
    steps: StepConfig,
) -> Row:  # fmt: skip
    """Our step in a variant, as the loop takes it."""
    device = accelerator.device
    config = replace(config, **VARIANTS[name].settings)
    config = replace(config, quantization=choose_quantization(config.quantization, device))
    if config.compile and (problem := no_compiler(device)):
        raise ValueError(f"nothing can be compiled here: {problem}")  # training would go on without
    batch = encoded(vae, make_samples(config), prompt)
    # Quantised weights go to the device layer by layer, as a card that needs them could not hold the others.
    in_full = config.quantization == "none" and not config.offload
    transformer = make_transformer(config, device if in_full else CPU)
    parameters = prepare_transformer(transformer, config, device, None)
    costs = transformer_costs(config, dict(transformer.config))
    every = recomputed_every(config, costs, free_before_training(config, costs, device))
    optimizer = make_optimizer(config, parameters)
    lr_scheduler = make_lr_scheduler(config, optimizer, 0, steps.warm_up + steps.steps)
    model, clock = accelerator.prepare(transformer).train(), Clock(device)

    def same() -> Iterator[FillBatch]:
        while True:
            yield batch

    batches = same()

    def step(index: int) -> float:
        metrics = optimiser_step(
            config, index, model, batches, optimizer, lr_scheduler, accelerator, clock, lambda: ["random pictures"]
        )
        return metrics["train/loss"]

    return measure(name, config, transformer, every, step, clock, steps)


def time_reference(
    name: str, config: TrainConfig, vae: AutoencoderKL, prompt: PromptEmbedding, accelerator: Accelerator,
    steps: StepConfig,
) -> Row:  # fmt: skip
    """The step as others take it, on diffusers' own blocks, from the same pictures, noise and LoRA."""
    device, reference = accelerator.device, REFERENCES[name]
    samples = make_samples(config)
    cached = encoded(vae, samples, prompt)
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
    lr_scheduler = make_lr_scheduler(config, optimizer, 0, steps.warm_up + steps.steps)
    model, clock = accelerator.prepare(transformer).train(), Clock(device)

    def step(index: int) -> float:
        with clock.part("transfer"):
            batch = to_device(cached, device)
        if reference.encodes:
            with clock.part("VAE"):
                x0, hidden = (pack_latents(encode_pictures(vae, pictures)) for pictures in (image, masked))
                batch = replace(batch, x0=x0, cond=torch.cat([hidden, pack_mask(mask).to(hidden)], dim=2))
        with clock.part("forward"):
            draws = draws_of(config.seed, index, 0, 0, len(batch.x0))
            sigma, noise = on_device(draw_noise(config, batch, draws), device)
            loss = batch_loss(config, model, batch, sigma, noise)
        with clock.part("backward"):
            accelerator.backward(loss)
        with clock.part("optimiser"):
            torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm, foreach=foreach)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.item()

    return measure(name, config, transformer, 1 if reference.recomputes else None, step, clock, steps)


def measure(
    name: str,
    config: TrainConfig,
    transformer: FluxTransformer2DModel,
    every: int | None,
    step: Callable[[int], float],
    clock: Clock,
    steps: StepConfig,
) -> Row:
    """Takes the steps, the first ones untimed. every: as in training_memory. step: takes one and returns its loss."""
    on_gpu = torch.cuda.is_available()
    losses = [step(index) for index in range(steps.warm_up)]
    clock.take()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for index in range(steps.steps):
        started = time.perf_counter()
        losses.append(step(steps.warm_up + index))
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
        flops=step_flops(config, shapes, None).total * samples,
        parts={part: spent / steps.steps for part, spent in clock.take().items()},
        losses=losses,
    )


COLUMNS = ("s/step", "least", "most", "samples/s", "peak GB", "planned", "TFLOP/s", "share", "first loss")
HEADER = f"{'variant':22}" + "".join(f"{title:>11}" for title in COLUMNS)


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


def main(argv: list[str]) -> None:
    steps = read_settings(argv)
    set_up_logging(is_main_process=True)
    config = train_config(steps)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=config.mixed_precision)
    device = accelerator.device
    vae = make_vae(config, device)  # it stays on the GPU, as in training
    shapes = FILL_CONFIG if steps.size == "full" else dict(make_transformer(config).config)
    dtype = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
    prompt = make_prompt(config, shapes, dtype)

    size = f"{config.height} x {2 * config.width}, batch {config.train_batch_size}, rank {config.lora_rank}"
    result: dict[str, Any] = {
        "machine": machine(device), "versions": versions(), "size": size,
        "rows": [], "failed": {}, "ratios": {},
    }  # fmt: skip
    print(f"{machine(device)}; {size}, {config.mixed_precision}, {steps.steps} steps\n{HEADER}", flush=True)
    rows: list[Row] = []
    for name in steps.variants.split(","):
        take = time_reference if name in REFERENCES else time_ours
        memory = VARIANTS[name].memory if name in VARIANTS else None
        limit_memory(memory or steps.memory_limit)
        try:
            rows.append(take(name, config, vae, prompt, accelerator, steps))
        except Exception as error:  # the others' figures are wanted all the same; it is said, and fails the command
            traceback.print_exc()
            result["failed"][name] = (str(error).strip() or type(error).__name__).splitlines()[0]
            print(f"{name}: failed: {result['failed'][name]}", flush=True)
        else:
            print(in_words(rows[-1], peak_flops(device)), flush=True)
        result["rows"] = [{**vars(row), "median": row.median} for row in rows]
        result["ratios"] = ratios(rows)
        if steps.json:
            replace_json(Path(steps.json), result)
        torch.compiler.reset()  # it keeps the blocks that it compiled,
        accelerator.free_memory()  # and this one what it prepared, until cycles of references are looked for

    losses = {row.name: row.losses[0] for row in rows}
    for ours, beside in ratios(rows).items():
        for reference, ratio in beside.items():
            apart = abs(losses[ours] / losses[reference] - 1)
            print(f"{ours} is {ratio:.2f} times as fast as {reference}; first losses differ by {apart:.1e}")
    if failed := result["failed"]:
        raise ValueError(f"there are no figures of {', '.join(failed)}: what went wrong is said above")


if __name__ == "__main__":
    run_script(main)
