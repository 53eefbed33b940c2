"""The loss of a micro-batch: what its options make of it."""

from dataclasses import replace

import pytest
import torch
from diffusers import FluxTransformer2DModel

from test_flow_matching import random_batch
from test_lora import disturb
from tryon.config import TrainConfig
from tryon.flux.flow_matching import UNIFORM, draw_sigma_and_noise, fill_loss, interpolate, predict_velocity
from tryon.flux.lora import add_lora
from tryon.training.step import batch_loss


def test_a_teacher_pulls_its_categories_to_what_the_model_predicts_without_the_lora(
    transformer: FluxTransformer2DModel, vae
) -> None:
    """Of a batch of an upper and a lower garment, with the upper ones taught."""
    batch = random_batch(transformer, vae)
    assert batch.categories == ("upper", "lower")
    sigma, noise = draw_sigma_and_noise(batch.x0.shape[1:], UNIFORM, [(0, 0), (0, 1)])
    x_t, velocity = interpolate(batch.x0, noise, sigma)
    with torch.no_grad():
        before = predict_velocity(transformer, batch, x_t, sigma, 1.0)
    parameters = add_lora(transformer, 4, 4, seed=0)
    disturb(parameters)
    with torch.no_grad():
        after = predict_velocity(transformer, batch, x_t, sigma, 1.0)
        plain = fill_loss(transformer, batch, x_t, velocity, sigma, 1.0)

    config = TrainConfig(teacher_weight=0.25)
    loss = batch_loss(config, transformer, batch, sigma, noise)
    target = 0.75 * velocity[0] + 0.25 * before[0]
    expected = ((after[0] - target).square().mean() + plain[1]) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert all(parameter.grad is not None for parameter in parameters), "the LoRA is on again, and trained"

    with torch.no_grad():
        for changes in ({"teacher_weight": 0.0}, {"teacher_categories": "full"}):
            loss = batch_loss(replace(config, **changes), transformer, batch, sigma, noise)
            assert torch.equal(loss, plain.mean()), "nothing here is taught"
