"""The inpaint training loop: LoRA fine-tuning of a FLUX-Fill transformer on garment | person diptychs.

`train(config, train_data, val_data)` is all there is to call; any data set that gives TryOnSamples will do. Run as a
script it trains on a VITON-HD folder:

    python train_flux_inpaint.py --dataroot <folder> --train_data_list train_pairs.txt

Every random draw follows from (seed, optimiser step, accumulation index, index in the global batch), and the order of
the samples from (seed, epoch): neither the number of processes nor an interruption changes what is trained on.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration
from diffusers import FluxFillPipeline
from diffusers.optimization import get_scheduler
from PIL import Image
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from tryon.cache import LatentData, cache_latents, cache_prompts
from tryon.checkpoint import TrainerState, load_checkpoint, lora_file, newest_checkpoint, save_checkpoint
from tryon.config import TrainConfig
from tryon.encode import collate, to_device
from tryon.flow import draw_sigma_and_noise, fill_loss, interpolate, loss_weight
from tryon.lora import LORA_FILE, LoraFacts, add_lora, load_lora
from tryon.masks import MASK_RULE
from tryon.models import hub_or_folder, load_scheduler, load_transformer, load_vae
from tryon.pipeline import build_pipeline, try_on
from tryon.sample import CATEGORIES, Category, FillBatch, PromptEmbedding, SampleSource, prompt_for
from tryon.tracking import log_metrics, log_picture, progress_bar
from tryon.validate import draw_grid, pick_for_grid, validation_loss

logger = logging.getLogger(__name__)

LOG_EVERY = 10  # optimiser steps between two plain lines in the log; metrics.jsonl gets every step


def train(config: TrainConfig, train_data: SampleSource, val_data: SampleSource) -> Path:
    """Trains a LoRA and returns the run's folder, config.output_dir, with checkpoints, metrics and pictures in it.

    Raises ValueError, in one sentence, for everything the user can mend: models that cannot be loaded, data that cannot
    be read, a checkpoint of another LoRA, a loss that is no longer finite.
    """
    assert config.output_dir is not None, "the caller chooses the run's folder"
    run = Path(config.output_dir)
    accelerator = start_accelerator(config, run)
    dtype = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32

    # Text encoders and VAE first: the prompts and pictures never change, so they are encoded once, and the text
    # encoders are gone before the transformer arrives. The VAE stays, for the validation pictures.
    prompts = encode_prompts(config, dtype, accelerator)
    vae = load_vae(config.pretrained_model_name_or_path, config.cache_dir, dtype).to(accelerator.device)
    vae_folder = hub_or_folder(config.pretrained_model_name_or_path, ["vae/*"], config.cache_dir) / "vae"
    train_latents = cache_latents(train_data, "training samples", vae, vae_folder, config, accelerator)
    val_latents = cache_latents(val_data, "validation samples", vae, vae_folder, config, accelerator)

    transformer = load_transformer(config.pretrained_inpaint_model_name_or_path, config.cache_dir, dtype)
    transformer.to(accelerator.device)
    parameters = add_lora(transformer, config.lora_rank, config.lora_alpha, config.seed)
    if config.init_lora:
        load_lora(transformer, find_lora(Path(config.init_lora)))
    if config.gradient_checkpointing == "full":
        transformer.enable_gradient_checkpointing()
    logger.info("LoRA: rank %d, %.1f M parameters", config.lora_rank, sum(p.numel() for p in parameters) / 1e6)

    optimizer = make_optimizer(config, parameters)
    global_batch = config.train_batch_size * accelerator.num_processes
    samples_per_step = global_batch * config.gradient_accumulation_steps
    max_steps = config.max_train_steps
    if config.num_train_epochs:
        max_steps = math.ceil(config.num_train_epochs * len(train_latents) / samples_per_step)
    lr_scheduler = make_lr_scheduler(config, optimizer, max_steps)
    state = TrainerState(step=0, seed=config.seed, samples_seen=0)
    if config.resume_from_checkpoint:
        checkpoint = find_checkpoint(config.resume_from_checkpoint, run)
        state = load_checkpoint(checkpoint, transformer, optimizer, lr_scheduler)
        logger.info("resumed from %s at step %d", checkpoint, state.step)
        if state.step >= max_steps:
            raise ValueError(f"{checkpoint} is at step {state.step} of {max_steps}: give more --max_train_steps")

    scheduler = load_scheduler(config.pretrained_model_name_or_path, config.cache_dir)
    pipeline = build_pipeline(transformer, vae, scheduler)
    validate = make_validation(config, accelerator, pipeline, val_data, val_latents, prompts, run)
    validate(state.step)

    model = accelerator.prepare(transformer)
    model.train()
    batches = iter(load_batches(config, train_latents, prompts, accelerator, state.step, max_steps))
    bar = progress_bar(max_steps, "training", accelerator.is_main_process, initial=state.step)
    started, first_step = time.monotonic(), state.step
    for step in range(state.step, max_steps):
        step_started = time.monotonic()
        total = torch.zeros((), device=accelerator.device)
        for micro in range(config.gradient_accumulation_steps):
            batch = to_device(next(batches), accelerator.device)
            last = micro == config.gradient_accumulation_steps - 1
            with nullcontext() if last else accelerator.no_sync(model):
                loss = batch_loss(config, model, batch, step, micro, accelerator)
                accelerator.backward(loss / config.gradient_accumulation_steps)
            total += loss.detach() / config.gradient_accumulation_steps

        mean_loss = accelerator.reduce(total, "mean").item()
        if not math.isfinite(mean_loss):
            raise ValueError(
                f"the loss is {mean_loss} at step {step + 1}, so this update was not made: lower --learning_rate "
                "or look at the data, then resume from the newest checkpoint"
            )
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        learning_rate = lr_scheduler.get_last_lr()[0]
        optimizer.step()
        lr_scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        state = replace(state, step=step + 1, samples_seen=state.samples_seen + samples_per_step)

        seconds = time.monotonic() - step_started
        metrics = {
            "train/loss": mean_loss,
            "train/learning_rate": learning_rate,
            "train/grad_norm": grad_norm.item(),
            "train/seconds_per_step": seconds,
        }
        log_metrics(accelerator, run, state.step, metrics)
        bar.update()
        bar.set_postfix_str(f"loss {mean_loss:.4f}, lr {learning_rate:.1e}, {seconds:.2f} s/step")

        if state.step % LOG_EVERY == 0 or state.step == max_steps:
            left = (time.monotonic() - started) / (state.step - first_step) * (max_steps - state.step)
            logger.info(
                "step %d/%d  loss %.4f  lr %.1e  %.2f s/step  %s left",
                state.step, max_steps, mean_loss, learning_rate, seconds, hours_minutes_seconds(left),
            )  # fmt: skip
        # Once in a while: save, then look. Pictures must not cost the weights they show.
        if state.step % config.checkpointing_steps == 0 or state.step == max_steps:
            if accelerator.is_main_process:
                facts = lora_facts(config, state.step)
                keep = config.checkpoints_total_limit
                checkpoint = save_checkpoint(run, state, facts, transformer, optimizer, lr_scheduler, keep)
                logger.info("saved %s", lora_file(checkpoint))
            accelerator.wait_for_everyone()
        if state.step % config.validation_steps == 0 or state.step == max_steps:
            validate(state.step)
    bar.close()
    accelerator.end_training()
    return run


def start_accelerator(config: TrainConfig, run: Path) -> Accelerator:
    """Accelerate with the run's folder and tracker. Raises ValueError where fewer processes run than were asked for."""
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        log_with=None if config.report_to == "none" else config.report_to,
        project_config=ProjectConfiguration(project_dir=str(run), logging_dir=str(run / "logs")),
    )
    if accelerator.num_processes != config.num_processes:
        raise ValueError(
            f"{accelerator.num_processes} processes run, --num_processes says {config.num_processes}: start the "
            "training with train_deepfashion_lora.sh or with accelerate launch --num_processes"
        )
    if accelerator.is_main_process:
        run.mkdir(parents=True, exist_ok=True)
    accelerator.init_trackers("tryon")
    return accelerator


