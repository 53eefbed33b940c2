"""Is this machine fit for this run? Every part that depends on a GPU is compared with plain arithmetic, then timed.

The blocks are FLUX-Fill's own, at the run's width, panels, text length, batch and rank, but few of them and with seeded
random weights: nothing is downloaded. From their times and those of fewer blocks, the whole model's are extrapolated.
"""

import copy
import gc
import json
import logging
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from tryon.config import TrainConfig, first_line
from tryon.data.sample import FillBatch
from tryon.files import replace_json
from tryon.flux.attention import (
    SAFEST_KERNEL,
    Attention,
    KernelReport,
    best_kernel,
    compare_kernels,
    in_words,
    machine,
    one_at_a_time,
)
from tryon.flux.compiler import no_compiler
from tryon.flux.lora import add_lora, load_lora, save_lora
from tryon.flux.lora_header import LoraFacts
from tryon.flux.memory import (
    GB,
    VAE_PARAMETERS,
    free_memory,
    recomputed_every,
    resolved,
    training_memory,
    transformer_costs,
)
from tryon.flux.offload import blocks_of
from tryon.flux.packing import count_tokens, image_ids, text_ids
from tryon.flux.placement import prepare_transformer
from tryon.flux.quantize import Kind, dequantize, quantize
from tryon.runs import LORA_FILE
from tryon.training.speed import kind_of_step
from tryon.training.step import batch_loss, make_optimizer

DEPTH = 2, 3  # double and single blocks
KINDS: tuple[Kind, ...] = ("fp8", "int8", "nf4")
LORA_STRENGTH = 0.02  # standard deviation of the LoRA's B
# Relative differences of all gradients together. Rounding alone: where the same operations run in another order.
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
MEMORY_ALLOWED = 0.10
PASSES = 3  # timed
RANDOM_NUMBERS = 2**24 - 3  # a prime, so that layers which begin at the same one are rare
PER_SAMPLE = "x0", "cond", "prompt", "pooled"  # tensors of a FillBatch
CHECKS_FILE = "checks.json"  # in the data cache
DISK_TRIAL = 256 * 10**6  # bytes


@dataclass(frozen=True)
class Row:
    """One line of the table. right: None where something is only told. needed: whether the run depends on it."""

    what: str
    found: str
    allowed: str = ""
    right: bool | None = None
    needed: bool = True


@dataclass(frozen=True)
class Estimate:
    """Extrapolated to the whole model, in seconds."""

    step: float
    picture: float
    checkpoint: float


def check_machine(
    config: TrainConfig, transformer_config: dict[str, Any], device: torch.device, folder: Path
) -> Iterator[Row | Estimate]:
    """Checks and times, and yields each row as soon as it is known, the estimate last. folder: where checkpoints go.

    config: as for training; what is "auto" is resolved here. Raises ValueError where no attention kernel is right.
    """
    config, asked_to_compile = resolved(config, device), config.compile
    dtype = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32
    yield Row("machine", machine(device))
    yield from attention_rows(config, transformer_config, dtype, device)
    with quiet("tryon.flux.placement", "tryon.flux.attention"):
        few = {**transformer_config, "num_layers": DEPTH[0], "num_single_layers": DEPTH[1]}
        base = random_transformer(few, dtype, torch.device("cpu"))
        batch = random_batch(config, transformer_config, dtype, device)
        if asked_to_compile and (problem := no_compiler(device)):
            yield Row("compiled blocks", f"nothing can be compiled here: {problem}")
        yield from block_rows(base, config, batch, device)
        yield lora_row(base, config, batch, device)
        yield from memory_rows(base, config, batch, device)
        yield plan_row(config, transformer_config, device)
        yield from time_rows(base, config, transformer_config, batch, device, folder)


def check(
    config: TrainConfig,
    transformer_config: dict[str, Any],
    device: torch.device,
    folder: Path,
    price_per_hour: float | None,
) -> bool:
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
        hours = config.max_train_steps * estimate.step / 3600
        cost = "" if price_per_hour is None else f", {hours * price_per_hour:,.2f} at {price_per_hour:g} an hour"
        print(f"{config.max_train_steps:,} steps: about {hours:.3g} h{cost}, validation and checkpoints aside")
    print(
        f"NOT FIT for this run: {'; '.join(failed)}"
        if failed
        else "fit for this run: everything it depends on is right"
    )
    return not failed


