"""Which recipe teaches the toy the most: trains a LoRA per variant and seed, and prints mean and spread of its scores.

    python -m benchmarks.toy_ablation
    python -m benchmarks.toy_ablation --variants recipe,rank_4 --seeds 1 --steps 100

A variant changes one thing of the recipe, which is the quick test's on the toy. Scores are PSNRs in dB inside the mask
with the LoRA, on drawings nobody was trained on, with flat garments for references; in brackets their change against
the model without a LoRA under the same mask; and how often lengths are right. PSNRs under different masks do not
compare, lengths do. What is done is kept in the output folder and not done again.
"""

import json
import logging
import shutil
import statistics
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from benchmarks.variants import check_settings
from deepfashion_training.train_deepfashion_lora import TOY_CATEGORIES
from tryon.config import (
    PROJECT,
    TrainConfig,
    TryOnConfig,
    on_toy,
    quick_test,
    setting,
)
from tryon.entry import check_first, run_script
from tryon.files import save_json
from tryon.flags import parse_flags

LENGTHS = "lengths right"  # of trousers given to people in shorts, and the reverse


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """The flags of this script."""

    variants: str = setting("all", "names with commas between, of those listed by --variants ?")
    seeds: int = setting(3, "seeds per variant: 0, 1, ...", 1)
    steps: int = setting(150, "optimiser steps", 1)
    pairs: int = setting(300, "drawn pairs trained on", 3)
    cases: int = setting(12, "held-out pairs per category, paired and unpaired", 1)
    output_dir: str = setting(str(PROJECT / "runs" / "toy_ablation"), "where runs and results are kept")
    data_cache_dir: str = setting(str(PROJECT / "cache"), "where latents and the toy's files are kept between runs")


@dataclass(frozen=True)
class Variant:
    """A recipe. settings: of TrainConfig, where they differ. reference: where training's garment pictures come from.
    mask: what is hidden, in training and when trying on. categories: of the pairs trained on, in turn."""

    settings: dict[str, Any]
    reference: Literal["flat", "other view", "same picture"] = "flat"
    mask: Literal["rectangle", "tight"] = "rectangle"
    categories: tuple[str, ...] = TOY_CATEGORIES


VARIANTS = {
    "recipe": Variant({}),
    "categories_equal": Variant({}, categories=("upper", "lower", "full")),
    "rank_4": Variant({"lora_rank": 4}),
    "rank_64": Variant({"lora_rank": 64}),
    "rate_a_third": Variant({"learning_rate": on_toy(quick_test()).learning_rate / 3}),
    "rate_threefold": Variant({"learning_rate": 3 * on_toy(quick_test()).learning_rate}),
    "mask_tight": Variant({}, mask="tight"),
    "reference_other_view": Variant({}, reference="other view"),
    "reference_same_picture": Variant({}, reference="same picture"),
    "guidance_30": Variant({"guidance_scale": 30.0}),
    "noise_uniform": Variant({"weighting_scheme": "none"}),
}


def read_settings(argv: list[str]) -> AblationConfig:
    """The flags, checked. Raises ValueError, in one sentence, for every mistake."""
    description = "Trains a LoRA per variant and seed on the toy, and prints how well each does."
    (given,) = parse_flags(argv, "python -m benchmarks.toy_ablation", description, AblationConfig)
    config = AblationConfig(**given)
    check_settings(config, names(config), VARIANTS)
    return config


def names(config: AblationConfig) -> list[str]:
    """The variants that were asked for."""
    return list(VARIANTS) if config.variants == "all" else config.variants.split(",")


if __name__ == "__main__":
    check_first(read_settings)  # --help and a wrong flag answer before the heavy imports


from deepfashion_training.references import cut_out
from train_flux_inpaint import train
from tryon.console import set_up_logging
from tryon.data.category import CATEGORIES, Category
from tryon.data.sample import TryOnSample, fit_mask, fit_picture
from tryon.evaluation.cases import BASE
from tryon.evaluation.compare import summarise
from tryon.evaluation.score import Denoising, measured_results
from tryon.flux.lora_header import read_facts
from tryon.inference.pipeline import load_try_on
from tryon.runs import find_lora
from tryon.toy.drawing import draw_person
from tryon.toy.examples import EVALUATION_SEED, DrawnCases, DrawnData
from tryon.toy.model import toy_name, use_toy_model, use_toy_model_for_try_on
from tryon.toy.people import VIEW
from tryon.toy.world import WORLD_VERSION

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class VariantData:
    """Drawings with another reference or mask: a SampleSource."""

    variants: ClassVar[int] = 1
    mask_rule: ClassVar[None] = None
    drawings: DrawnData
    variant: Variant

    def __len__(self) -> int:
        return len(self.drawings)

    def category(self, index: int) -> Category:
        return self.drawings.category(index)

    def name(self, index: int) -> str:
        return self.drawings.name(index)

    def key(self, index: int) -> str:
        return f"{self.drawings.key(index)} {self.variant.reference} {self.variant.mask}"

    def __getitem__(self, index: int) -> TryOnSample:
        sample, example = self.drawings[index], self.drawings.example(index)
        size = (self.drawings.height, self.drawings.width)
        category = sample.category
        if self.variant.mask == "tight":
            worn = draw_person(example.person, example.outfit, VIEW, *size).masks[category]
            sample = replace(sample, mask=fit_mask(worn, *size))
        if self.variant.reference != "flat":
            view = "additional" if self.variant.reference == "other view" else VIEW
            seen = draw_person(example.person, self.drawings.tried_on(index), view, *size)
            sample = replace(sample, garment=fit_picture(cut_out(seen.image, seen.masks[category]), *size))
        return replace(sample, key=self.key(index))


