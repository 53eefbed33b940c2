"""Noise levels, draws and the loss, against diffusers' scheduler and the formula written out."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.training_utils import compute_loss_weighting_for_sd3

from conftest import make_sample
from tryon.data.category import CATEGORIES
from tryon.data.sample import FillBatch, PromptEmbedding
from tryon.flux.encode import collate, encode_sample
from tryon.flux.flow_matching import draw_sigma_and_noise, fill_loss, interpolate, loss_weight, sigma_from_density
from tryon.toy.model import scheduler


def random_batch(transformer: FluxTransformer2DModel, vae, count: int = 2) -> FillBatch:
    generator = torch.Generator().manual_seed(0)
    width = transformer.config.joint_attention_dim
    prompts = {
        category: PromptEmbedding(
            torch.randn(16, width, generator=generator),
            torch.randn(transformer.config.pooled_projection_dim, generator=generator),
        )
        for category in CATEGORIES
    }
    return collate([encode_sample(vae, make_sample(seed)) for seed in range(count)], prompts)


def test_sigmas_are_those_of_the_scheduler() -> None:
    reference: FlowMatchEulerDiscreteScheduler = scheduler()
    u = torch.tensor([0.0, 0.0004, 0.001, 0.25, 0.5, 0.7777, 0.9995, 1.0])
    index = (u * 1000).long().clamp(max=999)
    assert torch.equal(sigma_from_density(u), reference.sigmas[index])
    assert torch.equal(sigma_from_density(u) * 1000, reference.timesteps[index])


def test_a_draw_belongs_to_its_place_in_the_global_batch() -> None:
    """Two processes of one sample draw what one process of two draws; another step or seed draws something else."""
    draws = [(7, 3, 1, index) for index in range(2)]
    sigma, noise = draw_sigma_and_noise((6, 64), "logit_normal", 0.0, 1.0, draws)
    for index, draw in enumerate(draws):
        alone_sigma, alone_noise = draw_sigma_and_noise((6, 64), "logit_normal", 0.0, 1.0, [draw])
        assert torch.equal(alone_sigma[0], sigma[index])
        assert torch.equal(alone_noise[0], noise[index])
    others = [(8, 3, 1, 0), (7, 4, 1, 0), (7, 3, 0, 0), (7, 3, 1, 1)]
    for other in others:
        assert not torch.equal(draw_sigma_and_noise((6, 64), "none", 0.0, 1.0, [other])[1][0], noise[0])


@pytest.mark.parametrize("scheme", ["none", "logit_normal", "mode", "cosmap", "sigma_sqrt"])
def test_every_scheme_draws_valid_sigmas(scheme: str) -> None:
    sigma, noise = draw_sigma_and_noise((1, 64), scheme, 0.0, 1.0, [(0, step, 0, 0) for step in range(400)])
    assert (sigma > 0).all() and (sigma <= 1).all()
    assert sigma.std() > 0.1
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02


def test_a_positive_logit_mean_means_less_noise() -> None:
    draws = [(0, step, 0, 0) for step in range(200)]
    assert draw_sigma_and_noise((1, 1), "logit_normal", 1.0, 1.0, draws)[0].mean() < 0.4


@pytest.mark.parametrize("scheme", ["none", "cosmap", "sigma_sqrt"])
def test_the_loss_is_the_formula(scheme: str, transformer: FluxTransformer2DModel, vae) -> None:
    """The reference's loss, written out with the scheduler's own tables: equal number for number."""
    batch = random_batch(transformer, vae)
    u = torch.tensor([0.123, 0.777])
    noise = torch.randn(batch.x0.shape, generator=torch.Generator().manual_seed(1))

    reference = scheduler()
    index = (u * 1000).long()
    timesteps, sigmas = reference.timesteps[index], reference.sigmas[index][:, None, None]
    noisy = (1.0 - sigmas) * batch.x0 + sigmas * noise
    with torch.no_grad():
        prediction = transformer(
            hidden_states=torch.cat([noisy, batch.cond], dim=2),
            timestep=timesteps / 1000,
            guidance=torch.tensor([1.0, 1.0]),
            pooled_projections=batch.pooled,
            encoder_hidden_states=batch.prompt,
            txt_ids=torch.zeros(16, 3),
            img_ids=batch.img_ids,
            return_dict=False,
        )[0]
    weighting = compute_loss_weighting_for_sd3(scheme, sigmas)
    target = noise - batch.x0
    expected = (weighting.float() * (prediction.float() - target.float()) ** 2).reshape(2, -1).mean(1).mean()

    sigma = sigma_from_density(u)
    x_t, velocity = interpolate(batch.x0, noise, sigma)
    with torch.no_grad():
        losses = fill_loss(transformer, batch, x_t, velocity, sigma, guidance=1.0)
    ours = (loss_weight(scheme, sigma) * losses).mean()
    assert losses.shape == (2,)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)


def test_interpolation_ends() -> None:
    x0, noise = torch.ones(1, 2, 64), torch.full((1, 2, 64), 3.0)
    assert torch.equal(interpolate(x0, noise, torch.tensor([1.0]))[0], noise)
    x_t, velocity = interpolate(x0, noise, torch.tensor([0.5]))
    assert torch.equal(x_t, torch.full_like(x0, 2.0))
    assert torch.equal(velocity, torch.full_like(x0, 2.0))
