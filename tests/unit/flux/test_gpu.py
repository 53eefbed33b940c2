"""What only a CUDA device can show: what `--check` compares is right on FLUX's width, each way to keep its weights."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from tryon.config import TrainConfig
from tryon.data.sample import FillBatch
from tryon.flux.load import FILL_CONFIG
from tryon.flux.memory import free_memory, total_memory
from tryon.flux.quantize import Kind, QuantizedLinear
from tryon.training.check import quiet
from tryon.training.check_blocks import DEPTH, Row, prepared, random_batch, random_transformer
from tryon.training.check_cost import memory_rows
from tryon.training.check_numerics import attention_rows, block_rows, difference, lora_row
from tryon.training.clock import Clock
from tryon.training.passes import FIRST_PASSES, Passes
from tryon.training.step import batch_loss

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda")  # without an index, as accelerate gives it
WIDE = {**FILL_CONFIG, "num_layers": DEPTH[0], "num_single_layers": DEPTH[1]}


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    """bf16 on small panels. The cache is empty, so that kernels are compared and not remembered."""
    return TrainConfig(
        height=512,
        width=384,
        lora_rank=16,
        lora_alpha=16,
        mixed_precision="bf16",
        quantization="none",
        gradient_checkpointing="full",
        compile=False,
        data_cache_dir=str(tmp_path),
    )


@pytest.fixture(scope="module")
def base() -> FluxTransformer2DModel:
    return random_transformer(WIDE, torch.bfloat16, torch.device("cpu"))


@pytest.fixture
def batch(config: TrainConfig) -> FillBatch:
    return random_batch(config, WIDE, torch.bfloat16, GPU)


def assert_right(rows: Iterable[Row]) -> None:
    rows = list(rows)
    assert any(row.right for row in rows)
    assert not [row for row in rows if row.right is False]


@pytest.mark.parametrize(("kind", "tolerance"), [("int8", 0.02), ("fp8", 0.05), ("nf4", 0.15)])
def test_a_quantised_layer_is_near_and_is_the_cpus(kind: Kind, tolerance: float) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3072, 3072, dtype=torch.bfloat16).requires_grad_(False)
    x = torch.randn(64, 3072, dtype=torch.bfloat16)
    here, there = QuantizedLinear(layer, kind, torch.device("cpu")), QuantizedLinear(layer, kind, GPU)
    expected, found = layer(x).float(), there(x.to(GPU)).cpu().float()
    assert (found - expected).norm() < tolerance * expected.norm()
    assert (found - here(x).float()).norm() < 0.01 * expected.norm()


def test_every_attention_kernel_that_can_be_had_is_right(config: TrainConfig) -> None:
    assert_right(attention_rows(config, WIDE, torch.bfloat16, GPU))


def test_all_ways_to_run_the_blocks_have_the_same_gradients(
    config: TrainConfig, base: FluxTransformer2DModel, batch: FillBatch
) -> None:
    with quiet():
        assert_right(block_rows(base, replace(config, compile=True), batch))


def test_compiled_nf4_blocks_have_the_same_gradients(
    config: TrainConfig, base: FluxTransformer2DModel, batch: FillBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tryon.training.check_numerics.KINDS", ("nf4",))
    with quiet():
        assert_right(block_rows(base, replace(config, quantization="nf4", compile=True), batch))


def test_a_recorded_pass_has_the_same_gradients(
    config: TrainConfig, base: FluxTransformer2DModel, batch: FillBatch
) -> None:
    config = replace(config, gradient_checkpointing="none", compile=True)

    def passes_of(records: bool) -> Passes:
        """Of blocks of their own: a recording needs parameters that were used on its own stream alone."""
        transformer, parameters = prepared(base, config, GPU)

        def compute(batch: FillBatch, sigma: Tensor, noise: Tensor) -> Tensor:
            with torch.autocast("cuda", torch.bfloat16):
                return batch_loss(config, transformer, batch, sigma, noise)

        return Passes(compute, Tensor.backward, parameters, records)

    def gradients(passes: Passes, *seeds: int) -> list[Tensor]:
        for parameter in passes.parameters:
            parameter.grad = None
        for seed in seeds:
            noise = torch.randn(batch.x0.shape, generator=torch.Generator().manual_seed(seed)).to(GPU)
            passes(batch, torch.full((1,), 0.1 * (seed + 1), device=GPU), noise, Clock(GPU))
        return [parameter.grad.clone() for parameter in passes.parameters]

    one, expected, recorded = torch.ones(1), gradients(passes_of(records=False), 0, 1), passes_of(records=True)
    for _ in range(FIRST_PASSES):
        gradients(recorded, 5)
    for _ in range(2):  # the pass that is recorded, and one that only repeats it
        assert difference((one, gradients(recorded, 0, 1)), (one, expected))[1] < 1e-2
        assert recorded.recording
    recorded.forget()
    assert difference((one, gradients(recorded, 0, 1)), (one, expected))[1] < 1e-2


def test_a_lora_is_saved_and_loaded(config: TrainConfig, base: FluxTransformer2DModel, batch: FillBatch) -> None:
    assert_right([lora_row(base, config, batch)])


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_checkpointing": "none"},
        {"gradient_checkpointing": "none", "compile": True},
        {"gradient_checkpointing": "2"},
        {"quantization": "fp8"},
        {"quantization": "int8"},
        {"quantization": "nf4"},
        {"quantization": "nf4", "offload": True},
    ],
    ids=str,
)
def test_a_step_takes_the_memory_that_was_planned(
    changes: dict, config: TrainConfig, base: FluxTransformer2DModel, batch: FillBatch
) -> None:
    with quiet():
        assert_right(memory_rows(base, replace(config, **changes), batch))


def test_memory_is_asked_of_a_device_without_an_index() -> None:
    assert 0 < free_memory(GPU) <= total_memory(GPU)
