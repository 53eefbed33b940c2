"""The toy learns: a short training of a LoRA, scored beside the model without it, on drawings that neither has seen."""

from dataclasses import replace
from pathlib import Path

import pytest

from tryon.config import TryOnConfig
from tryon.data.category import CATEGORIES
from tryon.evaluation.cases import BASE, FILL
from tryon.evaluation.compare import summarise
from tryon.evaluation.score import Denoising, measured_results
from tryon.flux.lora_header import read_facts
from tryon.inference.pipeline import load_try_on
from tryon.profiles import on_toy, quick_test
from tryon.runs import find_lora
from tryon.toy.examples import EVALUATION_SEED, DrawnCases, DrawnData
from tryon.toy.model import use_toy_model, use_toy_model_for_try_on

pytestmark = pytest.mark.e2e

PAIRS, STEPS, CASES = 48, 24, 6  # few beside the quick test's

TRAINED = ("lower", "full")  # the base masters upper-body garments


def test_a_lora_dresses_people_in_lower_and_full_body_garments(tmp_path: Path, data_cache: Path) -> None:
    from train_flux_inpaint import train

    recipe = on_toy(quick_test())
    config = replace(
        recipe,
        lora_alpha=recipe.lora_rank,
        data_cache_dir=str(data_cache),
        output_dir=str(tmp_path),
        max_train_steps=STEPS,
        checkpointing_steps=STEPS,
        validation_steps=STEPS,
        num_validation_images=1,
        report_to="none",
    )
    config = use_toy_model(config, asked_for=True)
    size = (config.height, config.width)
    train(
        config,
        DrawnData(PAIRS, 2 * EVALUATION_SEED, TRAINED, *size),
        DrawnData(3, EVALUATION_SEED, TRAINED, *size),
    )

    lora = find_lora(str(tmp_path))
    model = load_try_on(use_toy_model_for_try_on(TryOnConfig(data_cache_dir=str(data_cache)), read_facts(lora)), lora)
    cases = {"unpaired": DrawnCases(DrawnData(3 * CASES, EVALUATION_SEED, CATEGORIES, *size, unpaired=True))}
    steps, guidance = config.num_inference_steps, config.validation_guidance_scale
    how = Denoising(steps, guidance, seed=0, batch_size=config.train_batch_size)
    models = {BASE: "base", "lora": "LoRA", FILL: "fill"}
    lines = {place: line for place, line, _ in measured_results(model, list(models), cases, how, saved=False)}
    scores = summarise(lines, models, cases)["unpaired"]
    gain = {name: each["LoRA - base"]["psnr"]["mean"] for name, each in scores.items()}
    assert gain["lower"] > 2 and gain["full"] > 2 and gain["upper"] == 0, scores
    assert all(each["LoRA"]["psnr"]["mean"] > each["fill"]["psnr"]["mean"] + 4 for each in scores.values()), scores
    right = scores["all"]["LoRA"]["length_right"]
    assert right["cases"] >= 3 and right["mean"] >= 0.6
