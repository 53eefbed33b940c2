"""Trains the toy's VAE, on crops of drawings of all categories and at the end on whole diptychs."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.utils.data import Dataset

from tryon.config import TOY_HEIGHT, TOY_WIDTH
from tryon.console import progress_bar
from tryon.data.category import CATEGORIES
from tryon.data.sample import make_diptych
from tryon.evaluation.metrics import psnr
from tryon.toy.examples import DrawnData
from tryon.toy.model import new_vae
from tryon.toy.pretrain.config import PretrainConfig
from tryon.toy.pretrain.stage import Stage, adamw, made_ahead, mixed_precision

CROP = 64  # pixels; crops are several times cheaper than whole drawings
WHOLE_SHARE = 0.15  # of the steps, the last, on whole diptychs: normalisation sees other statistics in a crop
CROPS_PER_WHOLE = 16  # of a batch, for each whole diptych, which has 13.5 times as many pixels
KL_WEIGHT = 1e-6
SPREAD_WEIGHT = 1e-2  # of the latents' distance from the mean and spread that FLUX's shift and scaling expect


@dataclass(frozen=True)
class Drawn:
    """Diptychs drawn for one purpose. pictures: [N, 3, H, W] uint8. hidden: [N, H, W] bool, what is repainted."""

    pictures: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class Diptychs(Dataset):
    """Pair i of `data` as a picture [3, H, W], uint8, and what is repainted of it, [H, W] bool."""

    data: DrawnData

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, _, mask = make_diptych(self.data[index])
        return ((image + 1) * 127.5).round().to(torch.uint8), mask[0].bool()


@dataclass(frozen=True)
class VaeBatches(Dataset):
    """What step i learns from, of pictures [N, 3, H, W]: crops or at the end whole pictures, uint8, and the seed of its
    noise."""

    pictures: Tensor
    config: PretrainConfig

    def __getitem__(self, step: int) -> tuple[Tensor, int]:
        config, rng = self.config, np.random.default_rng([self.config.seed, 1, step])
        if step < (1 - WHOLE_SHARE) * config.vae_steps:
            batch = pick_crops(rng, self.pictures, config.vae_batch_size)
        else:
            wholes = max(1, config.vae_batch_size // CROPS_PER_WHOLE)
            batch = self.pictures[rng.integers(len(self.pictures), size=wholes)]
        return batch, config.seed + step


def vae_stage(config: PretrainConfig, device: torch.device) -> Stage:
    """The stage of the VAE."""
    size = (TOY_HEIGHT, TOY_WIDTH)
    learnt, measured = (
        DrawnData(count, config.seed + offset, CATEGORIES, *size)
        for count, offset in ((config.drawings, 0), (config.held_out, 1))
    )
    drawn = draw_diptychs(learnt, "what is learnt from", config.drawing_processes)
    held_out = draw_diptychs(measured, "what is measured on", config.drawing_processes)
    torch.manual_seed(config.seed)
    vae = new_vae().to(device)

    def loss(batch: tuple[Tensor, int]) -> Tensor:
        pictures, seed = batch
        with mixed_precision(device):
            return vae_loss(vae, to_float(pictures.to(device, non_blocking=True)), seed)

    batches, optimizers = VaeBatches(drawn.pictures, config), (adamw(vae.parameters(), config.vae_learning_rate),)
    return Stage(vae, config.vae_steps, optimizers, batches, loss, lambda: measure_vae(vae, held_out))


def draw_diptychs(data: DrawnData, what: str, processes: int = 0) -> Drawn:
    """All pairs of `data` as diptychs, drawn by so many processes; 0: by this one."""
    pictures = torch.empty(len(data), 3, data.height, 2 * data.width, dtype=torch.uint8)
    hidden = torch.empty(len(data), data.height, 2 * data.width, dtype=torch.bool)
    bar = progress_bar(len(data), f"drawing {what}", visible=True)
    ahead = made_ahead(Diptychs(data), range(len(data)), processes, pictures.device)
    for index, drawn in enumerate(ahead):
        pictures[index], hidden[index] = drawn
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
