"""What only a CUDA device can show: the same numbers as on the CPU, and as much memory as was planned."""

from dataclasses import replace

import pytest
import torch
from diffusers import FluxTransformer2DModel

from benchmarks.train_step import StepConfig, make_prompt, train_config
from test_lora import disturb
from tryon.attention import choose_attention, time_attention
from tryon.blocks import checkpoint_blocks, offload_blocks
from tryon.encode import collate, to_device
from tryon.flow import draw_sigma_and_noise, fill_loss, interpolate
from tryon.lora import add_lora
from tryon.memory import VAE_PARAMETERS, free_memory, total_memory, training_memory, transformer_costs
from tryon.models import FILL_CONFIG
from tryon.prepare import prepare_transformer
from tryon.quantize import Kind, QuantizedLinear
from tryon.sample import FillBatch, LatentSample
from tryon.step import make_optimizer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = torch.device("cuda")  # without an index, as accelerate gives it
WIDE = {**FILL_CONFIG, "num_layers": 2, "num_single_layers": 4}  # FLUX's blocks, few of them: 1.4 billion parameters
CONFIG = replace(
    train_config(StepConfig(size="full")), height=512, width=384, lora_rank=16, lora_alpha=16, quantization="none"
)


def wide() -> FluxTransformer2DModel:
    torch.manual_seed(0)
    return FluxTransformer2DModel.from_config(WIDE).to(torch.bfloat16).requires_grad_(False)


def batch() -> FillBatch:
    height, width = CONFIG.height // 8, CONFIG.width // 4
    torch.manual_seed(1)
    latents = (torch.randn(16, height, width, dtype=torch.bfloat16) for _ in range(2))
    mask = torch.ones(1, CONFIG.height, 2 * CONFIG.width, dtype=torch.bool)
    sample = LatentSample("", *latents, mask, "upper")
    return to_device(collate([sample], {"upper": make_prompt(CONFIG, WIDE, torch.bfloat16)}), GPU)


def loss_and_gradients(transformer: FluxTransformer2DModel) -> tuple[torch.Tensor, list[torch.Tensor]]:
    data = batch()
    sigma, noise = (each.to(GPU) for each in draw_sigma_and_noise(data.x0.shape[1:], "none", 0.0, 1.0, [(0,)]))
    x_t, velocity = interpolate(data.x0.float(), noise, sigma)
    with torch.autocast("cuda", torch.bfloat16):
        loss = fill_loss(transformer, data, x_t, velocity, sigma, 1.0).mean()
    loss.backward()
    return loss.detach(), [each.grad for each in transformer.parameters() if each.requires_grad]


@pytest.mark.parametrize(("kind", "tolerance"), [("int8", 0.02), ("fp8", 0.05), ("nf4", 0.15)])
def test_a_quantised_layer_is_near_and_is_the_cpus(kind: Kind, tolerance: float) -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(3072, 3072, dtype=torch.bfloat16).requires_grad_(False)
    x = torch.randn(64, 3072, dtype=torch.bfloat16)
    here, there = QuantizedLinear(layer, kind, torch.device("cpu")), QuantizedLinear(layer, kind, GPU)
    expected, found = layer(x).float(), there(x.to(GPU)).cpu().float()
    assert (found - expected).norm() < tolerance * expected.norm()
    assert (found - here(x).float()).norm() < 0.01 * expected.norm()


def test_offloaded_blocks_have_the_gradients_of_checkpointed_ones() -> None:
    transformer = wide()
    disturb(add_lora(transformer, 16, 16, seed=0))
    transformer.to(GPU)
    checkpoint_blocks(transformer, 1)
    loss, gradients = loss_and_gradients(transformer)
    offloaded = wide()
    disturb(add_lora(offloaded, 16, 16, seed=0))
    offload_blocks(offloaded, GPU)
    for _ in range(3):  # the blocks' slots are used again and again
        offloaded.zero_grad(set_to_none=True)
        again, found = loss_and_gradients(offloaded)
        assert again.item() == pytest.approx(loss.item(), rel=1e-3)
        for one, other in zip(found, gradients, strict=True):
            assert (one - other).norm() <= 0.02 * other.norm() + 1e-6


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_checkpointing": "none"},
        {"gradient_checkpointing": "2"},
        {"gradient_checkpointing": "full", "quantization": "nf4"},
        {"gradient_checkpointing": "full", "quantization": "fp8", "offload": True},
    ],
)
def test_a_step_needs_what_was_planned(changes: dict) -> None:
    config = replace(CONFIG, **changes)
    transformer = wide()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    parameters = prepare_transformer(transformer, config, GPU, None)
    optimizer = make_optimizer(config, parameters)
    for _ in range(2):
        loss_and_gradients(transformer)
        optimizer.step()
        torch.cuda.reset_peak_memory_stats()
    every = {"none": None, "full": 1, "2": 2}[config.gradient_checkpointing]
    planned = training_memory(config, transformer_costs(config, WIDE), every).tensors - 2 * VAE_PARAMETERS
    assert torch.cuda.max_memory_allocated() == pytest.approx(planned, rel=0.15)


def test_the_fastest_attention_is_one_that_works() -> None:
    transformer = wide().to(GPU)
    add_lora(transformer, 16, 16, seed=0)
    choose_attention(transformer, 1, 2048, GPU, autocast=True)
    assert torch.isfinite(loss_and_gradients(transformer)[0])
    assert time_attention("native", (1, 1024, 24, 128), torch.bfloat16, GPU, autocast=False) > 0


def test_memory_is_asked_of_a_device_without_an_index() -> None:
    assert 0 < free_memory(GPU) <= total_memory(GPU)
