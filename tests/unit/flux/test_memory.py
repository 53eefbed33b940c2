"""The full-size model on the meta device, and what is said where it does not fit."""

import logging
import re
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from benchmarks import hardware_needs
from conftest import PROJECT
from tryon.cli import run_script
from tryon.config import TrainConfig
from tryon.flux import memory
from tryon.flux.load import FILL_CONFIG, load_transformer, read_transformer_config
from tryon.flux.lora import TARGET_MODULES, add_lora
from tryon.flux.memory import (
    BlockCosts,
    Sizes,
    TrainingMemory,
    TransformerCosts,
    check_panel_fits,
    check_training_fits,
    checkpoint_bytes,
    choose_quantization,
    count_parameters,
    host_memory,
    training_memory,
    transformer_costs,
)
from tryon.flux.offload import checkpoint_blocks
from tryon.flux.packing import count_tokens, image_ids, text_ids
from tryon.flux.training_blocks import branches_of, cast_lora_together, casts_lora, use_training_blocks
from tryon.profiles import full, on_toy
from tryon.toy.model import ToyFolders, new_vae

TRAINING = (PROJECT / "docs" / "training.md").read_text()


def test_the_full_size_transformer_is_what_the_papers_say() -> None:
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(FILL_CONFIG)
        assert (transformer.x_embedder.in_features, transformer.proj_out.out_features) == (384, 64)
        add_lora(transformer.requires_grad_(False), 16, 16, seed=0)
    adapted = [name for name, module in transformer.named_modules() if hasattr(module, "lora_A")]
    assert len(adapted) == 380 == 19 * 12 + 38 * 4
    ends = TARGET_MODULES["all"]
    assert {next(end for end in ends if name.endswith(end)) for name in adapted} == set(ends)


@pytest.mark.parametrize(("rank", "million"), [(16, 54.2), (64, 216.7), (128, 433.3)])
def test_parameters_and_sizes_are_those_of_the_docs(rank: int, million: float) -> None:
    sizes = count_parameters(FILL_CONFIG, rank)
    assert round(sizes.frozen / 1e9, 1) == 11.9
    assert round(sizes.trained / 1e6, 1) == million
    # 2 D^2 of a double block's 12 D^2 per stream and of a single block's are modulations beside those per token.
    assert sizes.in_blocks == 3072**2 * (19 * (2 * 12 + 12) + 38 * (12 + 3))
    assert sizes.in_double_block == 3072**2 * 36 and sizes.largest == 3072 * 5 * 3072
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) M \| ([\d,]+) MB \|", TRAINING, re.MULTILINE)
    stated = {int(row[0]): row[1:] for row in rows}[rank]
    assert stated == (f"{million}", f"{sizes.trained * 4 / 1e6:,.0f}")


def test_the_toys_vae_has_the_size_that_is_planned() -> None:
    assert sum(each.numel() for each in new_vae().parameters()) == memory.TOY_VAE_PARAMETERS


def test_the_table_of_cards_is_the_plan() -> None:
    table = hardware_needs.lines()
    assert "\n".join(table) in TRAINING, "run python -m benchmarks.hardware_needs"
    shown = re.findall(r"^\| (\d+ GB) \|.*?\| (\d+ GB: .*?) \|", (PROJECT / "README.md").read_text(), re.MULTILINE)
    assert len(shown) == 3
    for card, need in shown:
        assert any(row.startswith(f"| {card},") and f"| {need} |" in row for row in table), (card, need)


