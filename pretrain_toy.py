"""Trains the toy's weights from nothing: a VAE on all its drawings, then a FLUX-Fill transformer on upper-body garments
only, as catvton-flux-alpha was; and a SegFormer that labels the parts of drawn people.

    python pretrain_toy.py --stage vae
    python pretrain_toy.py --stage transformer
    python pretrain_toy.py --stage parser

Everything follows from the seed and the step, so an interrupted stage goes on as if it had not been: start it again,
with the same flags.
The result, half-precision weights and a manifest, lies in <output_dir>/weights; the project's own is tryon/toy/weights.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tryon.cli import check_first, parse_flags, run_script
from tryon.config import (
    PROJECT,
    TOY_HEIGHT,
    TOY_MAX_SEQUENCE_LENGTH,
    TOY_WIDTH,
    TrainConfig,
    mistakes,
    on_toy,
    setting,
)


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """The flags of this script."""

    stage: Literal["vae", "transformer", "parser"] = setting("vae", "what is trained; the transformer needs the VAE")
    output_dir: str = setting(str(PROJECT / "runs" / "pretrain_toy"), "where log, state and weights are written")
    seed: int = setting(0, "seed of drawings, weights and noise", 0)
    drawings: int = setting(12000, "diptychs drawn for training; the parser never sees a drawing twice", 1)
    held_out: int = setting(32, "diptychs, or people, drawn for the measurements", 1)
    save_every: int = setting(500, "steps between two measurements, and two states that can be gone on from", 1)

    vae_steps: int = setting(3000, "optimiser steps of the VAE", 1)
    vae_batch_size: int = setting(16, "crops of 64 x 64 pixels per step", 1)
    vae_learning_rate: float = setting(1e-3, "peak learning rate of the VAE", 0)

    compile: bool = setting(False, "compile the transformer's blocks: a minute more, then faster steps")
    transformer_steps: int = setting(9500, "optimiser steps of the transformer", 1)
    transformer_batch_size: int = setting(16, "diptychs per step", 1)
    transformer_learning_rate: float = setting(8e-3, "peak learning rate of Muon, for the transformer's matrices", 0)

    parser_steps: int = setting(3000, "optimiser steps of the parser", 1)
    parser_batch_size: int = setting(8, "drawn people per step", 1)
    parser_learning_rate: float = setting(8e-3, "peak learning rate of Muon, for the parser's matrices", 0)


def read_settings(argv: list[str]) -> PretrainConfig:
    """The flags, checked. Raises ValueError, in one sentence, for every mistake."""
    (given,) = parse_flags(argv, "python pretrain_toy.py", "Trains the toy's weights from nothing.", PretrainConfig)
    config = PretrainConfig(**given)
    if problems := list(mistakes(config)):
        raise ValueError("; ".join(problems))
    return config


if __name__ == "__main__":
    check_first(read_settings)  # --help and a wrong flag answer before the heavy imports

import math
from hashlib import sha256

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from transformers import SegformerForSemanticSegmentation, SegformerImageProcessorPil

from tryon.console import progress_bar, set_up_logging
from tryon.data.category import CATEGORIES, Category
from tryon.data.human_parser import Parser, parse, parts_of
from tryon.data.masks import PARTS
from tryon.data.sample import FillBatch, make_diptych
from tryon.evaluation.metrics import psnr
from tryon.flux.encode import collate, to_device
from tryon.flux.flow_matching import draw_sigma_and_noise, fill_error, interpolate
from tryon.flux.load import ModelFiles, load_scheduler, load_vae
from tryon.flux.packing import PIXELS_PER_TOKEN
from tryon.flux.prompt_cache import cache_prompts
from tryon.flux.prompts import prompt_for
from tryon.inference.pipeline import build_pipeline, try_on_batch
from tryon.toy.examples import DrawnData, labelled_person
from tryon.toy.initial import start_with_what_is_known
from tryon.toy.model import PARSER_LABELS, new_parser, new_transformer, new_vae, parser_processor, toy_model
from tryon.toy.stage import Stage, train
from tryon.toy.world import WORLD_VERSION
from tryon.training.latent_cache import LatentData, cache_latents, latent_files
from tryon.training.validation import validation_loss

CROP = 64  # pixels; crops are several times cheaper than whole drawings
WHOLE_SHARE = 0.15  # of the VAE's steps, the last, on whole diptychs: normalisation sees other statistics in a crop
WHOLE_BATCH = 1
GUIDANCE = (1.0, 40.0)
OUTSIDE_WEIGHT = 0.25  # of tokens that are not repainted in the transformer's loss: what they show is given
DENOISING_STEPS = 8  # of the try-ons that are measured
UPPER_ONLY: tuple[Category, ...] = ("upper",)
LOGIT_MEAN = -0.5  # of the noise levels' density: inference spends most of its steps at high noise
ADAM_SHARE = 0.375  # of Muon's learning rate, for what is no matrix inside a block
KL_WEIGHT = 1e-6
SPREAD_WEIGHT = 1e-2  # of the latents' distance from the mean and spread that FLUX's shift and scaling expect


@dataclass(frozen=True)
class Drawn:
    """Diptychs drawn for one purpose. pictures: [N, 3, H, W] uint8. hidden: [N, H, W] bool, what is repainted."""

    pictures: Tensor
    hidden: Tensor


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


def prepare_vae(config: PretrainConfig, device: torch.device) -> Stage:
    """The VAE, on crops of drawings of all categories and at the end on whole diptychs."""
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
    return Stage("vae", vae, config.vae_steps, optimizers, loss, lambda: measure_vae(vae, held_out), identity(config))


def prepare_transformer(config: PretrainConfig, device: torch.device) -> Stage:
    """The transformer, on upper-body garments, in the latents of the VAE of the stage before.

    Raises ValueError where that has not been trained.
    """
    output = Path(config.output_dir)
    if not (output / "weights" / "vae.safetensors").is_file():
        raise ValueError(f"{output} has no weights/vae.safetensors: run --stage vae first")
    toy = toy_model(output, output / "weights")
    files, size = ModelFiles(toy.base, toy.transformer), (TOY_HEIGHT, TOY_WIDTH)
    settings = replace(on_toy(TrainConfig()), data_cache_dir=config.output_dir)
    texts = {category: prompt_for("category", category) for category in CATEGORIES}
    embeddings = cache_prompts(sorted(texts.values()), toy.base, TOY_MAX_SEQUENCE_LENGTH, torch.float32, device, output)
    prompts = {category: embeddings[text] for category, text in texts.items()}
    vae = load_vae(toy.base, torch.float32, device)
    accelerator = Accelerator(cpu=device.type == "cpu")

    def encoded(pairs: DrawnData, what: str) -> LatentData:
        paths = latent_files(pairs, files, settings, vae.dtype)
        with mixed_precision(device):
            return cache_latents(pairs, paths, what, vae, settings, accelerator)

    latents = encoded(DrawnData(config.drawings, config.seed + 2, UPPER_ONLY, *size), "pairs to learn from")
    pairs = DrawnData(config.held_out, config.seed + 3, UPPER_ONLY, *size)
    held_out = encoded(pairs, "pairs to measure on")
    torch.manual_seed(config.seed)
    transformer = new_transformer()
    start_with_what_is_known(transformer, TOY_WIDTH // PIXELS_PER_TOKEN)
    transformer.to(device)
    if config.compile:
        transformer.compile_repeated_blocks(fullgraph=True)

    def loss(step: int) -> Tensor:
        rng = np.random.default_rng([config.seed, 2, step])
        picked = rng.integers(len(latents), size=config.transformer_batch_size).tolist()
        batch = to_device(collate([latents[index] for index in picked], prompts), device)
        draws = [(config.seed, step, index) for index in range(len(picked))]
        sigma, noise = draw_sigma_and_noise(batch.x0.shape[1:], "logit_normal", LOGIT_MEAN, 1.0, draws)
        sigma, noise = sigma.to(device), noise.to(device)
        x_t, velocity = interpolate(batch.x0, noise, sigma)
        # Any guidance means the same to the toy: a LoRA is trained with 1 and used with 30, as CatVTON-Flux is.
        guidance = float(rng.uniform(*GUIDANCE))
        with mixed_precision(device):
            return repainting_loss(fill_error(transformer, batch, x_t, velocity, sigma, guidance), batch)

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
    return Stage("transformer", transformer, config.transformer_steps, optimizers, loss, measure, identity(config))


def prepare_parser(config: PretrainConfig, device: torch.device) -> Stage:
    """The parser, on people of all categories, views and sizes."""
    held_out = [labelled_person(config.seed + 5, index) for index in range(config.held_out)]
    processor = parser_processor()
    torch.manual_seed(config.seed)
    model = new_parser().to(device).train()

    def loss(step: int) -> Tensor:
        first = step * config.parser_batch_size
        indices = range(first, first + config.parser_batch_size)
        people = [labelled_person(config.seed + 4, index) for index in indices]
        with mixed_precision(device):
            return parser_loss(model, processor, people)

    def measure() -> dict[str, float]:
        parser = Parser("", model.eval(), processor, parts_of(PARSER_LABELS))
        measured = measure_parser(parser, held_out)
        model.train()
        return measured

    optimizers = muon_and_adamw(model, config.parser_learning_rate)
    return Stage("parser", model, config.parser_steps, optimizers, loss, measure, identity(config))


def adamw(parameters: Iterable[torch.nn.Parameter], learning_rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=0)


def muon_and_adamw(model: torch.nn.Module, learning_rate: float) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices inside blocks, but for those of modulations, and AdamW for all else."""
    named = dict(model.named_parameters())
    inside = [name for name in named if "block" in name and "norm" not in name and named[name].ndim == 2]
    muon = torch.optim.Muon(
        [named[name] for name in inside], lr=learning_rate, weight_decay=0, adjust_lr_fn="match_rms_adamw"
    )
    return muon, adamw((named[name] for name in named if name not in inside), ADAM_SHARE * learning_rate)


