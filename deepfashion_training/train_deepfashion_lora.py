"""The driver: configuration -> data set -> the inpaint training loop, called through its public arguments -> scores.

Started by train_deepfashion_lora.sh, or by hand: accelerate launch -m deepfashion_training.train_deepfashion_lora.
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deepfashion_training.preflight import KNOWN_ROWS, TOY_ITEMS, DataConfig, read_settings, toy_data_folder
from tryon.cli import run_script
from tryon.config import TrainConfig, base_categories, taken_off
from tryon.console import MODEL_LIBRARIES, load_libraries
from tryon.data.layout import rows_in_words
from tryon.units import plural

if TYPE_CHECKING:
    import torch

    from tryon.data.persons import PhotographSource
    from tryon.data.sample import SampleSource

logger = logging.getLogger(__name__)

# The quick test leaves upper-body garments to the model that masters them.
TOY_CATEGORIES = ("lower", "full", "upper", "lower", "full")
TOY_VIEWS = ("front",)


def main(argv: list[str]) -> None:
    config, data, masks, plan = read_settings(argv)
    load_libraries(*MODEL_LIBRARIES)

    from deepfashion_training.deepfashion_dataset import load_deepfashion, pairs_by_reference
    from deepfashion_training.inspect_dataset import describe
    from deepfashion_training.inspection import log_findings
    from train_flux_inpaint import PairCounts, evaluate_on, run_training
    from tryon.answer import answer
    from tryon.training.tracking import start_processes

    toy_asked_for = "--toy" in argv
    if plan.plan or plan.check:
        pairs = count_pairs(config, data) if plan.plan else None
        trained_on = [data_in_words(data, pairs)] if plan.plan else []
        answer(config, plan, trained_on, pairs, masks.variants, toy_asked_for=toy_asked_for)
        return

    drawn = data.dataset_name is None  # the toy's own data
    if drawn:
        data = replace(data, dataset_name=str(toy_data_folder(config.data_cache_dir)))

    def load_data(config: TrainConfig, device: "torch.device") -> "tuple[PhotographSource, SampleSource, PairCounts]":
        if drawn:
            draw_toy_data(Path(data.dataset_name))
        train_data, val_data = load_deepfashion(data, masks, config, device)
        if start_processes().is_main_process and not drawn:
            log_findings(describe(train_data, val_data, base_categories(config)), indent="  ")
        return train_data, val_data, pairs_by_reference(train_data, val_data)

    score = evaluate_on_drawings if drawn else evaluate_on
    run_training(config, (data, masks), load_data, score, toy_asked_for=toy_asked_for)


def count_pairs(config: TrainConfig, data: DataConfig) -> int | None:
    """At most how many pairs are trained on; None where that is not known without a download."""
    from deepfashion_training.deepfashion_dataset import count_rows

    rows = KNOWN_ROWS.get(data.dataset_name)
    if rows is None and Path(data.dataset_name).is_dir():
        rows = count_rows(Path(data.dataset_name), config.cache_dir)
    return min(filter(None, (rows, config.max_train_samples)), default=None)


def data_in_words(data: DataConfig, pairs: int | None) -> str:
    """What is trained on, what it was taken for, and how much there is. pairs: see count_pairs."""
    if data.dataset_name is None:
        return f"the toy's drawings, of which at most {pairs:,} are trained on"
    folder = Path(data.dataset_name)
    kind = f"taken for {rows_in_words(folder)}" if folder.is_dir() else "of the hub"
    return f"{data.dataset_name}, {kind}" + (f": at most {plural(pairs, 'pair')} to train on" if pairs else "")


def evaluate_on_drawings(val_data: "SampleSource", run: Path, config: TrainConfig) -> None:
    """Scores the run's LoRA on drawings, which have unpaired truths too, under the mask rule of its validation data."""
    from tryon.evaluation.score import score_run
    from tryon.report import write_report
    from tryon.toy.examples import held_out_drawings

    rule = val_data.mask_rule
    size = config.height, config.width
    cases = held_out_drawings(config.num_evaluation_samples, *size, rule, try_offs=taken_off(config))
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
