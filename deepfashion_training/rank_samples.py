"""Ranks the pairs that a run was trained on by their loss under its LoRA, the worst first: how one finds bad pairs.

    python -m deepfashion_training.rank_samples runs/<run>

A pair's loss is the mean over what is repainted and over a few noise levels, with the same noise for every pair. Where
the garment is not the one that is worn, or the mask misses it, the model cannot know what to paint, and the loss is
high. The run's folder gets ranking.csv with all pairs, and ranking.html with pictures of the worst and of typical ones.
"""

import csv
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepfashion_training.preflight import DataConfig, from_settings, toy_data_folder
from folder_lists import FolderConfig
from tryon.cli import parse, run_script
from tryon.config import MOST, MaskConfig, Quantization, TrainConfig, is_nowhere, models_of, setting
from tryon.console import MODEL_LIBRARIES, load_libraries, progress_bar, set_up_logging
from tryon.data.category import Category
from tryon.files import full_path, replacing
from tryon.flux.lora_header import read_facts, verify_lora
from tryon.report import read_settings
from tryon.runs import find_lora, identity_of, run_of
from tryon.scores import Rows, aligned
from tryon.units import plural

if TYPE_CHECKING:
    import torch

    from deepfashion_training.deepfashion_dataset import DeepFashionData
    from folder_datasets import FolderData
    from tryon.inference.pipeline import TryOnModel
    from tryon.training.latent_cache import LatentData

logger = logging.getLogger(__name__)

CSV, PAGE = "ranking.csv", "ranking.html"
TYPICAL = 6  # pairs around the median that the page shows for comparison
MOST_LEVELS = 1000


@dataclass(frozen=True, kw_only=True)
class RankConfig:
    """Which run's pairs are ranked, and on what."""

    run: str = setting(None, "a run, or one of its checkpoints", positional=True)
    data: str | None = setting(None, "where the run's data lie now, if they have moved: a folder or a hub name")
    worst: int = setting(24, "how many of the worst pairs are listed and shown", 1, MOST)
    noise_levels: int = setting(4, "noise levels that each pair is measured at, evenly spaced", 1, MOST_LEVELS)
    quantization: Quantization | None = setting(
        None, "how the transformer's weights are kept on the GPU: none, fp8, int8, nf4 or auto; as trained if not given"
    )
    offload: bool = setting(False, "keep them in the host's memory and fetch each block when it runs: for small GPUs")
    data_cache_dir: str | None = setting(None, "where latents are kept; as trained if not given")


@dataclass(frozen=True)
class Ranked:
    """A pair and its loss. index: its place in the data."""

    index: int
    name: str
    category: Category
    loss: float


