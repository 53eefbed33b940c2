"""The last step of a run: how well its LoRA dresses people, as a table, a picture and evaluation.json.

    {"seed": n, "vae_psnr": dB, "length_ok": share or null, "upper" | "lower" | "full":
        {"paired" | "unpaired": {"fill" | "vae" | "before" | "after": {"psnr": dB, "ssim": x}}}}

The columns are explained in tryon.evaluate. Unpaired scores and lengths need a truth that only the toy's drawings have.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from diffusers.training_utils import free_memory
from torch import Tensor

from tryon.config import TrainConfig, TryOnConfig, save_json
from tryon.evaluate import Case, Scores, evaluate, evaluation_grid, paired_cases, table
from tryon.pipeline import load_try_on
from tryon.runs import find_lora
from tryon.sample import CATEGORIES, SampleSource, fit_picture, to_picture
from tryon.toy.examples import OTHER_LENGTH, DrawnData
from tryon.validate import pick_for_grid

logger = logging.getLogger(__name__)

DRAWN_SEED = 10_000  # added to the run's: nobody has seen these drawings, and another run gets others
LENGTH_TOLERANCE = 0.1  # of the true length
GRID_ROWS = 6


def evaluate_run(run: Path, config: TrainConfig, held_out: SampleSource, drawn: bool) -> None:
    """Scores the run's newest LoRA on config.num_evaluation_samples pairs of each category, from its file.

    held_out: the validation data. drawn: on drawings instead, which have unpaired truths too.
    """
    free_memory()  # of the training
    models = TryOnConfig(
        base=config.pretrained_model_name_or_path,
        transformer=config.pretrained_inpaint_model_name_or_path,
        toy=config.toy,
        cache_dir=config.cache_dir,
        data_cache_dir=config.data_cache_dir,
    )
    model = load_try_on(models, find_lora(str(run)))
    count = config.num_evaluation_samples
    if drawn:
        shape = (len(CATEGORIES) * count, DRAWN_SEED + config.seed, CATEGORIES, config.height, config.width)
        drawings = {"paired": DrawnData(*shape), "unpaired": DrawnData(*shape, unpaired=True)}
        cases = {kind: drawn_cases(data) for kind, data in drawings.items()}
    else:
        cases = {"paired": paired_cases(held_out, count)}

    results: dict[str, dict[str, Scores]] = {}
    quality = []
    for kind, each in cases.items():
        scores, pictures, vae_psnr = evaluate(
            model,
            each,
            f"{kind} garments",
            steps=config.num_inference_steps,
            guidance=config.validation_guidance_scale,
            seed=config.seed,
            batch_size=config.train_batch_size,
        )
        quality.append(vae_psnr)
        for category, columns in scores.items():
            results.setdefault(category, {})[kind] = columns
        picked = pick_for_grid([case.sample.category for case in each], GRID_ROWS)
        evaluation_grid(each, pictures, picked).save(run / f"evaluation-{kind}.png")

    facts = {"seed": config.seed, "vae_psnr": sum(quality) / len(quality)}
    for line in table(results):
        logger.info("%s", line)
    if drawn:
        right = lengths_right(drawings["unpaired"], pictures["after"])
        facts["length_ok"] = sum(right) / len(right) if right else None  # skirts alone
        logger.info("length of trousers for shorts and the reverse: right in %d of %d", sum(right), len(right))
    save_json(run / "evaluation.json", {**facts, **results})


def drawn_cases(data: DrawnData) -> list[Case]:
    """The drawn pairs with their truths."""
    return [
        Case(data[index], fit_picture(data.truth(index).image, data.height, data.width)) for index in range(len(data))
    ]


def lengths_right(data: DrawnData, pictures: Sequence[Tensor]) -> list[bool]:
    """For each of the data's persons in shorts or trousers, whether what it wears in the pictures, [3, H, W/2] in
    [-1, 1], ends where it does in truth, to a tenth of its length."""
    right = []
    for index, picture in enumerate(pictures):
        if data.example(index).outfit[0].kind in OTHER_LENGTH:
            true = data.true_length(index)
            found = data.length(index, np.asarray(to_picture(picture)))
            right.append(abs(found - true) <= LENGTH_TOLERANCE * true)
    return right