def remember_check(config: TrainConfig, device: torch.device, estimate: Estimate | None, failed: list[str]) -> None:
    """Keeps the verdict, and the estimate where there is one, in the data cache, by machine and kind of step."""
    file = Path(config.data_cache_dir) / CHECKS_FILE
    known = json.loads(file.read_text()) if file.is_file() else {}
    kind = kind_of_step(resolved(config, device), device)
    known.setdefault(machine(device), {})[kind] = {
        **(asdict(estimate) if estimate else {}),
        "failed": failed,
        "date": str(date.today()),
    }
    replace_json(file, known)


def remembered_check(config: TrainConfig, device: torch.device) -> dict[str, Any] | None:
    """What the last `--check` of this machine for such steps left: Estimate's seconds where it came to its end, what
    failed, the date; None where there was none. config: with quantization resolved."""
    file = Path(config.data_cache_dir) / CHECKS_FILE
    if not file.is_file():
        return None
    return json.loads(file.read_text()).get(machine(device), {}).get(kind_of_step(config, device))


def attention_rows(
    config: TrainConfig, transformer_config: dict[str, Any], dtype: torch.dtype, device: torch.device
) -> Iterator[Row]:
    """A row for each kernel, and one for the choice."""
    tokens = count_tokens(config.height, config.width) + config.max_sequence_length
    heads, head_dim = transformer_config["num_attention_heads"], transformer_config["attention_head_dim"]
    asked = Attention(config.train_batch_size, tokens, heads, head_dim, dtype)
    with one_at_a_time(cache := Path(config.data_cache_dir)):
        reports = compare_kernels(asked, device, cache)
    for report in reports:
        yield kernel_row(report)
    yield Row("attention, chosen", best_kernel(reports, device), right=True)


def kernel_row(report: KernelReport) -> Row:
    """Only the chosen kernel is needed."""
    found = in_words(report).removeprefix(f"{report.kernel} ")
    if report.is_right:
        found = f"{report.error:.1e} off, {found}"
        if report.elsewhere:
            found += "; wrong at other sizes"
    allowed = "" if report.allowed is None else f"{report.allowed:.1e}"
    return Row(f"attention {report.kernel}", found, allowed, report.is_right if report.available else None, False)