def main(argv: list[str]) -> None:
    description = "Ranks the pairs that a run was trained on by their loss under its LoRA, the worst first."
    (asked,) = parse(argv, "python -m deepfashion_training.rank_samples <run>", description, RankConfig)
    set_up_logging(is_main_process=True)
    lora = full_path(find_lora(asked.run))
    verify_lora(lora)
    run = run_of(lora)
    settings = settings_in_place(run, asked)

    load_libraries(*MODEL_LIBRARIES)
    import torch
    from accelerate import Accelerator

    from tryon.data.try_off import with_try_offs
    from tryon.flux.load import fetch_models, load_vae
    from tryon.flux.memory import dtype_of
    from tryon.inference.pipeline import load_try_on
    from tryon.toy.model import use_toy_model_for_try_on
    from tryon.training.latent_cache import cache_latents, data_identity, latent_files

    # The models and the pairs of the training, these encoded where they are not yet: of several variants the first.
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = from_settings(TrainConfig, settings)
    models = use_toy_model_for_try_on(models_of(config), read_facts(lora))
    files = fetch_models(models.base, models.transformer, models.cache_dir)
    data, dtype = training_data(settings, config, device), dtype_of(config)
    paths = latent_files(with_try_offs(data) if config.try_off_share else data, files, config, dtype)
    trained, now = identity_of(lora.parents[1])["data"], data_identity(paths)
    if now != trained:
        logger.warning("these are not the pairs that %s was trained on: %s then, %s now", run, trained, now)
    data = replace(data, variants=1)
    paths, vae = paths[: len(data)], load_vae(files.base, dtype, device)
    latents = cache_latents(data, paths, "training samples", vae, config, Accelerator(cpu=device.type == "cpu"))

    losses = pair_losses(load_try_on(models, lora), latents, config, asked.noise_levels)
    place_of = {path: place for place, path in enumerate(paths)}  # unreadable pairs have no latents
    places = map(place_of.get, latents.files)
    measured = zip(places, latents.names, latents.categories, losses, strict=True)
    # A pair of which nothing is repainted has no loss, and comes first too.
    ranking = sorted(starmap(Ranked, measured), key=lambda pair: (math.isnan(pair.loss), pair.loss), reverse=True)
    for line in aligned(rows_of(ranking[: asked.worst]), texts=3):
        logger.info("%s", line)
    logger.info("median loss of %s: %.4f", plural(len(ranking), "pair"), ranking[len(ranking) // 2].loss)
    with replacing(run / CSV) as staging, staging.open("w", newline="") as file:
        csv.writer(file).writerows(rows_of(ranking))
    write_page(run, ranking, asked.worst, data)
    logger.info("all of them: %s; pictures: %s", run / CSV, run / PAGE)


def settings_in_place(run: Path | None, asked: RankConfig) -> dict[str, Any]:
    """The run's settings, with its data and its cache where they are now, and its weights as asked for. Raises
    ValueError where it is no run, and where its data are not there."""
    settings = read_settings(run) if run else {}
    if not settings:
        raise ValueError(f"{asked.run} is in no run with a config.json: name the folder of a run, or its checkpoint")
    name = "dataroot" if settings.get("dataroot") else "dataset_name"
    cache = str(full_path(asked.data_cache_dir or settings["data_cache_dir"]))
    is_drawn = not asked.data and settings[name] == str(toy_data_folder(settings["data_cache_dir"]))
    place = str(toy_data_folder(cache)) if is_drawn else asked.data or settings[name]
    if not is_drawn and is_nowhere(place):
        raise ValueError(f"the data that {run} was trained on, {place}, are not there: name their place with --data")
    place = str(full_path(place)) if Path(place).expanduser().exists() else place
    return {
        **settings, name: place, "data_cache_dir": cache, "offload": asked.offload or settings["offload"],
        "quantization": asked.quantization or settings["quantization"],
    }  # fmt: skip


def training_data(
    settings: dict[str, Any], config: TrainConfig, device: "torch.device"
) -> "DeepFashionData | FolderData":
    """The pairs that a run with these settings is trained on. Raises ValueError as its training does."""
    masks = from_settings(MaskConfig, settings)
    if settings.get("dataroot"):
        from folder_datasets import load_folder

        return load_folder(from_settings(FolderConfig, settings), masks, config, device)[0]
    from deepfashion_training.deepfashion_dataset import load_deepfashion
    from deepfashion_training.train_deepfashion_lora import draw_toy_data

    data = from_settings(DataConfig, settings)
    if data.dataset_name == str(toy_data_folder(config.data_cache_dir)):
        draw_toy_data(Path(data.dataset_name))
    return load_deepfashion(data, masks, config, device)[0]


def pair_losses(model: "TryOnModel", data: "LatentData", config: TrainConfig, count: int) -> list[float]:
    """The loss of each pair over what is repainted, the mean of `count` noise levels; nan where nothing is."""
    import torch

    from tryon.flux.encode import collate
    from tryon.flux.flow_matching import UNIFORM, draw_sigma_and_noise, fill_error, interpolate, region_losses

    transformer, device = model.pipeline.transformer, model.pipeline.transformer.device
    first = collate([data[0]], model.prompts)
    _, noise = draw_sigma_and_noise(first.x0.shape[1:], UNIFORM, [(config.seed, level) for level in range(count)])
    sigma, noise, losses = ((torch.arange(count) + 0.5) / count).to(device), noise.to(device), []
    in_bf16 = torch.autocast(device.type, torch.bfloat16, enabled=transformer.dtype == torch.bfloat16)
    with torch.no_grad(), in_bf16, progress_bar(len(data), "measuring pairs", visible=True) as bar:
        for index in range(len(data)):
            batch = collate([data[index]] * count, model.prompts).to(device)
            x_t, velocity = interpolate(batch.x0.float(), noise, sigma)
            error = fill_error(transformer, batch, x_t, velocity, sigma, config.guidance_scale)
            losses.append(region_losses(batch, error)["repainted"].mean().item())
            bar.update()
    return losses


def rows_of(ranking: Sequence[Ranked]) -> Rows:
    """The pairs as rows of cells, the head first."""
    pairs = enumerate(ranking, 1)
    cells = [[str(rank), pair.category, pair.name, f"{pair.loss:.4f}"] for rank, pair in pairs]
    return [["rank", "category", "pair", "loss"], *cells]


def write_page(run: Path, ranking: Sequence[Ranked], worst: int, data: "DeepFashionData | FolderData") -> None:
    """Writes the worst pairs and some typical ones, with their pictures, as one HTML file."""
    from deepfashion_training.inspection import THUMBNAIL, shaded, thumbnail_url
    from tryon.pages import render

    def figure(rank: int, pair: Ranked) -> tuple[str, list[str]]:
        garment, person, hidden = data.pictures(pair.index)
        pictures = garment, person, shaded(person, hidden)
        return f"{rank}: loss {pair.loss:.4f}, {pair.category}, {pair.name}", list(map(thumbnail_url, pictures))

    ranked = list(enumerate(ranking, 1))
    middle = max(worst, (worst + len(ranked) - TYPICAL) // 2)  # of the others
    parts = {"Worst": ranked[:worst], "Typical": ranked[middle : middle + TYPICAL]}
    page = render(
        Path(__file__).with_name("ranking.html.j2"), name=f"Training pairs of {run.name} by loss", count=len(ranking),
        file=CSV, shown={title: list(starmap(figure, pairs)) for title, pairs in parts.items()},
        columns=["garment", "person", "hidden from the model"], thumbnail=THUMBNAIL,
    )  # fmt: skip
    with replacing(run / PAGE) as staging:
        staging.write_text(page)


if __name__ == "__main__":
    run_script(main)
