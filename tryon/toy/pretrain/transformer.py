"""Trains the toy's transformer, on upper-body garments, in the latents of the toy's VAE."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor
from torch.utils.data import Dataset

from tryon.config import TOY_HEIGHT, TOY_MAX_SEQUENCE_LENGTH, TOY_WIDTH
from tryon.console import progress_bar
from tryon.data.category import CATEGORIES, Category
from tryon.data.sample import FillBatch, LatentSample, make_diptych
from tryon.evaluation.metrics import psnr
from tryon.files import file_hash
from tryon.flux.encode import collate, encode_pictures
from tryon.flux.flow_matching import NoiseLevels, draw_sigma_and_noise, fill_error, interpolate
from tryon.flux.load import load_scheduler, load_vae
from tryon.flux.packing import PIXELS_PER_TOKEN, count_tokens
from tryon.flux.prompt_cache import cache_prompts
from tryon.flux.prompts import prompt_for
from tryon.inference.pipeline import build_pipeline, try_on_batch
from tryon.tensor_files import content_key, read_whole, write_whole
from tryon.toy.examples import DrawnData
from tryon.toy.model import new_transformer, toy_model
from tryon.toy.pretrain.config import PretrainConfig
from tryon.toy.pretrain.mimetic_init import mimetic_init
from tryon.toy.pretrain.stage import Stage, made_ahead, mixed_precision, muon_and_adamw
from tryon.training.validation import validation_loss

UPPER_ONLY: tuple[Category, ...] = ("upper",)
LOGIT_MEAN = -0.5  # of the noise levels' density: inference spends most of its steps at high noise
# Any guidance means the same to the toy: a LoRA is trained with 1 and used with 30, as CatVTON-Flux is.
GUIDANCE = (1.0, 40.0)
OUTSIDE_WEIGHT = 0.25  # of tokens that are not repainted in the loss: what they show is given
DENOISING_STEPS = 8  # of the try-ons that are measured
ENCODED_AT_ONCE = 64  # pairs; a CPU encodes them one by one


@dataclass(frozen=True)
class Draws(Dataset):
    """What is drawn for step i: which of the pairs, sigma [B], noise [B, L, 64], guidance."""

    pairs: int
    config: PretrainConfig

    def __getitem__(self, step: int) -> tuple[list[int], Tensor, Tensor, float]:
        config, rng = self.config, np.random.default_rng([self.config.seed, 2, step])
        picked = rng.integers(self.pairs, size=config.transformer_batch_size).tolist()
        shape, draws = (count_tokens(TOY_HEIGHT, TOY_WIDTH), 64), [(config.seed, step, i) for i in range(len(picked))]
        sigma, noise = draw_sigma_and_noise(shape, NoiseLevels("logit_normal", LOGIT_MEAN), draws)
        return picked, sigma, noise, float(rng.uniform(*GUIDANCE))


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
    latents = encoded_pairs(learnt, "pairs to learn from", vae, config)
    held_out = encoded_pairs(pairs, "pairs to measure on", vae, config)
    transformer = first_transformer(config, device)

    def loss(draws: tuple[list[int], Tensor, Tensor, float]) -> Tensor:
        picked, sigma, noise, guidance = draws
        batch = collate([latents[index] for index in picked], prompts).to(device)
        sigma, noise = (each.to(device, non_blocking=True) for each in (sigma, noise))
        return repainting_loss(transformer, batch, sigma, noise, guidance)

    pipeline = build_pipeline(transformer, vae, load_scheduler(toy.base))
    cases = [pairs[index] for index in range(len(pairs))]

    @torch.compiler.set_stance("force_eager")  # other shapes: compiling would take longer than measuring
    def measure() -> dict[str, float]:
        seeds, wanted = range(len(cases)), [prompts["upper"]] * len(cases)
        worn = try_on_batch(pipeline, cases, wanted, steps=DENOISING_STEPS, guidance=GUIDANCE[0], seeds=seeds)
        truth, hidden = (torch.stack([getattr(case, name) for case in cases]) for name in ("person", "mask"))
        losses = validation_loss(transformer, held_out, prompts, guidance=GUIDANCE[0], seed=config.seed)
        return {"loss": losses["validation/loss"], "psnr_inside": psnr(worn, truth, hidden).mean().item()}

    batches, optimizers = Draws(len(latents), config), muon_and_adamw(transformer, config.transformer_learning_rate)
    return Stage(transformer, config.transformer_steps, optimizers, batches, loss, measure)


def encoded_pairs(pairs: DrawnData, what: str, vae: AutoencoderKL, config: PretrainConfig) -> list[LatentSample]:
    """The pairs' latents on the VAE's device. They are kept in a file in output_dir, and drawn and encoded where it is
    not there yet."""
    output = Path(config.output_dir)
    key = content_key(pairs.key(0), file_hash(output / "weights" / "vae.safetensors"))
    file = output / "latents" / f"{key}.safetensors"
    if not file.exists():
        write_whole(file, encode_pairs(pairs, what, vae, config.drawing_processes))
    stored = {name: tensor.to(vae.device) for name, tensor in read_whole(file)[0].items()}
    rows = zip(stored["target"], stored["masked"], stored["mask"], strict=True)
    return [LatentSample(pairs.key(index), *row, pairs.category(index)) for index, row in enumerate(rows)]


def encode_pairs(pairs: DrawnData, what: str, vae: AutoencoderKL, processes: int) -> dict[str, Tensor]:
    """target and masked: [N, 16, h, w], the latents of LatentSample; mask: [N, 1, H, W] bool. On the CPU."""
    samples = iter(made_ahead(pairs, range(len(pairs)), processes, vae.device))
    bar = progress_bar(len(pairs), f"encoding {what}", visible=True)
    parts = []
    while some := list(islice(samples, ENCODED_AT_ONCE)):
        images, masked, masks = zip(*(make_diptych(sample.to(vae.device)) for sample in some), strict=True)
        with mixed_precision(vae.device):
            target, hidden = encode_pictures(vae, torch.stack([*images, *masked])).cpu().chunk(2)
        parts.append((target, hidden, torch.stack(masks).bool().cpu()))
        bar.update(len(some))
    bar.close()
    whole = (torch.cat(part).contiguous() for part in zip(*parts, strict=True))
    return dict(zip(("target", "masked", "mask"), whole, strict=True))


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
    transformer: FluxTransformer2DModel, batch: FillBatch, sigma: Tensor, noise: Tensor, guidance: float
) -> Tensor:
    """The flow-matching loss, tokens outside the mask counting less: a scalar."""
    x_t, velocity = interpolate(batch.x0, noise, sigma)
    with mixed_precision(batch.x0.device):
        error = fill_error(transformer, batch, x_t, velocity, sigma, guidance)
        repainted = batch.cond[..., 64:].mean(-1)  # after the masked picture's 64 latents the mask, 256 pixels a token
        weight = OUTSIDE_WEIGHT + (1 - OUTSIDE_WEIGHT) * repainted
        return (weight * error.mean(-1)).sum() / weight.sum()