def encode_prompts(
    config: TrainConfig, dtype: torch.dtype, accelerator: Accelerator
) -> dict[Category, PromptEmbedding]:
    """The prompt embedding of each category, encoded by the main process where it is not cached yet."""
    texts = {category: prompt_for(config.prompt, category) for category in CATEGORIES}
    with accelerator.main_process_first():
        embeddings = cache_prompts(sorted(set(texts.values())), config, dtype, accelerator.device)
    return {category: embeddings[text] for category, text in texts.items()}


def load_batches(
    config: TrainConfig,
    data: LatentData,
    prompts: dict[Category, PromptEmbedding],
    accelerator: Accelerator,
    first_step: int,
    max_steps: int,
) -> DataLoader:
    """This process's share of every global batch from `first_step` to the end, as FillBatches on the CPU."""
    per_process = config.train_batch_size
    global_batch = per_process * accelerator.num_processes
    first_batch = first_step * config.gradient_accumulation_steps
    batches = (max_steps - first_step) * config.gradient_accumulation_steps
    order = sample_order(len(data), config.seed, first_batch * global_batch)
    own = slice(accelerator.process_index * per_process, (accelerator.process_index + 1) * per_process)
    return DataLoader(
        data,
        batch_sampler=[[next(order) for _ in range(global_batch)][own] for _ in range(batches)],
        collate_fn=lambda samples: collate(samples, prompts),
        num_workers=config.dataloader_num_workers,
        pin_memory=accelerator.device.type == "cuda",
    )


def sample_order(count: int, seed: int, start: int) -> Iterator[int]:
    """The endless stream of sample indices from position `start`: epoch after epoch, each shuffled by (seed, epoch)."""
    epoch, offset = divmod(start, count)
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(count)
        yield from order[offset:].tolist()
        epoch, offset = epoch + 1, 0


