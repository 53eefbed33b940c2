"""How well garments are tried on, in numbers: per category, inside the mask, beside what bounds them from both sides.

before  the model without its LoRA
after   with it
fill    the mask filled with the garment's mean colour: the least that a try-on must beat
vae     the truth through the VAE: the best that can be hoped for
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from diffusers import FluxFillPipeline
from PIL import Image
from torch import Tensor

from tryon.console import progress_bar
from tryon.data.category import CATEGORIES, Category
from tryon.data.grid import draw_grid
from tryon.data.sample import SampleSource, TryOnSample, UnreadablePicture, make_diptych, split_diptych, to_picture
from tryon.evaluation.metrics import psnr, ssim
from tryon.flux.encode import decode_latents, encode_pictures
from tryon.inference.pipeline import TryOnModel, try_on_batch

logger = logging.getLogger(__name__)

COLUMNS = ("before", "after", "fill", "vae")
WHITE = 0.97  # in [-1, 1]; brighter pixels of the garment's picture are its background
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Case:
    """A try-on. truth: [3, H, W/2] in [-1, 1], the sample's person wearing its garment; None where nobody knows.
    ends_right: says of a picture like it whether the garment ends where it does in truth; None where it cannot be told.
    """

    sample: TryOnSample
    truth: Tensor | None
    ends_right: Callable[[Tensor], bool] | None = None


def paired_cases(data: SampleSource, per_category: int) -> list[Case]:
    """The first pairs of each category, with their persons as they are for truth. Unreadable ones are passed over."""
    counts: Counter[Category] = Counter()
    cases = []
    for index in range(len(data)):
        try:
            sample = data[index]
        except UnreadablePicture as error:
            logger.warning("skipped: %s", error)
            continue
        if counts[sample.category] < per_category:
            counts[sample.category] += 1
            cases.append(Case(sample, sample.person))
    return cases


def evaluate(
    model: TryOnModel, cases: Sequence[Case], what: str, *, steps: int, guidance: float, seed: int, batch_size: int
) -> tuple[dict[str, Scores], dict[str, Tensor], float]:
    """Scores {category: {column: {"psnr": dB, "ssim": x}}}, means over the cases; the pictures of each column,
    [N, 3, H, W/2] in [-1, 1], in the cases' order; and the mean PSNR of whole true diptychs through the VAE.

    Case i starts from the noise of seed + i. No case may be missing.
    """
    assert cases, "there is nothing to evaluate"
    truths = torch.stack([case.truth for case in cases])
    masks = torch.stack([case.sample.mask for case in cases])
    decoded, whole = zip(*(through_vae(model.pipeline, case) for case in cases), strict=True)
    pictures = {"fill": torch.stack([filled(case.sample) for case in cases]), "vae": torch.stack(decoded)}
    bar = progress_bar(2 * len(cases), f"trying on, {what}", visible=True)
    transformer = model.pipeline.transformer
    for column in ("before", "after"):
        (transformer.disable_adapters if column == "before" else transformer.enable_adapters)()
        parts = []
        for start in range(0, len(cases), batch_size):
            samples = [case.sample for case in cases[start : start + batch_size]]
            seeds = [seed + start + index for index in range(len(samples))]
            parts.append(dressed(model, samples, steps=steps, guidance=guidance, seeds=seeds))
            bar.update(len(samples))
        pictures[column] = torch.cat(parts)
    bar.close()

    scores: dict[str, Scores] = {}
    for category in CATEGORIES:
        picked = [index for index, case in enumerate(cases) if case.sample.category == category]
        if picked:
            scores[category] = {
                column: {
                    name: metric(pictures[column][picked], truths[picked], masks[picked]).mean().item()
                    for name, metric in (("psnr", psnr), ("ssim", ssim))
                }
                for column in COLUMNS
            }
    return scores, pictures, sum(whole) / len(whole)


def dressed(
    model: TryOnModel, samples: Sequence[TryOnSample], *, steps: int, guidance: float, seeds: Sequence[int]
) -> Tensor:
    """[B, 3, H, W/2] in [-1, 1]: the samples' persons in their garments, each with its category's prompt."""
    prompts = [model.prompts[sample.category] for sample in samples]
    return try_on_batch(model.pipeline, samples, prompts, steps=steps, guidance=guidance, seeds=seeds)


def filled(sample: TryOnSample) -> Tensor:
    """The person with the mask filled with the garment's mean colour: [3, H, W/2]."""
    worn = (sample.garment < WHITE).any(0)
    colour = sample.garment[:, worn].mean(1) if worn.any() else torch.ones(3)
    return torch.where(sample.mask.bool(), colour[:, None, None], sample.person)


@torch.no_grad()
def through_vae(pipeline: FluxFillPipeline, case: Case) -> tuple[Tensor, float]:
    """The truth as the VAE can show it, inside the mask: [3, H, W/2]. And the PSNR of the whole diptych."""
    diptych = torch.cat([case.sample.garment, case.truth], dim=-1)
    decoded = decode_latents(pipeline.vae, encode_pictures(pipeline.vae, diptych[None])).clamp(-1, 1)
    quality = psnr(decoded, diptych[None], torch.ones_like(diptych[None, :1])).item()
    return torch.where(case.sample.mask.bool(), split_diptych(decoded[0])[1], case.sample.person), quality


def table(results: dict[str, dict[str, Scores]]) -> list[str]:
    """The lines of a table of {category: {"paired" or "unpaired": {column: scores}}}."""
    lines = [f"{'PSNR in dB, SSIM':24}" + "".join(f"{column:>16}" for column in COLUMNS)]
    for category, kinds in results.items():
        for kind, scores in kinds.items():
            cells = (f"{scores[column]['psnr']:9.2f} {scores[column]['ssim']:.3f}" for column in COLUMNS)
            lines.append(f"{category + ', ' + kind:24}" + "".join(f"{cell:>16}" for cell in cells))
    return lines


def evaluation_grid(cases: Sequence[Case], pictures: dict[str, Tensor], picked: Sequence[int]) -> Image.Image:
    """One row per picked case: garment, person, and what was and should have been made of them."""
    columns = ("garment", "person", "masked", "before LoRA", "after LoRA", "truth")
    rows = []
    for index in picked:
        sample = cases[index].sample
        masked = split_diptych(make_diptych(sample)[1])[1]
        before, after = pictures["before"][index], pictures["after"][index]
        shown = (sample.garment, sample.person, masked, before, after, cases[index].truth)
        rows.append((sample.category, [to_picture(picture) for picture in shown]))
    return draw_grid(columns, rows)
