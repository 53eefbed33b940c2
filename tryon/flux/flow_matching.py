"""Flow matching as FLUX is trained: which noise level, what is mixed, what the loss is. Pure; letters as in sample.py.

The noise level is sigma in (0, 1]: x_t = (1 - sigma) x_0 + sigma noise, and the model predicts the velocity
noise - x_0. The formulas are those of diffusers' FLUX training scripts, which the CatVTON-Flux author's loop follows.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux_fill import calculate_shift
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from torch import Tensor, nn

from tryon.config import TrainConfig
from tryon.data.sample import FillBatch
from tryon.flux.packing import MASK_CHANNELS, count_tokens

NUM_TRAIN_TIMESTEPS = 1000
MODE_SCALE = 1.29  # the SD3 paper's value for the "mode" density, and the default of every diffusers script


@dataclass(frozen=True)
class NoiseLevels:
    """How noise levels are drawn. scheme, logit_mean, logit_std: as --weighting_scheme and its two settings. shift: the
    levels are shifted towards noise as inference shifts its own, see shifted; 1: not."""

    scheme: str = "none"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    shift: float = 1.0


UNIFORM = NoiseLevels()


def noise_levels(config: TrainConfig, scheduler: FlowMatchEulerDiscreteScheduler) -> NoiseLevels:
    """What the configuration asks for. scheduler: inference's, which shifts them by the number of tokens."""
    shift = 1.0
    if config.timestep_shift == "resolution":
        by = scheduler.config
        ends = by.base_image_seq_len, by.max_image_seq_len, by.base_shift, by.max_shift
        shift = math.exp(calculate_shift(count_tokens(config.height, config.width), *ends))
    return NoiseLevels(config.weighting_scheme, config.logit_mean, config.logit_std, shift)


def sigma_from_density(u: Tensor) -> Tensor:
    """[B] of u in [0, 1] -> [B] of sigma = 1 - floor(1000 u)/1000.

    u indexes the scheduler's *descending* timesteps, so a larger u means less noise. No resolution shift is applied
    here: with dynamic shifting on, the scheduler's training sigmas are unshifted.
    """
    index = (u * NUM_TRAIN_TIMESTEPS).long().clamp(max=NUM_TRAIN_TIMESTEPS - 1)
    return (NUM_TRAIN_TIMESTEPS - index).float() / NUM_TRAIN_TIMESTEPS


def shifted(sigma: Tensor, shift: float) -> Tensor:
    """[B] noise levels moved towards 1: shift sigma / (1 + (shift - 1) sigma), which is the scheduler's own time shift
    with shift = exp(mu), arXiv 2403.03206, equation 23."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def seed_of(draw: tuple[int, ...]) -> int:
    """The seed of a draw that integers name. They are mixed, so that neighbouring steps and indices get unrelated
    generators."""
    return int(np.random.SeedSequence(draw).generate_state(1, np.uint64)[0])


def draw_sigma_and_noise(
    shape: tuple[int, int], levels: NoiseLevels, draws: list[tuple[int, ...]]
) -> tuple[Tensor, Tensor]:
    """Noise levels and noise of one micro-batch: sigma [B] and noise [B, *shape], float32 on the CPU.

    draws: per sample, the integers that name its draw, (seed, optimiser step, accumulation index, index in the global
    batch). Each sample draws from a generator of its own, so neither the number of processes nor a resumed run
    changes what it gets.
    """
    sigmas, noises = [], []
    for draw in draws:
        generator = torch.Generator().manual_seed(seed_of(draw))
        density = levels.scheme, 1, levels.logit_mean, levels.logit_std, MODE_SCALE
        sigmas.append(sigma_from_density(compute_density_for_timestep_sampling(*density, generator=generator)))
        noises.append(torch.randn(shape, generator=generator))
    sigma = torch.cat(sigmas)
    return sigma if levels.shift == 1 else shifted(sigma, levels.shift), torch.stack(noises)


def interpolate(x0: Tensor, noise: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """x0, noise [B, L, 64] and sigma [B] -> x_t and velocity = noise - x0, [B, L, 64] each."""
    sigma = sigma[:, None, None]
    return (1 - sigma) * x0 + sigma * noise, noise - x0


def fill_loss(
    transformer: nn.Module, batch: FillBatch, x_t: Tensor, velocity: Tensor, sigma: Tensor, guidance: float,
    mask_weight: float = 1.0,
) -> Tensor:  # fmt: skip
    """Mean squared error of the predicted velocity in float32, per sample: [B], not yet weighted by its noise level.
    mask_weight: how many times as much tokens of the repainted region count as the others."""
    error = fill_error(transformer, batch, x_t, velocity, sigma, guidance)
    if mask_weight == 1:
        return error.mean(dim=(1, 2))
    weights = token_weights(batch, mask_weight)
    return (weights * error.mean(dim=2)).mean(dim=1)


def token_weights(batch: FillBatch, mask_weight: float) -> Tensor:
    """[B, L] float32 of mean 1 in each sample: tokens of the repainted region have mask_weight times the weight of the
    others, and tokens at its edge one in between, by the share of their pixels."""
    weights = 1 + (mask_weight - 1) * repainted_share(batch)
    return weights / weights.mean(dim=1, keepdim=True)


def repainted_share(batch: FillBatch) -> Tensor:
    """[B, L] float32 in [0, 1]: how much of each token's pixels is repainted."""
    return batch.cond[..., -MASK_CHANNELS:].float().mean(dim=2)


def region_losses(batch: FillBatch, error: Tensor) -> dict[str, Tensor]:
    """Mean of the squared error [B, L, 64] over what is repainted, what is kept of the person, and the garment's panel:
    [B] each, nan in samples without such a region. Tokens at an edge count in both regions, by their pixels."""
    repainted, column = repainted_share(batch), batch.img_ids[:, 2]
    of_person = (column > column.max() / 2).float()
    kept, garment = (1 - repainted) * of_person, (1 - repainted) * (1 - of_person)
    regions = {"repainted": repainted, "kept": kept, "garment": garment}
    of_tokens = error.mean(dim=2)
    return {name: (share * of_tokens).sum(dim=1) / share.sum(dim=1) for name, share in regions.items()}


def fill_error(
    transformer: nn.Module, batch: FillBatch, x_t: Tensor, velocity: Tensor, sigma: Tensor, guidance: float
) -> Tensor:
    """Squared error of the predicted velocity in float32: [B, L, 64]."""
    return (predict_velocity(transformer, batch, x_t, sigma, guidance) - velocity.float()).square()


def predict_velocity(transformer: nn.Module, batch: FillBatch, x_t: Tensor, sigma: Tensor, guidance: float) -> Tensor:
    """What the transformer predicts at noise levels [B] and x_t [B, L, 64]: [B, L, 64] in float32."""
    (prediction,) = transformer(
        hidden_states=torch.cat([x_t, batch.cond], dim=2), timestep=sigma, guidance=torch.full_like(sigma, guidance),
        pooled_projections=batch.pooled, encoder_hidden_states=batch.prompt, img_ids=batch.img_ids,
        txt_ids=batch.txt_ids, return_dict=False,
    )  # fmt: skip
    return prediction.float()


def loss_weight(weighting_scheme: str, sigma: Tensor) -> Tensor:
    """[B] weights of the losses at sigma [B]; ones for "none"."""
    return compute_loss_weighting_for_sd3(weighting_scheme, sigma)