def random_transformer(
    transformer_config: dict[str, Any], dtype: torch.dtype, device: torch.device
) -> FluxTransformer2DModel:
    """A frozen transformer whose weights are random but the same every time, on every machine and device.

    A layer's weights are normal and keep the size of its input; biases are 0, weights of normalisations 1. Drawing
    twelve billion numbers on a CPU would take minutes: a few million are used again and again, from another one on.
    """
    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(transformer_config).to(dtype)
    transformer = transformer.to_empty(device=device).requires_grad_(False)
    numbers = torch.randn(RANDOM_NUMBERS, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    used = 0
    for name, parameter in transformer.named_parameters():
        if parameter.ndim == 1:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            continue
        flat, filled = parameter.view(-1), 0
        while filled < len(flat):
            drawn = numbers[used % len(numbers) :][: len(flat) - filled]
            torch.mul(drawn, parameter.shape[1] ** -0.5, out=flat[filled : filled + len(drawn)])
            filled, used = filled + len(drawn), used + len(drawn)
    return transformer


def random_batch(
    config: TrainConfig, transformer_config: dict[str, Any], dtype: torch.dtype, device: torch.device
) -> FillBatch:
    """A seeded micro-batch on the device."""
    generator = torch.Generator().manual_seed(1)
    size, text = config.train_batch_size, config.max_sequence_length
    image = count_tokens(config.height, config.width)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(size, *shape, generator=generator).to(device, dtype)

    return FillBatch(
        x0=numbers(image, 64),
        cond=numbers(image, transformer_config["in_channels"] - 64),
        prompt=numbers(text, transformer_config["joint_attention_dim"]),
        pooled=numbers(transformer_config["pooled_projection_dim"]),
        img_ids=image_ids(config.height // 8, 2 * config.width // 8).to(device),
        txt_ids=text_ids(text).to(device),
    )


def loss_and_gradients(
    transformer: FluxTransformer2DModel, config: TrainConfig, batch: FillBatch
) -> tuple[Tensor, list[Tensor]]:
    """The seeded loss, and the gradient of each of the LoRA's parameters."""
    transformer.zero_grad(set_to_none=True)
    loss = seeded_loss(transformer, config, batch)
    loss.backward()
    return loss.detach(), [each.grad.clone() for each in transformer.parameters() if each.requires_grad]


def seeded_loss(transformer: FluxTransformer2DModel, config: TrainConfig, batch: FillBatch) -> Tensor:
    """The run's own loss, with noise that is the same every time."""
    device = batch.x0.device
    noise = torch.randn(batch.x0.shape, generator=torch.Generator().manual_seed(2)).to(device)
    sigma = torch.linspace(0.3, 0.9, len(batch.x0)).to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.mixed_precision == "bf16"):
        return batch_loss(config, transformer, batch, sigma, noise)


def prepared(
    base: FluxTransformer2DModel, config: TrainConfig, device: torch.device
) -> tuple[FluxTransformer2DModel, list[nn.Parameter]]:
    """A copy of the blocks as training gets them, with a LoRA that does something; and what is trained."""
    collect(device)
    transformer = copy.deepcopy(base)
    parameters = prepare_transformer(transformer, config, device, None)
    strengthen_lora(transformer)
    return transformer.train(), parameters


def plain(base: FluxTransformer2DModel, config: TrainConfig, device: torch.device) -> FluxTransformer2DModel:
    """A copy of the blocks as diffusers itself runs them, with the same LoRA and a kernel that is not suspected."""
    transformer = copy.deepcopy(base)
    add_lora(transformer, config.lora_rank, config.lora_alpha, config.seed)
    strengthen_lora(transformer)
    transformer.to(device).enable_gradient_checkpointing()
    transformer.set_attention_backend(SAFEST_KERNEL[device.type])
    return transformer.train()


def collect(device: torch.device) -> None:
    """Gives back the memory of earlier blocks: compiled and offloaded ones are cycles of references."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def strengthen_lora(transformer: FluxTransformer2DModel) -> None:
    """Gives a fresh LoRA, whose B is 0, a seeded one: half of its gradients would be 0 otherwise."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            if "lora_B" in name:
                parameter.copy_(LORA_STRENGTH * torch.randn(parameter.shape, generator=generator))


def dequantized(base: FluxTransformer2DModel, kind: Kind, device: torch.device) -> FluxTransformer2DModel:
    """A copy of the blocks whose linear layers have the weights that quantised ones compute with."""
    transformer = copy.deepcopy(base)
    for block in blocks_of(transformer):
        for layer in block.modules():
            if isinstance(layer, nn.Linear):
                weight = layer.weight.data
                parts = quantize(weight.to(device), kind)
                weight.copy_(dequantize(*parts, kind, tuple(weight.shape), weight.dtype))
    return transformer


def block_variants(config: TrainConfig) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Ways to run the blocks: the kind of their frozen weights, a name, and the settings. All that the flags can make;
    compiled ones, which take long, for the run's own kind only."""
    for kind in ("none", *KINDS):
        for name, checkpointing in (("nothing", "none"), ("every block", "full"), ("every 2nd block", "2")):
            yield kind, f"{name} recomputed", {"gradient_checkpointing": checkpointing}
            if config.compile and kind == config.quantization and checkpointing != "2":
                settings = {"gradient_checkpointing": checkpointing, "compile": True}
                yield kind, f"{name} recomputed, compiled", settings
        yield kind, "offloaded", {"gradient_checkpointing": "full", "offload": True}


def block_rows(
    base: FluxTransformer2DModel, config: TrainConfig, batch: FillBatch, device: torch.device
) -> Iterator[Row]:
    """Loss and gradients of each variant, twice, beside those of diffusers' own blocks with the same weights."""
    unchanged = replace(config, gradient_checkpointing="none", quantization="none", offload=False, compile=False)
    allowed = ALLOWED[base.dtype]
    expected_of: dict[str, tuple[Tensor, list[Tensor]]] = {}
    for kind, name, settings in block_variants(config):
        if kind not in expected_of:
            weights = base if kind == "none" else dequantized(base, kind, device)
            expected_of = {kind: loss_and_gradients(plain(weights, config, device), config, batch)}
        weights = "bf16" if base.dtype == torch.bfloat16 else "float32"
        what = f"blocks {weights if kind == 'none' else kind}, {name}"
        needed = is_the_runs(config, kind, settings)
        try:
            transformer, _ = prepared(base, replace(unchanged, quantization=kind, **settings), device)
            first, second = (loss_and_gradients(transformer, config, batch) for _ in range(2))
        except torch.OutOfMemoryError:
            yield Row(what, "too little memory", needed=needed)
            continue
        del transformer
        loss, gradients = difference(first, expected_of[kind])
        repeat = max(difference(second, first))
        right = max(loss, gradients, repeat) <= allowed
        found = f"loss {loss:.1e}, gradients {gradients:.1e} off, repeated {repeat:.1e}"
        yield Row(what, found, f"{allowed:.0e}", right, needed)


def is_the_runs(config: TrainConfig, kind: str, settings: dict[str, Any]) -> bool:
    """Whether the run may have a variant's blocks: how many of them recompute is open where it is "auto", and some do
    and some do not where it is a number."""
    offloaded = settings.get("offload", False)
    fixed = config.gradient_checkpointing in ("none", "full") and not config.offload
    recomputes_so = not fixed or settings["gradient_checkpointing"] == config.gradient_checkpointing
    return kind == config.quantization and offloaded == config.offload and recomputes_so


def difference(found: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]]) -> tuple[float, float]:
    """Relative differences of the losses and of all gradients together; inf where something is not finite."""
    loss = ((found[0] - expected[0]).abs() / expected[0].abs()).item()
    apart = sum((one - other).square().sum() for one, other in zip(found[1], expected[1], strict=True))
    size = sum(other.square().sum() for other in expected[1])
    gradients = (apart / size).sqrt().item()
    return tuple(math.inf if math.isnan(each) else each for each in (loss, gradients))


