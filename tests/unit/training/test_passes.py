"""Recorded passes: when there are any, and that a recording which is wrong or cannot be had is not used.

A CUDA graph needs a GPU (tests/unit/flux/test_gpu.py); here a recording computes when it is repeated, as a graph would.
"""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from test_flow_matching import random_batch
from tryon.config import TrainConfig
from tryon.data.sample import FillBatch
from tryon.flux.offload import checkpoint_blocks
from tryon.training.clock import Clock
from tryon.training.passes import FIRST_PASSES, Passes, Recording, can_record, tensors_of, with_tensors

CPU = torch.device("cpu")


def loss_of(weight: nn.Parameter) -> Callable[[FillBatch, Tensor, Tensor], Tensor]:
    return lambda batch, sigma, noise: (weight * batch.x0.mean() + sigma.sum() * weight**2 + noise.mean()).sum()


class Repeated(Passes):
    """Passes whose recording computes `factor` times the gradients. made: how many recordings."""

    factor, made = 1.0, 0

    def record(self, batch: FillBatch, sigma: Tensor, noise: Tensor) -> Recording:
        self.made += 1
        inputs, loss = [tensor.clone() for tensor in tensors_of(batch, sigma, noise)], torch.zeros(())
        gradients = [parameter.grad for parameter in self.parameters]

        def replay() -> None:
            computed = self.factor * self.compute(*with_tensors(batch, inputs))
            computed.backward()
            loss.copy_(computed.detach() / self.factor)

        return Recording(SimpleNamespace(replay=replay), inputs, gradients, loss)


@pytest.fixture
def weight() -> nn.Parameter:
    return nn.Parameter(torch.linspace(-1, 1, 7))


@pytest.fixture
def batch(transformer: FluxTransformer2DModel, vae) -> FillBatch:
    return random_batch(transformer, vae)


def step_of(passes: Passes, batch: FillBatch, *seeds: int) -> tuple[float, Tensor]:
    """The mean loss and the gradient of an optimiser step's micro-batches, drawn from seeds."""
    (weight,), losses = passes.parameters, []
    for seed in seeds:
        noise = torch.randn(batch.x0.shape, generator=torch.Generator().manual_seed(seed))
        losses.append(passes(batch, torch.full((2,), 0.1 * seed), noise, Clock(CPU)).item())
    gradient, weight.grad = weight.grad.clone(), None
    return sum(losses) / len(losses), gradient


def test_recorded_passes_give_what_ordinary_ones_do(weight: nn.Parameter, batch: FillBatch) -> None:
    ordinary = Passes(loss_of(weight), Tensor.backward, [weight], records=False)
    recorded = Repeated(loss_of(weight), Tensor.backward, [weight], records=True)
    for seeds in ((1, 2), (3,), (4, 5, 6), (7,)):
        expected, found = step_of(ordinary, batch, *seeds), step_of(recorded, batch, *seeds)
        assert found[0] == expected[0] and torch.equal(found[1], expected[1])
    assert recorded.recording and recorded.made == 1

    recorded.forget()
    for seeds in ((8,),) * FIRST_PASSES:
        step_of(recorded, batch, *seeds)
    assert not recorded.recording  # ordinary passes come first again
    assert torch.equal(step_of(recorded, batch, 9, 10)[1], step_of(ordinary, batch, 9, 10)[1])
    assert recorded.recording and recorded.made == 2


@pytest.mark.parametrize("problem", ["a recorded pass differs by 2.0e-01", "a recorded pass differs by nan", "refused"])
def test_a_recording_that_is_wrong_or_fails_is_not_used(
    problem: str, weight: nn.Parameter, batch: FillBatch, caplog: pytest.LogCaptureFixture
) -> None:
    ordinary = Passes(loss_of(weight), Tensor.backward, [weight], records=False)
    recorded = Repeated(loss_of(weight), Tensor.backward, [weight], records=True)
    recorded.factor = float("nan") if "nan" in problem else 1.2
    if problem == "refused":

        def refuse(*_: object) -> Recording:
            raise torch.OutOfMemoryError("refused\nmore of it")

        recorded.record = refuse
    for seeds in ((1, 2), (3, 4), (5, 6)):
        assert torch.equal(step_of(recorded, batch, *seeds)[1], step_of(ordinary, batch, *seeds)[1])
    assert not recorded.recording
    words = f"passes are not recorded as a CUDA graph, which is slower: {problem}"
    assert [record.getMessage() for record in caplog.records] == [words]


def test_passes_are_recorded_where_the_host_decides_nothing(transformer: FluxTransformer2DModel) -> None:
    gpu = SimpleNamespace(device=torch.device("cuda"), num_processes=1)
    config = TrainConfig(compile=True, quantization="none")
    assert can_record(config, transformer, gpu)
    assert not can_record(config, transformer, SimpleNamespace(device=CPU, num_processes=1))
    assert not can_record(config, transformer, SimpleNamespace(device=gpu.device, num_processes=2))
    for changes in ({"compile": False}, {"quantization": "nf4"}, {"offload": True}, {"lora_dropout": 0.1},
                    {"teacher_weight": 0.5}):  # fmt: skip
        assert not can_record(replace(config, **changes), transformer, gpu)
    checkpoint_blocks(transformer, 2)
    assert not can_record(config, transformer, gpu)
