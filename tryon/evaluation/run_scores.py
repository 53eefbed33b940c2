"""The last step of a run: how well its LoRA dresses people, as a table, a picture and evaluation.json.

    {"seed": n, "vae_psnr": dB, "length_ok": share or null, "upper" | "lower" | "full":
        {"paired" | "unpaired": {"before" | "after" | "fill" | "vae": {"psnr": dB, "ssim": x}}}}

The columns are explained in tryon.evaluation.cases. Unpaired scores and "length_ok" are there for drawings only, which
have the truth that they need.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from diffusers.training_utils import free_memory
from torch import Tensor

from tryon.config import TrainConfig, TryOnConfig
from tryon.data.grid import pick_for_grid
from tryon.evaluation.cases import Case, Scores, evaluate, evaluation_grid, table
from tryon.files import save_json
from tryon.inference.pipeline import load_try_on
from tryon.runs import find_lora

logger = logging.getLogger(__name__)

GRID_ROWS = 6


def evaluate_run(
    run: Path,
    config: TrainConfig,
    cases: dict[str, Sequence[Case]],
    lengths_right: Callable[[Sequence[Tensor]], list[bool]] | None = None,
) -> None:
    """Scores the run's newest LoRA, read from its file, on cases by kind: "paired" and, where there is one, "unpaired".

    lengths_right: says of the dressed persons of the last kind, [3, H, W/2] in [-1, 1] each, whether their garments end
    where they should, for those of which it can tell.
    """
    free_memory()  # of the training
    models = TryOnConfig(
        base=config.pretrained_model_name_or_path,
        transformer=config.pretrained_inpaint_model_name_or_path,
        toy=config.toy,
        quantization=config.quantization,
        offload=config.offload,
        cache_dir=config.cache_dir,
        data_cache_dir=config.data_cache_dir,
    )
    model = load_try_on(models, find_lora(str(run)))
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
    if lengths_right:
        before, right = lengths_right(pictures["before"]), lengths_right(pictures["after"])
        facts["length_ok"] = sum(right) / len(right) if right else None  # skirts alone
        words = "length of trousers for shorts and the reverse: right in %d of %d, before in %d"
        logger.info(words, sum(right), len(right), sum(before))
    save_json(run / "evaluation.json", {**facts, **results})