def lora_row(base: FluxTransformer2DModel, config: TrainConfig, batch: FillBatch, device: torch.device) -> Row:
    """A LoRA that is saved and loaded again predicts the same."""
    transformer = plain(base, config, device)
    expected, _ = loss_and_gradients(transformer, config, batch)
    other = copy.deepcopy(base)
    add_lora(other, config.lora_rank, config.lora_alpha, seed=1)
    with tempfile.TemporaryDirectory() as name:
        facts = LoraFacts("", "", "", 0, 0, 0, "", "", 0)
        save_lora(Path(name), transformer, facts)
        load_lora(other, Path(name) / LORA_FILE)
    del transformer
    other.to(device).enable_gradient_checkpointing()
    found, _ = loss_and_gradients(other.train(), config, batch)
    apart = (found - expected).abs().item()
    return Row("a LoRA saved and loaded", f"loss differs by {apart:.1e}", "0", apart == 0)


def memory_rows(
    base: FluxTransformer2DModel, config: TrainConfig, batch: FillBatch, device: torch.device
) -> Iterator[Row]:
    """What these blocks take of a GPU's memory, beside what is planned for them, part by part."""
    if device.type != "cuda":
        return
    config = replace(config, gradient_accumulation_steps=1)  # one backward pass is looked at
    costs = transformer_costs(config, dict(base.config))
    every = recomputed_every(config, costs, free_memory(device))
    plan = training_memory(config, costs, every)
    vae = VAE_PARAMETERS * base.dtype.itemsize  # planned with the weights, but not here

    collect(device)
    before = torch.cuda.memory_allocated(device)
    transformer, parameters = prepared(base, config, device)
    placed = torch.cuda.memory_allocated(device) - before
    optimizer = make_optimizer(config, parameters)
    for _ in range(2):  # the second finds the moments there, and everything compiled
        torch.cuda.reset_peak_memory_stats(device)
        seeded_loss(transformer, config, batch).backward()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    settled = torch.cuda.memory_allocated(device) - before
    parts = {
        "weights and LoRA": (placed, plan.weights - vae + 4 * costs.sizes.trained),
        "moments": (settled - placed, plan.optimizer),
        "activations": (peak - settled, plan.activations + plan.work),
    }
    for name, (measured, planned) in parts.items():
        yield Row(f"memory of {len(blocks_of(base))} blocks: {name}", _against(measured, planned))
    planned = sum(each for _, each in parts.values())
    right = abs(peak / planned - 1) <= MEMORY_ALLOWED
    yield Row(
        f"memory of {len(blocks_of(base))} blocks: all", _against(peak, planned), f"{MEMORY_ALLOWED:.0%}", right, False
    )


def _against(measured: int, planned: int) -> str:
    return f"{measured / GB:.2f} GB, planned {planned / GB:.2f} ({measured / planned - 1:+.0%})"


def plan_row(config: TrainConfig, transformer_config: dict[str, Any], device: torch.device) -> Row:
    """Whether the whole model is planned to fit."""
    collect(device)
    costs, free = transformer_costs(config, transformer_config), free_memory(device)
    need = training_memory(config, costs, recomputed_every(config, costs, free)).total
    return Row("memory of the whole model, planned", f"{need / GB:.1f} GB", f"{free / GB:.1f} GB free", need <= free)


