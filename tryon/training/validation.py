"""What a validation measures and shows: the loss on held-out pairs with fixed draws, a labelled grid of pictures."""

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import FluxFillPipeline, FluxTransformer2DModel
from PIL import Image
from torch import Tensor

from tryon.config import TrainConfig
from tryon.console import progress_bar
from tryon.data.category import category_order
from tryon.data.grid import draw_grid, pick_for_grid
from tryon.data.sample import (
    FillBatch,
    PromptEmbedding,
    SampleSource,
    TryOnSample,
    make_diptych,
    split_diptych,
    to_picture,
)
from tryon.flux.encode import collate
from tryon.flux.flow_matching import UNIFORM, draw_sigma_and_noise, fill_error, interpolate, region_losses
from tryon.inference.pipeline import try_on_batch
from tryon.inference.recipe import Recipe, save_picture, versions
from tryon.signals import asked_to_stop
from tryon.training.ema import WeightAverage
from tryon.training.latent_cache import LatentData
from tryon.training.tracking import log_metrics, log_picture

logger = logging.getLogger(__name__)


class CutShort(Exception):
    """A validation that ended early because the training was asked to stop."""


GRID_COLUMNS = ("garment", "person", "masked", "before LoRA", "now")


def make_validation(
    config: TrainConfig, accelerator: Accelerator, pipeline: FluxFillPipeline, val_data: SampleSource,
    val_latents: LatentData, prompts: dict[str, PromptEmbedding], run: Path, average: WeightAverage | None,
) -> Callable[[int], None]:  # fmt: skip
    """A function of the step that measures the validation loss and draws the grid, on the main process. It gives up
    where the training was asked to stop. With an average of the weights, it measures both, and draws with the one whose
    loss is lower.

    The pictures before the LoRA are drawn here, once, from the transformer with its LoRA switched off.
    """
    settings = {
        "seed": config.seed,
        "steps": config.num_inference_steps,
        "guidance_scale": config.validation_guidance_scale,
    }
    transformer = pipeline.transformer
    by_key = {val_data.key(index): index for index in range(len(val_data))}
    encoded = [val_latents[index] for index in range(len(val_latents))]
    picked = pick_for_grid([each.category for each in encoded], config.num_validation_images)
    samples = [val_data[by_key[encoded[index].key]] for index in picked]

    steps, guidance = config.num_inference_steps, config.validation_guidance_scale
    passes = len(samples) * steps  # of the transformer, for the pictures
    judged = f"validation/{config.keep_best.replace('none', 'loss')}"

    def draw(each_step: Callable[[int], None]) -> list[Image.Image]:
        pictures = []
        for row, sample in enumerate(samples):
            (panel,) = try_on_batch(
                pipeline, [sample], [prompts[sample.category]], steps=steps, guidance=guidance,
                seeds=[config.seed + row], each_step=each_step,
            )  # fmt: skip
            pictures.append(to_picture(panel))
        return pictures

    # Where blocks are compiled: for other shapes, without gradients or LoRA, each would be compiled again.
    eagerly = partial(torch.compiler.set_stance, "force_eager")
    before: list[Image.Image] = []
    if accelerator.is_main_process:
        transformer.disable_adapters()
        with eagerly(), progress_bar(passes, "drawing without the LoRA", visible=True) as bar:
            before = draw(lambda done: bar.update())
        transformer.enable_adapters()

    def look(step: int) -> None:
        measured = len(val_latents) * (2 if average else 1)
        with progress_bar(measured + passes, f"validating step {step}", visible=True) as bar:

            def after_pass(done: int) -> None:
                bar.update()
                leave_if_asked()

            measure = partial(
                validation_loss, transformer, val_latents, prompts, guidance=config.guidance_scale, seed=config.seed,
                each=after_pass,
            )  # fmt: skip
            losses, weights, shown = measure(), nullcontext(), f"{run.name}, step {step}"
            if average:
                with average.in_place():
                    of_average = measure()
                if of_average[judged] < losses[judged]:
                    weights, shown = average.in_place(), f"{shown}, average"
                losses |= {name.replace("/", "/ema_"): loss for name, loss in of_average.items()}
            log_metrics(accelerator, run, step, losses)
            with weights:
                grid = validation_grid(samples, before, draw(after_pass))
        path = validation_picture(run, step)
        save_picture(grid, path, Recipe(settings, {}, (shown,), versions()))
        log_picture(accelerator, "validation", grid, step)
        group, named = "validation/", losses.items()
        words = ", ".join(f"{name.removeprefix(group)} {loss:.4f}" for name, loss in named if name.startswith(group))
        logger.info("validation at step %d: %s; pictures in %s", step, words, path)

    def validate(step: int) -> None:
        if accelerator.is_main_process:
            transformer.eval()
            try:
                with eagerly():
                    look(step)
            except CutShort:
                logger.info("validation at step %d given up", step)
            transformer.train()
        accelerator.wait_for_everyone()

    return validate


