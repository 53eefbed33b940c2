"""What try-offs change in the loss of a micro-batch."""

from dataclasses import replace

import torch
from diffusers import FluxTransformer2DModel

from test_flow_matching import random_batch
from test_lora import disturb
from tryon.config import TrainConfig
from tryon.flux.flow_matching import UNIFORM, draw_sigma_and_noise
from tryon.flux.lora import add_lora
from tryon.training.step import batch_loss


@torch.no_grad()
def test_a_teacher_teaches_no_try_off(transformer: FluxTransformer2DModel, vae) -> None:
    batch = random_batch(transformer, vae)
    assert batch.categories == ("upper", "lower") and batch.try_off == (False, False)
    draws = draw_sigma_and_noise(batch.x0.shape[1:], UNIFORM, [(0, 0), (0, 1)])
    disturb(add_lora(transformer, 4, 4, seed=0))

    def loss(teacher_weight: float, *try_off: bool) -> torch.Tensor:
        config = TrainConfig(teacher_weight=teacher_weight, teacher_categories="upper")
        return batch_loss(config, transformer, replace(batch, try_off=try_off), *draws)

    assert torch.equal(loss(0.5, True, False), loss(0.0, True, False))
    assert not torch.equal(loss(0.5, False, True), loss(0.0, False, True))