@pytest.mark.parametrize(
    ("every", "precision", "where"),
    [
        *((every, precision, {}) for every in (None, 2, 1) for precision in ("no", "bf16")),
        (None, "bf16", {"lora_targets": "attention"}),
        (None, "no", {"lora_blocks": "double"}),
        (None, "bf16", {"lora_blocks": "single"}),
    ],
)
def test_activations_are_counted_as_autograd_keeps_them(
    toy: ToyFolders, precision: str, every: int | None, where: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toy on the CPU, where autocast leaves normalisation in bfloat16."""
    monkeypatch.setattr(memory, "_LikeCuda", nullcontext)
    config = replace(on_toy(full()), lora_alpha=4, lora_rank=4, train_batch_size=2, mixed_precision=precision, **where)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    transformer = load_transformer(toy.transformer, dtype)
    costs = transformer_costs(config, dict(transformer.config))
    planned = training_memory(replace(config, quantization="none"), costs, every)
    add_lora(transformer, 4, 4, 0, 0.0, config.lora_targets, config.lora_blocks)
    use_training_blocks(transformer)
    if casts_lora(config):
        cast_lora_together(transformer, dtype)
    if every:
        checkpoint_blocks(transformer, every)
    own = {each.untyped_storage().data_ptr() for each in transformer.parameters()}
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    tokens = count_tokens(config.height, config.width)
    inputs = {
        "hidden_states": torch.randn(2, tokens, 384, dtype=dtype),
        "encoder_hidden_states": torch.randn(2, config.max_sequence_length, 64, dtype=dtype),
        "pooled_projections": torch.randn(2, 64, dtype=dtype),
        "timestep": torch.rand(2),
        "guidance": torch.ones(2),
        "img_ids": image_ids(config.height // 8, 2 * config.width // 8),
        "txt_ids": text_ids(config.max_sequence_length),
    }
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        transformer(**inputs)
    casts = {branch.down.untyped_storage().data_ptr() for branch in branches_of(transformer) if branch.down is not None}
    measured = sum(storage.nbytes() for place, storage in saved.items() if place not in casts)
    recomputing = costs.blocks[-1].saved if every == 1 else 0  # in the backward pass, which begins there
    beside_blocks = 0.03 * sum(block.saved for block in costs.blocks)
    assert planned.activations - recomputing == pytest.approx(measured, abs=beside_blocks)


def test_the_plan_follows_precision_optimizer_quantisation_and_offload() -> None:
    sizes = Sizes(frozen=1000, in_blocks=800, in_double_block=100, largest=50, trained=10)
    costs = TransformerCosts(sizes, [BlockCosts(3, 70, 60), BlockCosts(2, 40, 45)])
    vae = memory.VAE_PARAMETERS
    config = TrainConfig(quantization="none", compile=False)
    plain = training_memory(config, costs, None)
    assert plain == TrainingMemory(2 * (1000 + vae), 100, 80, 110, 45)
    assert plain.reserve == round(0.05 * (2 * (1000 + vae) + 100 + 80 + 110 + 45)) + memory.CONTEXT
    assert plain.total == plain.weights + 100 + 80 + 110 + 45 + plain.reserve
    assert training_memory(replace(config, optimizer="adamw8bit", mixed_precision="no"), costs, 2) == TrainingMemory(
        4 * (1000 + vae), 80, 20, 3 + 70, 60
    )
    averaged = replace(config, ema_decay=0.99)
    assert training_memory(averaged, costs, None) == replace(plain, lora=100 + 40)
    assert checkpoint_bytes(averaged, 10) == checkpoint_bytes(config, 10) + 40
    fp8 = training_memory(replace(config, quantization="fp8"), costs, 1)
    assert (fp8.weights, fp8.activations, fp8.work) == (801 + 2 * (200 + vae), 3 + 70, 60 + 2 * 50)
    offloaded = training_memory(replace(config, offload=True), costs, 1)
    assert offloaded.weights == 2 * 200 + 2 * (200 + vae)
    once = replace(config, gradient_accumulation_steps=1)  # gradients come while activations, 110 bytes, go
    assert training_memory(once, costs, None).lora == 40 + 20
    small = replace(costs, blocks=[BlockCosts(3, 10, 5), BlockCosts(2, 20, 5)])
    assert training_memory(once, small, None).lora == 40 + 20 + 10


@pytest.mark.parametrize(
    ("measured", "settings"),
    [
        (48.54, {"compile": True, "gradient_accumulation_steps": 1}),
        (53.54, {"compile": True, "lora_rank": 128}),
        (5.46, {"quantization": "nf4", "offload": True, "gradient_checkpointing": "full", "compile": False,
                "gradient_accumulation_steps": 1}),
    ],
)  # fmt: skip
def test_the_plan_is_within_a_tenth_of_what_was_measured(measured: float, settings: dict) -> None:
    """GB of tensors at the fullest moment on an H200 (benchmarks/h200_2026-11-27.md), full profile, 8 micro-batches
    where nothing else is said."""
    config = replace(TrainConfig(quantization="none", gradient_checkpointing="none"), **settings)
    costs = transformer_costs(config, FILL_CONFIG)
    planned = training_memory(config, costs, memory.recomputed_every(config, costs, 10**12)).tensors
    assert planned == pytest.approx(measured * 10**9, rel=0.1)


def test_costs_are_counted_whatever_kernel_the_process_uses(transformer) -> None:
    """diffusers keeps the choice of kernel for the whole process; cuDNN's does not run on the CPU, where is counted."""
    config = replace(on_toy(full()), lora_alpha=4, lora_rank=4, quantization="none")
    expected = transformer_costs(config, dict(transformer.config))
    transformer.set_attention_backend("_native_cudnn")
    try:
        assert transformer_costs(config, dict(transformer.config)) == expected
    finally:
        transformer.set_attention_backend("native")


def test_the_host_holds_the_transformer_first_and_offloaded_blocks_then() -> None:
    sizes = Sizes(frozen=1000, in_blocks=800, in_double_block=100, largest=50, trained=10)
    config = TrainConfig(quantization="fp8", dataloader_num_workers=0)
    need = host_memory(config, sizes)
    assert (need.loading, need.training, need.total) == (2 * 1000 + 4 * 10, 12 * 10, 2040)
    assert host_memory(replace(config, mixed_precision="no"), sizes).loading == 4 * 1000 + 4 * 10
    assert host_memory(replace(config, offload=True, optimizer="adamw8bit"), sizes).training == 801 + 6 * 10
    reading = host_memory(replace(config, quantization="none", offload=True, dataloader_num_workers=3), sizes)
    assert reading.total == reading.training == 2 * 800 + 3 * memory.DATA_WORKER + 12 * 10


def test_auto_takes_as_little_as_the_memory_asks_for() -> None:
    kinds = [memory.quantization_for("auto", size * 10**9) for size in (12, 24, 32, 48, 80)]
    assert kinds == ["nf4", "nf4", "fp8", "fp8", "none"]
    assert memory.quantization_for("int8", 10**12) == "int8"
    assert choose_quantization("auto", torch.device("cpu")) == "none"
    config = TrainConfig(quantization="none", compile=False)
    costs = transformer_costs(config, FILL_CONFIG)
    found = [memory.recomputed_every(config, costs, size * 10**9) for size in (30, 40, 50, 60, 80)]
    assert found == [1, 1, 3, None, None]
    for every, size in zip(found[1:], (40, 50, 60, 80), strict=True):
        assert training_memory(config, costs, every).total <= size * 10**9
    assert memory.recomputed_every(replace(config, gradient_checkpointing="4"), costs, 0) == 4
    assert memory.recomputed_every(replace(config, gradient_checkpointing="none"), costs, 0) is None
    assert memory.recomputed_every(replace(config, offload=True), costs, 10**12) == 1


def test_a_panel_that_memory_cannot_hold_is_one_sentence(toy: ToyFolders, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only how much memory is free is made up."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    check_panel_fits((2048, 1536), toy.base, torch.float32, cpu)
    monkeypatch.setattr(memory, "free_memory", lambda device: 2_000_000_000)
    for dtype, device, words in (
        (torch.float32, cpu, r"needs at least 3.6 GB of memory and 2.0 GB are free: give a smaller --height and"),
        (torch.float32, gpu, r"needs at least 3.6 GB of GPU memory and 2.0 GB are free"),
    ):
        with pytest.raises(ValueError, match=words):
            check_panel_fits((2048, 1536), toy.base, dtype, device)
    check_panel_fits((2048, 1536), toy.base, torch.bfloat16, gpu)
    config = replace(on_toy(full()), lora_alpha=64, height=2048, width=1536)
    toy_config = read_transformer_config(str(toy.transformer), None)
    with pytest.raises(ValueError, match=r"a step keeps 2\.\d GB of activations and 2.0 GB of memory are free"):
        check_training_fits(config, toy_config, cpu)
    check_training_fits(on_toy(config), toy_config, cpu)
    check_panel_fits((768, 576), toy.base, torch.float32, cpu)


def test_a_gpu_that_is_too_small_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Only what the driver answers is made up."""
    config, gpu = TrainConfig(lora_rank=128, quantization="none"), torch.device("cuda", 0)
    monkeypatch.setattr(memory, "free_memory", lambda device: 23_600_000_000)
    monkeypatch.setattr(memory, "can_compile", lambda device: True)
    words = (
        r"training at rank 128 with adamw, activations aside, needs at least 31.8 GB of GPU memory and this GPU has "
        r"23.6 GB free: give --quantization nf4, or give --optimizer adamw8bit"
    )
    with pytest.raises(ValueError, match=words):
        check_training_fits(config, FILL_CONFIG, gpu)
    check_training_fits(config, FILL_CONFIG, torch.device("cpu"))
    with caplog.at_level(logging.WARNING):
        check_training_fits(replace(config, quantization="nf4"), FILL_CONFIG, gpu)
        assert not caplog.text
        check_training_fits(replace(config, quantization="nf4", gradient_checkpointing="none"), FILL_CONFIG, gpu)
    assert "a step is planned to need" in caplog.text and "give --gradient_checkpointing full" in caplog.text


def test_a_full_gpu_is_one_sentence(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(argv: list[str]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.delenv("TRAIN_STATUS_DIR", raising=False)
    with pytest.raises(SystemExit, match="1"):
        run_script(fill)
    shown = capsys.readouterr().err
    assert shown.startswith("error: the GPU's memory is full (CUDA out of memory): give --quantization nf4")
    assert shown.count("\n") == 1
