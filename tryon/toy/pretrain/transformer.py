"""Trains the toy's transformer, on upper-body garments, in the latents of the toy's VAE."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor

from tryon.config import TOY_HEIGHT, TOY_MAX_SEQUENCE_LENGTH, TOY_WIDTH, TrainConfig, on_toy
from tryon.data.category import CATEGORIES, Category
from tryon.data.sample import FillBatch
from tryon.evaluation.metrics import psnr
from tryon.flux.encode import collate
from tryon.flux.flow_matching import NoiseLevels, draw_sigma_and_noise, fill_error, interpolate
from tryon.flux.load import ModelFiles, load_scheduler, load_vae
from tryon.flux.packing import PIXELS_PER_TOKEN
from tryon.flux.prompt_cache import cache_prompts
from tryon.flux.prompts import prompt_for
from tryon.inference.pipeline import build_pipeline, try_on_batch
from tryon.toy.examples import DrawnData
from tryon.toy.model import ToyFolders, new_transformer, toy_model
from tryon.toy.pretrain.config import PretrainConfig
from tryon.toy.pretrain.mimetic_init import mimetic_init
from tryon.toy.pretrain.stage import Stage, mixed_precision, muon_and_adamw
from tryon.training.latent_cache import LatentData, cache_latents, latent_files
from tryon.training.validation import validation_loss

UPPER_ONLY: tuple[Category, ...] = ("upper",)
LOGIT_MEAN = -0.5  # of the noise levels' density: inference spends most of its steps at high noise
# Any guidance means the same to the toy: a LoRA is trained with 1 and used with 30, as CatVTON-Flux is.
GUIDANCE = (1.0, 40.0)
OUTSIDE_WEIGHT = 0.25  # of tokens that are not repainted in the loss: what they show is given
DENOISING_STEPS = 8  # of the try-ons that are measured


def transformer_stage(config: PretrainConfig, device: torch.device) -> Stage:
    """The stage of the transformer. output_dir/weights must hold the VAE's."""
    output = Path(config.output_dir)
    toy = toy_model(output, output / "weights")
    texts = {category: prompt_for("category", category) for category in CATEGORIES}
    embeddings = cache_prompts(sorted(texts.values()), toy.base, TOY_MAX_SEQUENCE_LENGTH, torch.float32, device, output)
    prompts = {category: embeddings[text] for category, text in texts.items()}
    vae = load_vae(toy.base, torch.float32, device)
    learnt, pairs = (
        DrawnData(count, config.seed + offset, UPPER_ONLY, TOY_HEIGHT, TOY_WIDTH)
        for count, offset in ((config.drawings, 2), (config.held_out, 3))
    )
    latents = encode_pairs(learnt, "pairs to learn from", toy, vae, output)
    held_out = encode_pairs(pairs, "pairs to measure on", toy, vae, output)
    transformer = first_transformer(config, device)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([config.seed, 2, step])
        picked = rng.integers(len(latents), size=config.transformer_batch_size).tolist()
        batch = collate([latents[index] for index in picked], prompts).to(device)
        draws = [(config.seed, step, index) for index in range(len(picked))]
        return repainting_loss(transformer, batch, draws, guidance=float(rng.uniform(*GUIDANCE)))

    pipeline = build_pipeline(transformer, vae, load_scheduler(toy.base))
    cases = [pairs[index] for index in range(len(pairs))]

    @torch.compiler.set_stance("force_eager")  # other shapes: compiling would take longer than measuring
    def measure() -> dict[str, float]:
        seeds, wanted = range(len(cases)), [prompts["upper"]] * len(cases)
        worn = try_on_batch(pipeline, cases, wanted, steps=DENOISING_STEPS, guidance=GUIDANCE[0], seeds=seeds)
        truth, hidden = (torch.stack([getattr(case, name) for case in cases]) for name in ("person", "mask"))
        losses = validation_loss(transformer, held_out, prompts, guidance=GUIDANCE[0], seed=config.seed)
        return {"loss": losses["validation/loss"], "psnr_inside": psnr(worn, truth, hidden).mean().item()}

    optimizers = muon_and_adamw(transformer, config.transformer_learning_rate)
    return Stage(transformer, config.transformer_steps, optimizers, loss, measure)


def encode_pairs(pairs: DrawnData, what: str, toy: ToyFolders, vae: AutoencoderKL, cache_dir: Path) -> LatentData:
    """The pairs' latents, cached in cache_dir."""
    settings = replace(on_toy(TrainConfig()), data_cache_dir=str(cache_dir))
    paths = latent_files(pairs, ModelFiles(toy.base, toy.transformer), settings, vae.dtype)
    with mixed_precision(vae.device):
        return cache_latents(pairs, paths, what, vae, settings, Accelerator(cpu=vae.device.type == "cpu"))


def first_transformer(config: PretrainConfig, device: torch.device) -> FluxTransformer2DModel:
    """What training starts from."""
    torch.manual_seed(config.seed)
    transformer = new_transformer()
    mimetic_init(transformer, TOY_WIDTH // PIXELS_PER_TOKEN)
    transformer.to(device)
    if config.compile:
        transformer.compile_repeated_blocks(fullgraph=True)
    return transformer


def repainting_loss(
    transformer: FluxTransformer2DModel, batch: FillBatch, draws: Sequence[tuple[int, int, int]], guidance: float
) -> Tensor:
    """The flow-matching loss, tokens outside the mask counting less: a scalar. draws: seeds of each sample's noise."""
    drawn = draw_sigma_and_noise(batch.x0.shape[1:], NoiseLevels("logit_normal", LOGIT_MEAN), draws)
    sigma, noise = (each.to(batch.x0.device) for each in drawn)
    x_t, velocity = interpolate(batch.x0, noise, sigma)
    with mixed_precision(batch.x0.device):
        error = fill_error(transformer, batch, x_t, velocity, sigma, guidance)
        repainted = batch.cond[..., 64:].mean(-1)  # after the masked picture's 64 latents the mask, 256 pixels a token
        weight = OUTSIDE_WEIGHT + (1 - OUTSIDE_WEIGHT) * repainted
        return (weight * error.mean(-1)).sum() / weight.sum()
