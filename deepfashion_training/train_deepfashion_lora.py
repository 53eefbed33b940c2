"""The driver: configuration -> data set -> the inpaint training loop, called through its public arguments -> scores.

Started by train_deepfashion_lora.sh, or by hand: accelerate launch -m deepfashion_training.train_deepfashion_lora.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deepfashion_training.preflight import KNOWN_ROWS, TOY_ITEMS, DataConfig, read_settings, toy_data_folder
from tryon.cli import run_script
from tryon.config import MaskConfig, PlanConfig, TrainConfig
from tryon.console import MODEL_LIBRARIES, load_libraries, set_up_logging

if TYPE_CHECKING:
    import torch

    from tryon.data.sample import SampleSource

logger = logging.getLogger(__name__)

# Tops dominate, as in the hub's data set: what the model knows already it forgets where it is rare.
TOY_CATEGORIES = ("upper", "lower", "upper", "upper", "full", "upper")
TOY_VIEWS = ("front",)


def main(argv: list[str]) -> None:
    config, data, masks, plan = read_settings(argv)
    load_libraries(*MODEL_LIBRARIES)
    if plan.plan:
        print("\n".join(plan_of(config, data, masks, plan)))
        return
    if plan.check:
        if not check_for(config, plan):
            raise SystemExit(1)
        return

    from deepfashion_training.deepfashion_dataset import load_deepfashion, pairs_by_reference
    from deepfashion_training.inspect_dataset import describe, log_findings
    from train_flux_inpaint import PairCounts, evaluate_on, run_training
    from tryon.training.tracking import start_processes

    drawn = data.dataset_name is None  # the toy's own data
    if drawn:
        data = replace(data, dataset_name=str(toy_data_folder(config.data_cache_dir)))

    def load_data(config: TrainConfig, device: "torch.device") -> "tuple[SampleSource, SampleSource, PairCounts]":
        if drawn:
            draw_toy_data(Path(data.dataset_name))
        train_data, val_data = load_deepfashion(data, masks, config, device)
        if start_processes().is_main_process and not drawn:
            log_findings(describe(train_data, val_data), indent="  ")
        return train_data, val_data, pairs_by_reference(train_data, val_data)

    score = evaluate_on_drawings if drawn else evaluate_on
    run_training(config, (data, masks), load_data, score, toy_asked_for="--toy" in argv)


def check_for(config: TrainConfig, plan: PlanConfig) -> bool:
    """Prints whether this machine is fit for the run, and why; returns whether it is. Nothing is downloaded."""
    import torch

    from tryon.flux.load import FILL_CONFIG, read_transformer_config
    from tryon.toy.model import use_toy_model
    from tryon.training.check import check

    set_up_logging(is_main_process=True)
    if config.toy:
        config = use_toy_model(config, asked_for=True)
    elif not torch.cuda.is_available():
        raise ValueError("there is a GPU that torch cannot use: update the NVIDIA driver, or add --toy")
    transformer = config.pretrained_inpaint_model_name_or_path
    shapes = read_transformer_config(transformer, None) if Path(transformer).exists() else FILL_CONFIG
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return check(config, shapes, device, Path(config.output_dir).parent, plan.price_per_hour)


def plan_of(config: TrainConfig, data: DataConfig, masks: MaskConfig, plan: PlanConfig) -> list[str]:
    """What the run will need and take, in lines. Of the models only the transformer's config.json is read."""
    import torch

    from tryon.flux.load import FILL_CONFIG, read_transformer_config
    from tryon.toy.model import use_toy_model
    from tryon.training.plan import plan_lines

    lines = []
    if config.toy:
        config = use_toy_model(config, asked_for=True)
    try:
        transformer = read_transformer_config(config.pretrained_inpaint_model_name_or_path, config.cache_dir)
    except ValueError as error:
        lines.append(f"the size of FLUX-Fill is assumed, because {error}")
        transformer = FILL_CONFIG
    rows = KNOWN_ROWS.get(data.dataset_name), config.max_train_samples
    pairs = min(filter(None, rows), default=None)
    device = None if plan.gpu_memory else torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return lines + plan_lines(config, transformer, pairs, masks.variants, device, plan.gpu_memory, plan.price_per_hour)


def evaluate_on_drawings(val_data: "SampleSource", run: Path, config: TrainConfig) -> None:
    """Scores the run's LoRA on drawings, which have unpaired truths too, under the mask rule of its validation data."""
    from tryon.evaluation.score import score_run
    from tryon.report import write_report
    from tryon.toy.examples import held_out_drawings

    rule = val_data.mask_rule
    cases = held_out_drawings(config.num_evaluation_samples, config.height, config.width, rule)
    score_run(run, config, f"drawings, masks by {rule.name}", cases)
    write_report(run)


def draw_toy_data(folder: Path) -> None:
    """Draws the toy's data set into the folder where it is not there yet."""
    from tryon.toy.dataset import write_dataset
    from tryon.toy.model import build_once

    def draw(staging: Path) -> None:
        logger.info("drawing the toy's data into %s", folder)
        write_dataset(staging, items=TOY_ITEMS, seed=0, views=TOY_VIEWS, every_flat=True, categories=TOY_CATEGORIES)

    build_once(folder, draw)


if __name__ == "__main__":
    run_script(main)
