"""Noise levels, draws and the loss, against diffusers' scheduler and the formula written out."""

from dataclasses import replace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux_fill import calculate_shift
from diffusers.training_utils import compute_loss_weighting_for_sd3

from conftest import make_sample
from tryon.data.category import CATEGORIES
from tryon.data.sample import FillBatch, PromptEmbedding
from tryon.flux.encode import collate, encode_sample
from tryon.flux.flow_matching import (
    UNIFORM,
    NoiseLevels,
    draw_sigma_and_noise,
    fill_error,
    fill_loss,
    interpolate,
    loss_weight,
    noise_levels,
    region_losses,
    repainted_share,
    sigma_from_density,
    token_weights,
)
from tryon.flux.packing import count_tokens
from tryon.profiles import full, on_toy
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
    sigma, noise = draw_sigma_and_noise((6, 64), NoiseLevels("logit_normal"), draws)
    for index, draw in enumerate(draws):
        alone_sigma, alone_noise = draw_sigma_and_noise((6, 64), NoiseLevels("logit_normal"), [draw])
        assert torch.equal(alone_sigma[0], sigma[index])
        assert torch.equal(alone_noise[0], noise[index])
    others = [(8, 3, 1, 0), (7, 4, 1, 0), (7, 3, 0, 0), (7, 3, 1, 1)]
    for other in others:
        assert not torch.equal(draw_sigma_and_noise((6, 64), UNIFORM, [other])[1][0], noise[0])


@pytest.mark.parametrize("scheme", ["none", "logit_normal", "mode", "cosmap", "sigma_sqrt"])
def test_every_scheme_draws_valid_sigmas(scheme: str) -> None:
    sigma, noise = draw_sigma_and_noise((1, 64), NoiseLevels(scheme), [(0, step, 0, 0) for step in range(400)])
    assert (sigma > 0).all() and (sigma <= 1).all()
    assert sigma.std() > 0.1
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02


def test_a_positive_logit_mean_means_less_noise() -> None:
    draws = [(0, step, 0, 0) for step in range(200)]
    assert draw_sigma_and_noise((1, 1), NoiseLevels("logit_normal", logit_mean=1.0), draws)[0].mean() < 0.4


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


def test_a_mask_weight_of_one_is_the_plain_mean_and_others_keep_the_loss_of_an_even_error(
    transformer: FluxTransformer2DModel, vae
) -> None:
    batch = random_batch(transformer, vae)
    sigma, noise = draw_sigma_and_noise(batch.x0.shape[1:], UNIFORM, [(0, 0), (0, 1)])
    x_t, velocity = interpolate(batch.x0, noise, sigma)
    with torch.no_grad():
        error = fill_error(transformer, batch, x_t, velocity, sigma, 1.0)
        found = {weight: fill_loss(transformer, batch, x_t, velocity, sigma, 1.0, weight) for weight in (1.0, 4.0)}
    assert torch.equal(found[1.0], error.mean(dim=(1, 2)))

    # Of 6 x 8 tokens those of the right panel whose pixels are masked, the edges by their share.
    share = repainted_share(batch)
    mask = make_sample(0).mask[0]
    pixels = torch.cat([torch.zeros_like(mask), mask], dim=1)
    expected = pixels.unflatten(0, (-1, 16)).unflatten(2, (-1, 16)).mean(dim=(1, 3)).flatten()
    torch.testing.assert_close(share[0], expected)
    weights = token_weights(batch, 4.0)
    torch.testing.assert_close(weights.mean(dim=1), torch.ones(2))
    whole, none = share[0].argmax(), share[0].argmin()
    assert share[0, whole] == 1 and share[0, none] == 0
    torch.testing.assert_close(weights[0, whole], 4 * weights[0, none])
    written_out = (weights[..., None] * error).sum(dim=(1, 2)) / (weights.sum(dim=1) * 64)
    torch.testing.assert_close(found[4.0], written_out)


def test_the_loss_of_a_region_is_the_mean_over_its_pixels(transformer: FluxTransformer2DModel, vae) -> None:
    batch = random_batch(transformer, vae)
    share = repainted_share(batch)
    panel = torch.cat([torch.zeros(6, 4), torch.ones(6, 4)], dim=1).flatten()  # 1 over the person
    error = torch.rand(batch.x0.shape, generator=torch.Generator().manual_seed(1))
    found = region_losses(batch, error)
    of_tokens = error.mean(dim=2)
    torch.testing.assert_close(found["garment"], of_tokens[:, panel == 0].mean(dim=1))
    torch.testing.assert_close(found["repainted"], (share * of_tokens).sum(dim=1) / share.sum(dim=1))
    kept = panel - share
    torch.testing.assert_close(found["kept"], (kept * of_tokens).sum(dim=1) / kept.sum(dim=1))
    sizes = {"repainted": share.sum(dim=1), "kept": kept.sum(dim=1), "garment": torch.full((2,), 24.0)}
    whole = sum(sizes[name] * loss for name, loss in found.items()) / 48
    torch.testing.assert_close(whole, error.mean(dim=(1, 2)))

    nothing_hidden = replace(batch, cond=torch.zeros_like(batch.cond))
    found = region_losses(nothing_hidden, error)
    assert found["repainted"].isnan().all() and found["kept"].isfinite().all()


def test_noise_levels_are_shifted_as_inference_shifts_them() -> None:
    config = replace(on_toy(full()), timestep_shift="resolution")
    reference = scheduler()
    levels = noise_levels(config, reference)
    tokens = count_tokens(config.height, config.width)
    by = reference.config
    mu = calculate_shift(tokens, by.base_image_seq_len, by.max_image_seq_len, by.base_shift, by.max_shift)
    draws = [(0, step) for step in range(20)]
    plain, noise = draw_sigma_and_noise((1, 64), NoiseLevels(), draws)
    found, same = draw_sigma_and_noise((1, 64), levels, draws)
    assert torch.equal(noise, same)
    torch.testing.assert_close(found, reference.time_shift(mu, 1.0, plain))
    assert (found > plain).all() and (found <= 1).all()
    assert noise_levels(replace(config, timestep_shift="none"), reference) == UNIFORM