def mixed_precision(device: torch.device) -> torch.autocast:
    """bfloat16 where there are instructions for it: a CPU without takes 14 times as long as with float32."""
    native = device.type == "cuda" or torch.cpu.get_capabilities().get("avx512_bf16", False)
    return torch.autocast(device.type, torch.bfloat16, enabled=native)


def repainting_loss(error: Tensor, batch: FillBatch) -> Tensor:
    """The mean of the squared errors [B, L, 64], tokens outside the mask counting less: a scalar."""
    repainted = batch.cond[..., 64:].mean(-1)  # after the masked picture's 64 latents the mask, 256 pixels a token
    weight = OUTSIDE_WEIGHT + (1 - OUTSIDE_WEIGHT) * repainted
    return (weight * error.mean(-1)).sum() / weight.sum()


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
        decoded = vae.decode(latent).sample.clamp(-1, 1)
        error = (decoded - image).square().mean(1)[0].cpu()
        whole.append(decibels(error.mean().item()))
        inside.append(decibels(error[hidden].mean().item()))
        latents.append(latent)
    scaled = (torch.cat(latents) - vae.config.shift_factor) * vae.config.scaling_factor
    return {
        "psnr": float(np.mean(whole)),
        "psnr_inside": float(np.mean(inside)),
        "latent_mean": scaled.mean().item(),
        "latent_spread": scaled.std((0, 2, 3)).mean().item(),
    }


