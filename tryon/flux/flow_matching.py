"""Flow matching as FLUX is trained: which noise level, what is mixed, what the loss is. Pure; letters as in sample.py.

The noise level is sigma in (0, 1]: x_t = (1 - sigma) x_0 + sigma noise, and the model predicts the velocity
noise - x_0. The formulas are those of diffusers' FLUX training scripts, which the CatVTON-Flux author's loop follows.
"""

import numpy as np
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from torch import Tensor, nn

from tryon.data.sample import FillBatch

NUM_TRAIN_TIMESTEPS = 1000
MODE_SCALE = 1.29  # the SD3 paper's value for the "mode" density, and the default of every diffusers script


def sigma_from_density(u: Tensor) -> Tensor:
    """[B] of u in [0, 1] -> [B] of sigma = 1 - floor(1000 u)/1000.

    u indexes the scheduler's *descending* timesteps, so a larger u means less noise. No resolution shift is applied:
    with dynamic shifting on, the scheduler's training sigmas are unshifted.
    """
    index = (u * NUM_TRAIN_TIMESTEPS).long().clamp(max=NUM_TRAIN_TIMESTEPS - 1)
    return (NUM_TRAIN_TIMESTEPS - index).float() / NUM_TRAIN_TIMESTEPS


def seed_of(draw: tuple[int, ...]) -> int:
    """The seed of a draw that integers name. They are mixed, so that neighbouring steps and indices get unrelated
    generators."""
    return int(np.random.SeedSequence(draw).generate_state(1, np.uint64)[0])


def draw_sigma_and_noise(
    shape: tuple[int, int], weighting_scheme: str, logit_mean: float, logit_std: float, draws: list[tuple[int, ...]]
) -> tuple[Tensor, Tensor]:
    """Noise levels and noise of one micro-batch: sigma [B] and noise [B, *shape], float32 on the CPU.

    draws: per sample, the integers that name its draw, (seed, optimiser step, accumulation index, index in the global
    batch). Each sample draws from a generator of its own, so neither the number of processes nor a resumed run
    changes what it gets.
    """
    sigmas, noises = [], []
    for draw in draws:
        generator = torch.Generator().manual_seed(seed_of(draw))
        density = weighting_scheme, 1, logit_mean, logit_std, MODE_SCALE
        sigmas.append(sigma_from_density(compute_density_for_timestep_sampling(*density, generator=generator)))
        noises.append(torch.randn(shape, generator=generator))
    return torch.cat(sigmas), torch.stack(noises)


def interpolate(x0: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """x0, noise [B, L, 64] and sigma [B] -> x_t and velocity = noise - x0, [B, L, 64] each."""
    sigma = sigma[:, None, None]
    return (1 - sigma) * x0 + sigma * noise, noise - x0


def fill_loss(
    transformer: nn.Module, batch: FillBatch, x_t: Tensor, velocity: Tensor, sigma: Tensor, guidance: float
) -> Tensor:
    """Mean squared error of the predicted velocity in float32, per sample: [B], not yet weighted."""
    return fill_error(transformer, batch, x_t, velocity, sigma, guidance).mean(dim=(1, 2))


def fill_error(
    transformer: nn.Module, batch: FillBatch, x_t: Tensor, velocity: Tensor, sigma: Tensor, guidance: float
) -> Tensor:
    """Squared error of the predicted velocity in float32: [B, L, 64]."""
    (prediction,) = transformer(
        hidden_states=torch.cat([x_t, batch.cond], dim=2), timestep=sigma, guidance=torch.full_like(sigma, guidance),
        pooled_projections=batch.pooled, encoder_hidden_states=batch.prompt, img_ids=batch.img_ids,
        txt_ids=batch.txt_ids, return_dict=False,
    )  # fmt: skip
    return (prediction.float() - velocity.float()).square()


def loss_weight(weighting_scheme: str, sigma: Tensor) -> Tensor:
    """[B] weights of the losses at sigma [B]; ones for "none"."""
    return compute_loss_weighting_for_sd3(weighting_scheme, sigma)
