"""Trains and scores a LoRA of benchmarks/toy_ablation.py."""

import shutil
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

from benchmarks.ablation_variants import KINDS, Reference, Variant
from deepfashion_training.references import cut_out
from train_flux_inpaint import train
from tryon.config import TrainConfig, TryOnConfig, taken_off
from tryon.data.category import CATEGORIES, Category, MaskVariation
from tryon.data.masks import mask_picture, varied_mask
from tryon.data.sample import TryOnSample, fit_mask, fit_picture
from tryon.evaluation.cases import BASE, TRY_OFF, try_off_case
from tryon.evaluation.compare import summarise
from tryon.evaluation.score import Denoising, measured_results
from tryon.flux.lora_header import read_facts
from tryon.inference.pipeline import load_try_on
from tryon.runs import find_lora
from tryon.toy.drawing import draw_person
from tryon.toy.examples import EVALUATION_SEED, DrawnCases, DrawnData, label_map
from tryon.toy.model import use_toy_model, use_toy_model_for_try_on
from tryon.toy.people import VIEW, random_example

LENGTHS = "lengths right"  # of trousers given to people in shorts, and the reverse
VARIATION = MaskVariation(growth=0.1, share=0.3)
OTHER_PEOPLE = 3 * EVALUATION_SEED  # who wear what is tried on: neither trained on nor dressed


@dataclass(frozen=True)
class VariantData:
    """Drawings with another reference or mask: a SampleSource."""

    variants: ClassVar[int] = 1
    mask_rule: ClassVar[None] = None
    worn_reference_share: ClassVar[float] = 0.0  # the LoRA's file need not say it
    drawings: DrawnData
    variant: Variant

    def __len__(self) -> int:
        return len(self.drawings)

    def category(self, index: int) -> Category:
        return self.drawings.category(index)

    def name(self, index: int) -> str:
        return self.drawings.name(index)

    def shows_garment_alone(self, index: int) -> bool:
        return self.variant.reference == "flat"

    def key(self, index: int) -> str:
        return f"{self.drawings.key(index)} {self.reference(index)} {self.variant.mask}"

    def reference(self, index: int) -> Reference:
        """What the garment's picture of pair `index` is."""
        draw = np.random.default_rng([self.drawings.seed, index]).random()
        return "worn" if draw < self.variant.worn_share else self.variant.reference

    def on_somebody(self, index: int, reference: Reference) -> Image.Image:
        """The garment that is tried on, from a drawing of somebody who wears it."""
        example, outfit, category = self.drawings.example(index), self.drawings.tried_on(index), self.category(index)
        person, view = example.person, VIEW if reference == "same picture" else "additional"
        if reference == "worn by another":
            other = random_example(OTHER_PEOPLE, index, category)
            person, outfit, view = other.person, (outfit[0], *other.outfit[1:]), VIEW
        seen = draw_person(person, outfit, view, self.drawings.height, self.drawings.width)
        return seen.image if reference.startswith("worn") else cut_out(seen.image, seen.masks[category])

    def __getitem__(self, index: int) -> TryOnSample:
        sample, example = self.drawings[index], self.drawings.example(index)
        size = (self.drawings.height, self.drawings.width)
        category = sample.category
        person = draw_person(example.person, example.outfit, VIEW, *size)
        if self.variant.mask == "tight":
            sample = replace(sample, mask=fit_mask(person.masks[category], *size))
        elif self.variant.mask == "varied":
            worn = torch.from_numpy(np.asarray(person.masks[category]) > 0)[None]
            rng = np.random.default_rng([self.drawings.seed, index])
            hidden = varied_mask(worn, category, self.drawings.mask_rule, label_map(person), VARIATION, rng)
            sample = replace(sample, mask=fit_mask(mask_picture(hidden), *size))
        if (reference := self.reference(index)) != "flat":
            sample = replace(sample, garment=fit_picture(self.on_somebody(index, reference), *size))
        return replace(sample, key=self.key(index))


def run_variant(variant: Variant, settings: TrainConfig, pairs: int, cases: int) -> dict[str, float]:
    """Trains and scores one LoRA: {"upper paired": dB, "upper paired change": dB, ...}, and "try-off" where it learnt
    that. pairs: drawn and trained on. cases: held out, per category, of each kind."""
    settings = use_toy_model(settings, asked_for=True)
    shutil.rmtree(settings.output_dir, ignore_errors=True)  # an older run's checkpoints
    size = (settings.height, settings.width)
    held_out = DrawnData(len(CATEGORIES) * cases, EVALUATION_SEED, CATEGORIES, *size)
    trained_on = DrawnData(pairs, 2 * EVALUATION_SEED + settings.seed, variant.categories, *size)
    mask = "rectangle" if variant.mask == "varied" else variant.mask
    flat = replace(variant, reference="flat", worn_share=0.0, mask=mask)
    validated_on = VariantData(replace(held_out, count=3), replace(variant, worn_share=0.0))
    train(settings, VariantData(trained_on, variant), validated_on)

    lora = find_lora(settings.output_dir)
    on_the_toy = use_toy_model_for_try_on(TryOnConfig(data_cache_dir=settings.data_cache_dir), read_facts(lora))
    model = load_try_on(on_the_toy, lora)
    of_kinds = {}
    for kind in KINDS:
        drawings = replace(held_out, unpaired=kind != "paired")
        by = replace(flat, reference="worn by another") if kind == "worn" else flat
        shown, drawn = VariantData(drawings, by), DrawnCases(drawings)
        of_kinds[kind] = [replace(drawn[index], sample=shown[index]) for index in range(len(drawings))]
    if off := taken_off(settings):
        of_kinds[TRY_OFF] = [try_off_case(case.sample) for case in of_kinds["paired"] if case.sample.category in off]
    steps, guidance = settings.num_inference_steps, settings.validation_guidance_scale
    how, models = Denoising(steps, guidance, settings.seed, settings.train_batch_size), {BASE: "base", "lora": "LoRA"}
    lines = {place: line for place, line, _ in measured_results(model, list(models), of_kinds, how, saved=False)}
    found, results = summarise(lines, models, of_kinds), {}
    for category in CATEGORIES:
        for kind, of_kind in ((kind, each) for kind, each in found.items() if category in each):
            results[f"{category} {kind}"] = of_kind[category]["LoRA"]["psnr"]["mean"]
            results[f"{category} {kind} change"] = of_kind[category]["LoRA - base"]["psnr"]["mean"]
    lengths = found["unpaired"]["all"]["LoRA"].get("length_right")
    results[LENGTHS] = lengths["mean"] if lengths else 0.0
    if TRY_OFF in found:
        results[TRY_OFF] = found[TRY_OFF]["all"]["LoRA"]["psnr"]["mean"]
    return results