def parser_loss(
    model: SegformerForSemanticSegmentation,
    processor: SegformerImageProcessorPil,
    people: Sequence[tuple[Image.Image, Tensor]],
) -> Tensor:
    """Cross-entropy of the labels [H, W] of people, all brought to the size that the processor makes of pictures."""
    pictures, labels = zip(*people, strict=True)
    inputs = processor(list(pictures), segmentation_maps=list(labels), return_tensors="pt")
    return model(**inputs.to(model.device)).loss


def measure_parser(parser: Parser, people: Sequence[tuple[Image.Image, Tensor]]) -> dict[str, float]:
    """Over all pixels of the people, at their own sizes: the share whose part is right, and the intersection over union
    of parts, the mean over all there are and over the three of garments."""
    confusion = torch.zeros(len(PARTS), len(PARTS))
    for picture, labels in people:
        pairs = parser.parts[labels] * len(PARTS) + parse(parser, picture)
        confusion += torch.bincount(pairs.flatten(), minlength=len(PARTS) ** 2).view_as(confusion)
    right = confusion.diag()
    iou = right / (confusion.sum(0) + confusion.sum(1) - right)  # nan where a part is nowhere
    worn = iou[[PARTS.index(category) for category in CATEGORIES]]
    return {
        "accuracy": (right.sum() / confusion.sum()).item(),
        "iou": iou.nanmean().item(),
        "iou_worn": worn.nanmean().item(),
    }


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


def decibels(error: float) -> float:
    """PSNR of a mean squared error between pictures in [-1, 1]."""
    return 10 * math.log10(4 / max(float(error), 1e-12))


def identity(config: PretrainConfig) -> dict[str, Any]:
    """What the states of a stage belong to."""
    own = ("seed", f"{config.stage}_") if config.stage == "parser" else ("seed", "drawings", f"{config.stage}_")
    settings = {name: value for name, value in asdict(config).items() if name.startswith(own)}
    settings["world"] = WORLD_VERSION
    if config.stage == "transformer":
        settings["vae"] = sha256((Path(config.output_dir) / "weights" / "vae.safetensors").read_bytes()).hexdigest()
    return settings


def main(argv: list[str]) -> None:
    config = read_settings(argv)
    set_up_logging(is_main_process=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    Path(config.output_dir).mkdir(parents=True, exist_ok=True)
    prepare = {"vae": prepare_vae, "transformer": prepare_transformer, "parser": prepare_parser}[config.stage]
    stage = prepare(config, device)
    command = " ".join(["python pretrain_toy.py", *argv])
    facts = {"command": command, "seed": config.seed, "world": WORLD_VERSION}
    train(stage, Path(config.output_dir), config.save_every, facts)


if __name__ == "__main__":
    run_script(main)