def settings_of(name: str, seed: int, config: AblationConfig) -> TrainConfig:
    """The recipe with the variant's change."""
    settings = replace(
        on_toy(quick_test()), **VARIANTS[name].settings, seed=seed, max_train_steps=config.steps,
        output_dir=str(Path(config.output_dir) / f"{name}-{seed}"), data_cache_dir=config.data_cache_dir,
        validation_steps=config.steps, checkpointing_steps=config.steps, num_validation_images=1,
        report_to="none",
    )  # fmt: skip
    return replace(settings, lora_alpha=settings.lora_rank)


def run_variant(name: str, seed: int, config: AblationConfig) -> dict[str, float]:
    """Trains and scores one LoRA: {"upper paired": dB, "upper paired change": dB, ...}."""
    variant = VARIANTS[name]
    settings = use_toy_model(settings_of(name, seed, config), asked_for=True)
    shutil.rmtree(settings.output_dir, ignore_errors=True)  # an older run's checkpoints
    size = (settings.height, settings.width)
    held_out = DrawnData(len(CATEGORIES) * config.cases, EVALUATION_SEED, CATEGORIES, *size)
    trained_on = DrawnData(config.pairs, 2 * EVALUATION_SEED + seed, variant.categories, *size)
    train(settings, VariantData(trained_on, variant), VariantData(replace(held_out, count=3), variant))

    lora = find_lora(settings.output_dir)
    on_the_toy = use_toy_model_for_try_on(TryOnConfig(data_cache_dir=config.data_cache_dir), read_facts(lora))
    model = load_try_on(on_the_toy, lora)
    cases = {}
    for kind in ("paired", "unpaired"):
        drawings = replace(held_out, unpaired=kind == "unpaired")
        shown, drawn = VariantData(drawings, Variant({}, mask=variant.mask)), DrawnCases(drawings)
        cases[kind] = [replace(drawn[index], sample=shown[index]) for index in range(len(drawings))]
    steps, guidance = settings.num_inference_steps, settings.validation_guidance_scale
    models = {BASE: "base", "lora": "LoRA"}
    how = Denoising(steps, guidance, seed, settings.train_batch_size)
    lines = {place: line for place, line, _ in measured_results(model, list(models), cases, how, saved=False)}
    results = {}
    found = summarise(lines, models, cases)
    for category in CATEGORIES:
        for kind, of_kind in found.items():
            results[f"{category} {kind}"] = of_kind[category]["LoRA"]["psnr"]["mean"]
            results[f"{category} {kind} change"] = of_kind[category]["LoRA - base"]["psnr"]["mean"]
    lengths = found["unpaired"]["all"]["LoRA"].get("length_right")
    results[LENGTHS] = lengths["mean"] if lengths else 0.0
    return results


def main(argv: list[str]) -> None:
    config = read_settings(argv)
    set_up_logging(is_main_process=True)
    columns = [f"{category} {kind}" for category in CATEGORIES for kind in ("paired", "unpaired")]
    titles = "".join(f"{column:>24}" for column in columns)
    lines = [f"{'mean +- spread over seeds':26}{titles}{LENGTHS:>16}"]
    for name in names(config):
        results = []
        for seed in range(config.seeds):
            file = Path(config.output_dir) / f"{name}-{seed}.json"
            asked = {"model": toy_name(), "settings": repr(settings_of(name, seed, config)), "pairs": config.pairs}
            asked |= {"world": WORLD_VERSION, "variant": repr(VARIANTS[name]), "cases": config.cases}
            done = json.loads(file.read_text()) if file.is_file() else {}
            if done.get("asked") != asked:
                done = {"asked": asked, "results": run_variant(name, seed, config)}
                save_json(file, done)
            results.append(done["results"])
        cells = []
        for column in columns:
            values, changes = ([each[key] for each in results] for key in (column, f"{column} change"))
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.2f} +-{spread:.2f} ({statistics.mean(changes):+.2f})")
        share = statistics.mean(each[LENGTHS] for each in results)
        lines.append(f"{name:26}" + "".join(f"{cell:>24}" for cell in cells) + f"{share:>16.0%}")
        logger.info("%s", lines[-1])
    for line in lines:
        logger.info("%s", line)


if __name__ == "__main__":
    run_script(main)
