"""Which recipe teaches the toy the most: trains a LoRA per variant and seed, and prints mean and spread of its scores.

    python -m benchmarks.toy_ablation
    python -m benchmarks.toy_ablation --variants recipe,rank_4 --seeds 1 --steps 100

A variant changes one thing of the recipe, which is the quick test's on the toy. Scores are PSNRs in dB inside the mask
with the LoRA, on drawings that no run has seen, with flat garments for references or, where it says "worn", with
pictures of other people who wear them; in brackets their change against the model without a LoRA under the same mask;
and how often lengths are right, with flat garments. PSNRs under different masks do not compare, lengths do. Try-offs
are scored over the garment, of variants that learn them. What is done is kept in the output folder and not done again.
"""

import json
import logging
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.ablation_variants import KINDS, RECIPE, VARIANTS
from benchmarks.variants import unknown_variants
from tryon.cli import parse, run_script
from tryon.config import MOST, PROJECT, TrainConfig, setting
from tryon.console import MODEL_LIBRARIES, load_libraries, set_up_logging
from tryon.data.category import CATEGORIES
from tryon.files import save_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """The flags of this script."""

    variants: str = setting("all", "names with commas between, of those listed by --variants ?")
    seeds: int = setting(3, "seeds per variant: 0, 1, ...", 1, MOST)
    steps: int = setting(RECIPE.max_train_steps, "optimiser steps", 1, MOST)
    pairs: int = setting(RECIPE.max_train_samples, "drawn pairs trained on", 3, MOST)
    cases: int = setting(12, "held-out pairs per category, of each kind", 1, MOST)
    output_dir: str = setting(str(PROJECT / "runs" / "toy_ablation"), "where runs and results are kept")
    data_cache_dir: str = setting(str(PROJECT / "cache"), "where latents and the toy's files are kept between runs")


def read_settings(argv: list[str]) -> AblationConfig:
    """The flags, checked. Raises ValueError, in one sentence, for every mistake."""
    description = "Trains a LoRA per variant and seed on the toy, and prints how well each does."
    (config,) = parse(argv, "python -m benchmarks.toy_ablation", description, AblationConfig, problems=problems_of)
    return config


def problems_of(config: AblationConfig) -> Iterator[str]:
    """What is wrong with the flags beyond single values."""
    return unknown_variants(names(config), VARIANTS)


def names(config: AblationConfig) -> list[str]:
    """The variants that were asked for."""
    return list(VARIANTS) if config.variants == "all" else config.variants.split(",")


def settings_of(name: str, seed: int, config: AblationConfig) -> TrainConfig:
    """The recipe with the variant's change."""
    settings = replace(
        RECIPE, **VARIANTS[name].settings, seed=seed, max_train_steps=config.steps,
        output_dir=str(Path(config.output_dir) / f"{name}-{seed}"), data_cache_dir=config.data_cache_dir,
        validation_steps=config.steps, checkpointing_steps=config.steps, num_validation_images=1,
        report_to="none",
    )  # fmt: skip
    return replace(settings, lora_alpha=settings.lora_rank)


def main(argv: list[str]) -> None:
    config = read_settings(argv)
    set_up_logging(is_main_process=True)
    load_libraries(*MODEL_LIBRARIES)
    from benchmarks.ablation_run import LENGTHS, run_variant
    from tryon.evaluation.cases import TRY_OFF
    from tryon.toy.model import toy_name
    from tryon.toy.world import WORLD_VERSION

    columns = [f"{category} {kind}" for category in CATEGORIES for kind in KINDS]
    titles = "".join(f"{column:>24}" for column in columns)
    lines = [f"{'mean +- spread over seeds':26}{titles}{LENGTHS:>16}{TRY_OFF:>10}"]
    for name in names(config):
        results = []
        for seed in range(config.seeds):
            file = Path(config.output_dir) / f"{name}-{seed}.json"
            settings = settings_of(name, seed, config)
            asked = {"model": toy_name(), "settings": repr(settings), "pairs": config.pairs}
            asked |= {"world": WORLD_VERSION, "variant": repr(VARIANTS[name]), "cases": config.cases}
            done = json.loads(file.read_text()) if file.is_file() else {}
            if done.get("asked") != asked:
                done = {"asked": asked, "results": run_variant(VARIANTS[name], settings, config.pairs, config.cases)}
                save_json(file, done)
            results.append(done["results"])
        cells = []
        for column in columns:
            values, changes = ([each[key] for each in results] for key in (column, f"{column} change"))
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.2f} +-{spread:.2f} ({statistics.mean(changes):+.2f})")
        share = statistics.mean(each[LENGTHS] for each in results)
        taken_off = f"{statistics.mean(each[TRY_OFF] for each in results):.2f}" if TRY_OFF in results[0] else "-"
        lines.append(f"{name:26}" + "".join(f"{cell:>24}" for cell in cells) + f"{share:>16.0%}{taken_off:>10}")
        logger.info("%s", lines[-1])
    for line in lines:
        logger.info("%s", line)


if __name__ == "__main__":
    run_script(main)
