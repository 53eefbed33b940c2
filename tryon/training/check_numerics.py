"""Compares what depends on a GPU with plain arithmetic: attention kernels, ways to run the blocks, a LoRA's file."""

import copy
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from tryon.config import TrainConfig
from tryon.data.sample import FillBatch
from tryon.flux.attention import SAFEST_KERNEL
from tryon.flux.attention_kernels import Attention, best_kernel, compare_kernels, in_words, one_at_a_time
from tryon.flux.lora import add_lora, load_lora, save_lora
from tryon.flux.lora_header import OF_ANOTHER_PROJECT
from tryon.flux.offload import blocks_of
from tryon.flux.packing import count_tokens
from tryon.flux.quantize import Kind, dequantize, quantize
from tryon.runs import LORA_FILE
from tryon.training.check_blocks import Row, prepared, seeded_loss, strengthen_lora

KINDS: tuple[Kind, ...] = ("fp8", "int8", "nf4")
# Relative differences of all gradients together. Rounding alone: where the same operations run in another order.
ALLOWED = {torch.float32: 1e-4, torch.bfloat16: 1e-2}


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
        found = in_words(report).removeprefix(f"{report.kernel} ")
        if report.is_right:
            found = f"{report.error:.1e} off, {found}" + ("; wrong at other sizes" if report.elsewhere else "")
        allowed = "" if report.allowed is None else f"{report.allowed:.1e}"
        right = report.is_right if report.available else None
        yield Row(f"attention {report.kernel}", found, allowed, right, needed=False)  # only the chosen one is
    yield Row("attention, chosen", best_kernel(reports, device), right=True)


def block_rows(base: FluxTransformer2DModel, config: TrainConfig, batch: FillBatch) -> Iterator[Row]:
    """Loss and gradients of each variant, twice, beside those of diffusers' own blocks with the same weights."""
    unchanged = replace(config, gradient_checkpointing="none", quantization="none", offload=False, compile=False)
    allowed, device = ALLOWED[base.dtype], batch.x0.device
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


def block_variants(config: TrainConfig) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Ways to run the blocks: the kind of their frozen weights, a name, and the settings. All that the flags can make;
    compiled ones, which take long, for the run's own kind only."""
    for kind in ("none", *KINDS):
        for name, checkpointing in (("nothing", "none"), ("every block", "full"), ("every 2nd block", "2")):
            yield kind, f"{name} recomputed", {"gradient_checkpointing": checkpointing}
            if config.compile and kind == config.quantization and checkpointing != "2":
                yield kind, f"{name} recomputed, compiled", {"gradient_checkpointing": checkpointing, "compile": True}
        yield kind, "offloaded", {"gradient_checkpointing": "full", "offload": True}


def is_the_runs(config: TrainConfig, kind: str, settings: dict[str, Any]) -> bool:
    """Whether the run may have a variant's blocks: how many of them recompute is open where it is "auto", and some do
    and some do not where it is a number."""
    offloaded = settings.get("offload", False)
    fixed = config.gradient_checkpointing in ("none", "full") and not config.offload
    recomputes_so = not fixed or settings["gradient_checkpointing"] == config.gradient_checkpointing
    return kind == config.quantization and offloaded == config.offload and recomputes_so


def plain(base: FluxTransformer2DModel, config: TrainConfig, device: torch.device) -> FluxTransformer2DModel:
    """A copy of the blocks as diffusers itself runs them, with the same LoRA and a kernel that is not suspected."""
    transformer = copy.deepcopy(base)
    where = config.lora_targets, config.lora_blocks
    add_lora(transformer, config.lora_rank, config.lora_alpha, config.seed, 0.0, *where)
    strengthen_lora(transformer)
    transformer.to(device).enable_gradient_checkpointing()
    transformer.set_attention_backend(SAFEST_KERNEL[device.type])
    return transformer.train()


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


def loss_and_gradients(
    transformer: FluxTransformer2DModel, config: TrainConfig, batch: FillBatch
) -> tuple[Tensor, list[Tensor]]:
    """The seeded loss, and the gradient of each of the LoRA's parameters."""
    transformer.zero_grad(set_to_none=True)
    loss = seeded_loss(transformer, config, batch)
    loss.backward()
    return loss.detach(), [each.grad.clone() for each in transformer.parameters() if each.requires_grad]


def difference(found: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]]) -> tuple[float, float]:
    """Relative differences of the losses and of all gradients together; inf where something is not finite."""
    loss = ((found[0] - expected[0]).abs() / expected[0].abs()).item()
    apart = sum((one - other).square().sum() for one, other in zip(found[1], expected[1], strict=True))
    size = sum(other.square().sum() for other in expected[1])
    gradients = (apart / size).sqrt().item()
    return tuple(math.inf if math.isnan(each) else each for each in (loss, gradients))


def lora_row(base: FluxTransformer2DModel, config: TrainConfig, batch: FillBatch) -> Row:
    """A LoRA that is saved and loaded again predicts the same."""
    device = batch.x0.device
    transformer = plain(base, config, device)
    expected, _ = loss_and_gradients(transformer, config, batch)
    other = copy.deepcopy(base)
    add_lora(other, config.lora_rank, config.lora_alpha, 1, 0.0, config.lora_targets, config.lora_blocks)
    with tempfile.TemporaryDirectory() as name:
        save_lora(Path(name), transformer, OF_ANOTHER_PROJECT)
        load_lora(other, Path(name) / LORA_FILE)
    del transformer
    other.to(device).enable_gradient_checkpointing()
    found, _ = loss_and_gradients(other.train(), config, batch)
    apart = (found - expected).abs().item()
    return Row("a LoRA saved and loaded", f"loss differs by {apart:.1e}", "0", apart == 0)
