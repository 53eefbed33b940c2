"""Trains the toy's VAE, on crops of drawings of all categories and at the end on whole diptychs."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from tryon.config import TOY_HEIGHT, TOY_WIDTH
from tryon.console import progress_bar
from tryon.data.category import CATEGORIES
from tryon.data.sample import make_diptych
from tryon.evaluation.metrics import psnr
from tryon.toy.examples import DrawnData
from tryon.toy.model import new_vae
from tryon.toy.pretrain.config import PretrainConfig
from tryon.toy.pretrain.stage import Stage, adamw, mixed_precision

CROP = 64  # pixels; crops are several times cheaper than whole drawings
WHOLE_SHARE = 0.15  # of the steps, the last, on whole diptychs: normalisation sees other statistics in a crop
WHOLE_BATCH = 1
KL_WEIGHT = 1e-6
SPREAD_WEIGHT = 1e-2  # of the latents' distance from the mean and spread that FLUX's shift and scaling expect


@dataclass(frozen=True)
class Drawn:
    """Diptychs drawn for one purpose. pictures: [N, 3, H, W] uint8. hidden: [N, H, W] bool, what is repainted."""

    pictures: Tensor
    hidden: Tensor


def vae_stage(config: PretrainConfig, device: torch.device) -> Stage:
    """The stage of the VAE."""
    size = (TOY_HEIGHT, TOY_WIDTH)
    drawn = draw_diptychs(DrawnData(config.drawings, config.seed, CATEGORIES, *size), "what is learnt from")
    held_out = draw_diptychs(DrawnData(config.held_out, config.seed + 1, CATEGORIES, *size), "what is measured on")
    torch.manual_seed(config.seed)
    vae = new_vae().to(device)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([config.seed, 1, step])
        if step < (1 - WHOLE_SHARE) * config.vae_steps:
            batch = pick_crops(rng, drawn.pictures, config.vae_batch_size)
        else:
            batch = drawn.pictures[rng.integers(len(drawn.pictures), size=WHOLE_BATCH)]
        with mixed_precision(device):
            return vae_loss(vae, to_float(batch).to(device), seed=config.seed + step)

    optimizers = (adamw(vae.parameters(), config.vae_learning_rate),)
    return Stage(vae, config.vae_steps, optimizers, loss, lambda: measure_vae(vae, held_out))


def draw_diptychs(data: DrawnData, what: str) -> Drawn:
    """All pairs of `data` as diptychs."""
    pictures = torch.empty(len(data), 3, data.height, 2 * data.width, dtype=torch.uint8)
    hidden = torch.empty(len(data), data.height, 2 * data.width, dtype=torch.bool)
    bar = progress_bar(len(data), f"drawing {what}", visible=True)
    for index in range(len(data)):
        image, _, mask = make_diptych(data[index])
        pictures[index] = ((image + 1) * 127.5).round().to(torch.uint8)
        hidden[index] = mask[0].bool()
        bar.update()
    bar.close()
    return Drawn(pictures, hidden)


def to_float(pictures: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1]."""
    return pictures.float() / 127.5 - 1


def pick_crops(rng: np.random.Generator, pictures: Tensor, count: int) -> Tensor:
    """[count, 3, CROP, CROP]: of two random places each the one with more in it, or backgrounds would outweigh all."""
    crops = []
    for _ in range(count):
        found = []
        for _ in range(2):
            index, top = rng.integers(len(pictures)), rng.integers(pictures.shape[2] - CROP + 1)
            left = rng.integers(pictures.shape[3] - CROP + 1)
            found.append(pictures[index, :, top : top + CROP, left : left + CROP])
        crops.append(max(found, key=lambda crop: crop.float().std()))
    return torch.stack(crops)


def vae_loss(vae: AutoencoderKL, pictures: Tensor, seed: int) -> Tensor:
    """Squared error of pictures [B, 3, H, W] in [-1, 1] through the VAE, and what keeps its latents in their range."""
    posterior = vae.encode(pictures).latent_dist
    latents = posterior.sample(torch.Generator(pictures.device).manual_seed(seed))
    error = (vae.decode(latents).sample - pictures).square().mean()
    mean, spread = posterior.mean.mean((0, 2, 3)), posterior.mean.std((0, 2, 3))
    shift, scale = vae.config.shift_factor, vae.config.scaling_factor
    off = (scale * (mean - shift)).square().mean() + (scale * spread - 1).square().mean()
    return error + KL_WEIGHT * posterior.kl().mean() / pictures[0].numel() + SPREAD_WEIGHT * off


@torch.no_grad()
def measure_vae(vae: AutoencoderKL, held_out: Drawn) -> dict[str, float]:
    """PSNR in dB of the held-out diptychs through the VAE, whole and inside the masks, means over the diptychs; and the
    latents' mean and spread, scaled."""
    whole, inside, latents = [], [], []
    for picture, hidden in zip(held_out.pictures, held_out.hidden, strict=True):
        image = to_float(picture)[None].to(vae.device)
        latent = vae.encode(image).latent_dist.mode()
        decoded, mask = vae.decode(latent).sample.clamp(-1, 1), hidden[None, None].to(image)
        whole.append(psnr(decoded, image, torch.ones_like(mask)).item())
        inside.append(psnr(decoded, image, mask).item())
        latents.append(latent)
    scaled = (torch.cat(latents) - vae.config.shift_factor) * vae.config.scaling_factor
    return {
        "psnr": float(np.mean(whole)),
        "psnr_inside": float(np.mean(inside)),
        "latent_mean": scaled.mean().item(),
        "latent_spread": scaled.std((0, 2, 3)).mean().item(),
    }
