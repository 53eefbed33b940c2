"""Scores of a LoRA on the toy: what the columns mean, and that batches change nothing."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import make_sample
from tryon.config import TryOnConfig
from tryon.evaluation.cases import COLUMNS, Case, evaluate, filled, table
from tryon.flux.lora_header import read_facts
from tryon.inference.pipeline import TryOnModel, load_try_on, try_on_batch
from tryon.runs import find_lora
from tryon.toy.model import use_toy_model_for_try_on

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def model(run: Path, data_cache: Path) -> TryOnModel:
    lora = find_lora(str(run))
    return load_try_on(use_toy_model_for_try_on(TryOnConfig(data_cache_dir=str(data_cache)), read_facts(lora)), lora)


def test_scores_and_pictures(model: TryOnModel) -> None:
    samples = [make_sample(seed) for seed in range(4)]  # upper, lower, full, upper
    cases = [Case(sample, sample.person) for sample in samples]
    scores, pictures, quality = evaluate(model, cases, "test", steps=1, guidance=30.0, seed=7, batch_size=3)
    assert list(scores) == ["upper", "lower", "full"]
    assert all(list(columns) == list(COLUMNS) for columns in scores.values())
    for column in COLUMNS:
        for index, sample in enumerate(samples):
            outside = ~sample.mask.bool().expand(3, -1, -1)
            assert torch.equal(pictures[column][index][outside], sample.person[outside])
    assert not torch.equal(pictures["before"], pictures["after"]), "the LoRA of this run is large"
    prompt = model.prompts[samples[1].category]
    alone = try_on_batch(model.pipeline, [samples[1]], [prompt], steps=1, guidance=30.0, seeds=[8])
    torch.testing.assert_close(alone[0], pictures["after"][1], rtol=0, atol=1e-4)
    lines = table({category: {"paired": scores[category]} for category in scores})
    assert (
        len(lines) == 4
        and lines[1].startswith("upper, paired")
        and f"{scores['upper']['fill']['psnr']:.2f}" in lines[1]
    )


def test_a_truth_that_is_reached_scores_as_such(model: TryOnModel) -> None:
    sample = make_sample(0)
    flat = replace(sample, garment=torch.full_like(sample.garment, -0.25))
    case = Case(flat, filled(flat))
    scores, _, _ = evaluate(model, [case], "test", steps=1, guidance=30.0, seed=0, batch_size=1)
    assert scores["upper"]["fill"]["psnr"] == pytest.approx(100) and scores["upper"]["fill"]["ssim"] == pytest.approx(1)
    assert scores["upper"]["vae"]["psnr"] < 50
    white = replace(sample, garment=torch.ones_like(sample.garment))
    assert (filled(white)[sample.mask.bool().expand(3, -1, -1)] == 1).all()