def time_rows(
    base: FluxTransformer2DModel,
    config: TrainConfig,
    transformer_config: dict[str, Any],
    batch: FillBatch,
    device: torch.device,
    folder: Path,
) -> Iterator[Row | Estimate]:
    """Seconds of a step, a validation picture and a checkpoint of the whole model, from those of few blocks."""
    costs = transformer_costs(config, transformer_config)
    every = recomputed_every(config, costs, free_memory(device))
    depths = DEPTH, (DEPTH[0] - 1, DEPTH[1]), (DEPTH[0], DEPTH[1] - 1)
    whole = transformer_config["num_layers"], transformer_config["num_single_layers"]
    chosen = set(range(sum(whole))[::every]) if every else set()
    passes = forward = 0.0
    for checkpointing, wanted in (("none", set(range(sum(whole))) - chosen), ("full", chosen)):
        if not wanted:
            continue
        doubles = sum(index < whole[0] for index in wanted)
        counts = doubles, len(wanted) - doubles
        timed = [
            time_passes(base, depth, replace(config, gradient_checkpointing=checkpointing), batch, device)
            for depth in depths
        ]
        rest, double, single = solve(timed, lambda passes: passes.training)
        passes += counts[0] * double + counts[1] * single
        if not forward:
            passes += rest
            parts = solve(timed, lambda passes: passes.forward)
            forward = parts[0] + whole[0] * parts[1] + whole[1] * parts[2]
            optimiser = timed[0].optimiser * costs.sizes.trained / timed[0].trained
    step = config.gradient_accumulation_steps * passes + optimiser
    samples = config.train_batch_size * config.gradient_accumulation_steps
    yield Row("a step, extrapolated", f"{step:.3g} s: {config.gradient_accumulation_steps} x {passes:.3g} s and "
              f"{optimiser:.2g} s; {samples / step:.2f} samples/s")  # fmt: skip
    picture = config.num_inference_steps * forward
    yield Row("a validation picture, extrapolated", f"{picture:.3g} s: {config.num_inference_steps} x {forward:.3g} s")
    rate = disk_speed(folder)
    size = costs.sizes.trained * (4 + 2 * (1 if config.optimizer == "adamw8bit" else 4))
    yield Row("a checkpoint", f"{size / rate:.2g} s: {size / GB:.2f} GB at {rate / GB:.2f} GB/s")
    yield Estimate(step, picture, size / rate)


@dataclass(frozen=True)
class Passes:
    """Seconds of a few blocks: forward and backward pass; forward pass without gradients; an update of the `trained`
    parameters."""

    training: float
    forward: float
    optimiser: float
    trained: int


def time_passes(
    base: FluxTransformer2DModel, depth: tuple[int, int], config: TrainConfig, batch: FillBatch, device: torch.device
) -> Passes:
    """Of so many of the blocks, as the configuration says."""
    fewer = copy.deepcopy(base)
    fewer.transformer_blocks = fewer.transformer_blocks[: depth[0]]
    fewer.single_transformer_blocks = fewer.single_transformer_blocks[: depth[1]]
    transformer, parameters = prepared(fewer, config, device)
    optimizer = make_optimizer(config, parameters)

    def train() -> None:
        seeded_loss(transformer, config, batch).backward()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()

    def predict() -> None:  # as validation does: a picture at a time, not compiled
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            seeded_loss(transformer, config, replace(batch, **{name: vars(batch)[name][:1] for name in PER_SAMPLE}))

    training, optimiser = seconds_of(train, device), seconds_of(update, device)
    transformer.eval()
    return Passes(training, seconds_of(predict, device), optimiser, sum(each.numel() for each in parameters))


def seconds_of(work: Callable[[], None], device: torch.device) -> float:
    """The median of PASSES, after two that are not timed: they compile and warm up."""
    seconds = []
    for _ in range(PASSES + 2):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[2:])


def solve(timed: Sequence[Passes], seconds: Callable[[Passes], float]) -> tuple[float, float, float]:
    """Seconds of everything but the blocks, of a double and of a single block, from those at DEPTH, with a double block
    less and with a single block less; none is negative."""
    whole, without_double, without_single = map(seconds, timed)
    double, single = max(0.0, whole - without_double), max(0.0, whole - without_single)
    return max(0.0, whole - DEPTH[0] * double - DEPTH[1] * single), double, single


def disk_speed(folder: Path) -> float:
    """Bytes per second that reach the disk of the folder, which is made where it is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    content = os.urandom(2**20)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        started = time.perf_counter()
        for _ in range(DISK_TRIAL // len(content)):
            file.write(content)
        file.flush()
        os.fsync(file.fileno())
        return DISK_TRIAL / (time.perf_counter() - started)


@contextmanager
def quiet(*names: str) -> Iterator[None]:
    """These loggers say nothing below warnings meanwhile."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