def check_is_measured(config: TrainConfig, val_data: SampleSource) -> None:
    """Raises ValueError where no validation pair is of the category whose loss --keep_best names."""
    category = config.keep_best.partition("_")[2]
    if category and category not in {val_data.category(index) for index in range(len(val_data))}:
        raise ValueError(
            f"--keep_best {config.keep_best} was given and no validation pair is {category}-body: give --keep_best loss"
        )


def validation_picture(run: Path, step: int) -> Path:
    """Where the grid of a step lies."""
    return run / "validation" / f"step-{step:06d}.png"


def leave_if_asked() -> None:
    """Raises CutShort where the training was asked to stop."""
    if asked_to_stop():
        raise CutShort


@torch.no_grad()
def validation_loss(
    transformer: FluxTransformer2DModel, data: LatentData, prompts: dict[str, PromptEmbedding], *,
    guidance: float, seed: int, each: Callable[[int], None] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Mean unweighted losses over the data, and per category: {"validation/loss": x, "validation/loss_upper": y, ...},
    and so on for the other names of sample_losses. each: called after each sample with how many are done; what it
    raises ends the validation.

    Sample i is always measured at the same noise level and with the same noise, so that two steps of a run, or two
    runs, differ by their weights alone.
    """
    device = transformer.device
    losses: dict[str, list[float]] = {}
    for index in range(len(data)):
        latents = data[index]
        batch = collate([latents], prompts).to(device)
        sigma, noise = draw_sigma_and_noise(batch.x0.shape[1:], UNIFORM, [(seed, index)])
        sigma, noise = sigma.to(device), noise.to(device)
        x_t, velocity = interpolate(batch.x0.float(), noise, sigma)
        error = fill_error(transformer, batch, x_t, velocity, sigma, guidance)
        for name, loss in sample_losses(batch, error, sigma).items():
            losses.setdefault(name, []).append(loss)
            losses.setdefault(f"{name}_{latents.category}", []).append(loss)
        if each:
            each(index + 1)
    return {name: sum(losses[name]) / len(losses[name]) for name in sorted(losses, key=category_order)}


def sample_losses(batch: FillBatch, error: Tensor, sigma: Tensor) -> dict[str, float]:
    """The losses of one sample, by name: of the whole diptych, of each region that it has, and again of the whole, as
    that of the quarter of all noise levels that its own is in. error: squared, [1, L, 64]; sigma: [1]."""
    loss, quarter = error.mean(dim=(1, 2)).item(), math.ceil(4 * sigma.item())
    regions = {f"validation_region/{name}": each.item() for name, each in region_losses(batch, error).items()}
    return {
        "validation/loss": loss,
        **{name: each for name, each in regions.items() if not math.isnan(each)},
        f"validation_noise/{(quarter - 1) / 4:.2f}-{quarter / 4:.2f}": loss,
    }


def validation_grid(
    samples: Sequence[TryOnSample], before: Sequence[Image.Image], now: Sequence[Image.Image]
) -> Image.Image:
    """One row per pair: garment, person, masked person, before the LoRA, now."""
    rows = []
    for row, sample in enumerate(samples):
        masked = split_diptych(make_diptych(sample)[1])[1]
        inputs = [to_picture(picture) for picture in (sample.garment, sample.person, masked)]
        rows.append((sample.category, [*inputs, before[row], now[row]]))
    return draw_grid(GRID_COLUMNS, rows)
