"""The engine that scores, on the toy: what each model and bound makes of cases, and what a run says of its own LoRA."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import make_sample
from tryon.config import TrainConfig, TryOnConfig
from tryon.data.category import CATEGORIES, MaskRule
from tryon.evaluation.cases import BASE, FILL, VAE, Case
from tryon.evaluation.score import Denoising, filled, measured_results, score_run
from tryon.flux.lora_header import read_facts
from tryon.flux.prompts import prompt_key
from tryon.inference.pipeline import TryOnModel, load_try_on, try_on_batch
from tryon.profiles import on_toy
from tryon.report import read_lengths, read_scores
from tryon.runs import find_lora
from tryon.toy.examples import held_out_drawings
from tryon.toy.model import use_toy_model, use_toy_model_for_try_on

pytestmark = pytest.mark.e2e

NAMES = (BASE, "lora", FILL, VAE)
HOW = Denoising(steps=1, guidance_scale=30.0, seed=7, batch_size=3)


@pytest.fixture(scope="module")
def model(run: Path, data_cache: Path) -> TryOnModel:
    lora = find_lora(str(run))
    return load_try_on(use_toy_model_for_try_on(TryOnConfig(data_cache_dir=str(data_cache)), read_facts(lora)), lora)


def test_every_model_and_bound_has_a_result_of_every_case(model: TryOnModel) -> None:
    samples = [make_sample(seed) for seed in range(4)]  # upper, lower, full, upper
    cases = {"paired": [Case(sample, sample.person) for sample in samples]}
    found = {place: (line, result) for place, line, result in measured_results(model, NAMES, cases, HOW, saved=False)}
    assert set(found) == {(name, "paired", index) for name in NAMES for index in range(4)}
    for (_, _, index), (line, result) in found.items():
        outside = ~samples[index].mask.bool().expand(3, -1, -1)
        assert torch.equal(result[outside], samples[index].person[outside]) and line["changed_outside"] == 0
        assert line["category"] == samples[index].category
    results = {name: found[name, "paired", 1][1] for name in NAMES}
    assert not torch.equal(results[BASE], results["lora"]), "the LoRA of this run is large"
    assert torch.equal(results[FILL], filled(samples[1]))
    assert "psnr_diptych" in found[VAE, "paired", 1][0] and "psnr_diptych" not in found[BASE, "paired", 1][0]
    prompt = model.prompts[samples[1].category]
    alone = try_on_batch(model.pipeline, [samples[1]], [prompt], steps=1, guidance=30.0, seeds=[8])
    torch.testing.assert_close(alone[0], results["lora"], rtol=0, atol=1e-4)

    done = set(found) - {("lora", "paired", 1), (VAE, "paired", 3)}
    again = {place: result for place, _, result in measured_results(model, NAMES, cases, HOW, done, saved=True)}
    assert set(again) == set(found) - done
    rounded = ((results["lora"] + 1) * 127.5).round() / 127.5 - 1
    torch.testing.assert_close(again["lora", "paired", 1], rounded, rtol=0, atol=1e-6)


def test_garments_are_taken_off_and_scored_against_their_product_pictures(model: TryOnModel) -> None:
    prompts = {prompt_key(category, try_off=True): prompt for category, prompt in model.prompts.items()}
    cases = held_out_drawings(1, 96, 64, MaskRule(), try_offs=CATEGORIES)
    taken_off = {"try-off": cases["try-off"]}
    measured = measured_results(replace(model, prompts=prompts), NAMES, taken_off, HOW, saved=False)
    found = {(name, index): (line["psnr"], result) for (name, _, index), line, result in measured}
    assert len(found) == len(NAMES) * 3 and cases["try-off"].name(1) == cases["paired"].name(1)
    for index in range(3):
        assert torch.equal(cases["try-off"][index].truth, cases["paired"][index].sample.garment)
        base, lora, vae = (found[name, index] for name in (BASE, "lora", VAE))
        assert not torch.equal(base[1], lora[1]) and 15 < vae[0] < 60 and vae[0] > max(base[0], lora[0])


def test_a_truth_that_is_reached_scores_as_such(model: TryOnModel) -> None:
    sample = make_sample(0)
    flat = replace(sample, garment=torch.full_like(sample.garment, -0.25))
    cases = {"paired": [Case(flat, filled(flat))]}
    (fill, vae) = (line for _, line, _ in measured_results(model, (FILL, VAE), cases, HOW, saved=False))
    assert fill["psnr"] == pytest.approx(100) and fill["ssim"] == pytest.approx(1) and vae["psnr"] < 50


def test_a_run_scores_itself(run: Path, data_cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    toy = on_toy(TrainConfig(data_cache_dir=str(data_cache), num_inference_steps=1, num_evaluation_samples=2))
    config = replace(use_toy_model(toy, asked_for=True), num_inference_steps=1, height=96, width=64)
    with caplog.at_level(logging.INFO):
        score_run(copy, config, "drawings", held_out_drawings(2, 96, 64, MaskRule()))
    written = json.loads((copy / "evaluation.json").read_text())
    assert list(written) == ["version", "settings", "loras", "not_computed", "scores"]
    assert written["settings"]["num_samples"] == 2 and written["loras"]["LoRA"]["step"] == 1
    of_all = written["scores"]["unpaired"]["all"]
    assert set(of_all) == {"cases", "on_edges", "base", "LoRA", "LoRA - base", "fill", "vae"} and of_all["cases"] == 6
    shown, logged = dict(read_scores(copy)), caplog.messages
    (head,) = (line for line in logged if line.startswith("PSNR in dB, SSIM"))
    for category in ("upper", "lower", "full"):
        for kind in ("paired", "unpaired"):
            row = shown[f"{category}, {kind}"]
            assert list(row) == ["base", "LoRA", "fill", "vae"] == head.split()[4:]
            (line,) = (line for line in logged if line.startswith(f"{category}, {kind} "))
            cells = [f"{score['psnr']:.2f} {score['ssim']:.3f}" for score in row.values()]
            assert len(line) == len(head) and line.split()[2:] == " ".join(cells).split()
            assert row["vae"]["psnr"] == written["scores"][kind][category]["vae"]["psnr"]["mean"]
    if lengths := read_lengths(copy):
        assert f"length of trousers for shorts and the reverse: {lengths}" in logged
    assert Image.open(copy / "evaluation-unpaired.png").size == (24 + 6 * (64 + 4), 24 + 6 * (96 + 4))