def batch_loss(
    config: TrainConfig, model: torch.nn.Module, batch: FillBatch, step: int, micro: int, accelerator: Accelerator
) -> torch.Tensor:
    """The weighted flow-matching loss of one micro-batch: a scalar."""
    size = len(batch.x0)
    first = accelerator.process_index * size
    sigma, noise = draw_sigma_and_noise(
        batch.x0.shape[1:],
        config.weighting_scheme,
        config.logit_mean,
        config.logit_std,
        draws=[(config.seed, step, micro, first + index) for index in range(size)],
    )
    sigma, noise = sigma.to(accelerator.device), noise.to(accelerator.device)
    x_t, velocity = interpolate(batch.x0.float(), noise, sigma)
    with accelerator.autocast():
        losses = fill_loss(model, batch, x_t, velocity, sigma, config.guidance_scale)
    return (loss_weight(config.weighting_scheme, sigma) * losses).mean()


def make_optimizer(config: TrainConfig, parameters: list[torch.nn.Parameter]) -> Optimizer:
    """AdamW, with moments in float32 or in 8 bits."""
    if config.optimizer == "adamw8bit":
        from bitsandbytes.optim import AdamW8bit as AdamW
    else:
        from torch.optim import AdamW
    return AdamW(
        parameters,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
    )


def make_lr_scheduler(config: TrainConfig, optimizer: Optimizer, max_steps: int) -> LRScheduler:
    """diffusers' schedule over optimiser steps; "constant" warms up too, if asked to."""
    warm_up = config.lr_scheduler == "constant" and config.lr_warmup_steps > 0
    return get_scheduler(
        "constant_with_warmup" if warm_up else config.lr_scheduler,
        optimizer,
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=max_steps,
    )


def make_validation(
    config: TrainConfig,
    accelerator: Accelerator,
    pipeline: FluxFillPipeline,
    val_data: SampleSource,
    val_latents: LatentData,
    prompts: dict[Category, PromptEmbedding],
    run: Path,
) -> Callable[[int], None]:
    """A function of the step that measures the validation loss and draws the grid, on the main process.

    The pictures before the LoRA are drawn here, once, from the transformer with its LoRA switched off.
    """
    transformer = pipeline.transformer
    by_key = {val_data.key(index): index for index in range(len(val_data))}
    encoded = [val_latents[index] for index in range(len(val_latents))]
    picked = pick_for_grid([each.category for each in encoded], config.num_validation_images)
    samples = [val_data[by_key[encoded[index].key]] for index in picked]

    def draw() -> list[Image.Image]:
        return [
            try_on(
                pipeline,
                sample,
                prompts[sample.category],
                steps=config.num_inference_steps,
                guidance=config.validation_guidance_scale,
                seed=config.seed + row,
            )
            for row, sample in enumerate(samples)
        ]

    before: list[Image.Image] = []
    if accelerator.is_main_process:
        transformer.disable_adapters()
        before = draw()
        transformer.enable_adapters()

    def validate(step: int) -> None:
        if accelerator.is_main_process:
            transformer.eval()
            losses = validation_loss(
                transformer, val_latents, prompts, guidance=config.guidance_scale, seed=config.seed
            )
            log_metrics(accelerator, run, step, losses)
            grid = draw_grid(samples, before, draw())
            path = run / "validation" / f"step-{step:06d}.png"
            path.parent.mkdir(exist_ok=True)
            grid.save(path)
            log_picture(accelerator, "validation", grid, step)
            words = ", ".join(f"{name.removeprefix('validation/')} {loss:.4f}" for name, loss in losses.items())
            logger.info("validation at step %d: %s; pictures in %s", step, words, path)
            transformer.train()
        accelerator.wait_for_everyone()

    return validate


def lora_facts(config: TrainConfig, step: int) -> LoraFacts:
    """What the LoRA's header says of its training."""
    return LoraFacts(
        base=config.pretrained_model_name_or_path,
        transformer=config.pretrained_inpaint_model_name_or_path,
        prompt=config.prompt,
        max_sequence_length=config.max_sequence_length,
        height=config.height,
        width=config.width,
        mask_rule=MASK_RULE,
        profile=config.profile,
        step=step,
    )


def find_checkpoint(name: str, run: Path) -> Path:
    """The checkpoint that --resume_from_checkpoint names: "latest" is the newest in the run's own folder."""
    return newest_checkpoint(run) if name == "latest" else Path(name).expanduser()


def find_lora(path: Path) -> Path:
    """The LoRA file that a path names: the file itself, its folder, a checkpoint, or a run (its newest checkpoint)."""
    path = path.expanduser()
    for candidate in (path, path / LORA_FILE, lora_file(path)):
        if candidate.is_file():
            return candidate
    return lora_file(newest_checkpoint(path))


def hours_minutes_seconds(seconds: float) -> str:
    """1:02:03 for 3723."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
