"""The one engine that scores: models try on the same cases, and each result is measured.

Models are BASE, without a LoRA, and LoRAs, named by the hashes of their files. Beside them stand two bounds:

    FILL  the mask filled with the garment's mean colour: the least that a try-on must beat
    VAE   the truth through the VAE: the best that can be hoped for

A run scores its own LoRA at its end, in memory: `score_run`. evaluate_lora.py keeps what it does in a folder, and goes
on where it was stopped, or with more cases:

    <folder>/settings.json       what the pictures follow from; a command with other settings is refused
    <folder>/measured.jsonl      a line for each model and case, written once it is measured, and not done again
    <folder>/pictures/<model>/<kind>-<case>.png
    <folder>/inputs/person/<kind>-<case>.png       and garment
    <folder>/earlier/<number>    what other comparisons in this folder found before, the oldest first

tryon.evaluation.compare says what the numbers mean, and what evaluation.json holds.
"""

import json
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxFillPipeline
from diffusers.training_utils import free_memory
from PIL import Image
from torch import Tensor

from tryon.config import TrainConfig, TryOnConfig, models_of
from tryon.console import progress_bar
from tryon.data.category import left_to_base
from tryon.data.masks import mask_picture
from tryon.data.outline import outline_on_edges
from tryon.data.sample import TryOnSample, fit_picture, read_picture, split_diptych, to_picture
from tryon.evaluation import compare
from tryon.evaluation.cases import BASE, FILL, REAL, VAE, WHITE, Case, Cases, Line, Place, places_of
from tryon.evaluation.leftovers import share_by_labels
from tryon.evaluation.metrics import interior, psnr, ssim
from tryon.evaluation.perceptual import Perception
from tryon.evaluation.text import found_again
from tryon.files import file_hash, read_json, save_json
from tryon.flux.encode import decode_latents, encode_pictures
from tryon.flux.lora_header import LoraFacts
from tryon.flux.memory import choose_quantization
from tryon.flux.prompts import prompt_key
from tryon.inference.dressing import FindParts
from tryon.inference.photograph import given_back
from tryon.inference.pipeline import TryOnModel, load_try_on, try_on_batch
from tryon.report import EVALUATION
from tryon.runs import find_lora
from tryon.scores import INPUTS, LINES, Results, aligned, input_path, names_of, picture_path, read_lines

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"
EARLIER = "earlier"  # comparisons before the newest one
GRID_ROWS, WORST_ROWS = 6, 8  # of a run's pictures, and of those with the worst cases


@dataclass(frozen=True)
class Denoising:
    """How results are made: case i starts from the noise of seed + i."""

    steps: int
    guidance_scale: float
    seed: int
    batch_size: int


def measured_results(
    model: TryOnModel, names: Sequence[str], cases: Cases, how: Denoising, done: Collection[Place] = (), *, saved: bool,
    find_parts: FindParts | None = None,
) -> Iterator[tuple[Place, Line, Tensor]]:  # fmt: skip
    """What is measured of each result that is not done, and the result, [3, H, W/2] in [-1, 1].

    names: of models; one that is neither BASE nor a bound is the LoRA. saved: measure results as they are in a file of
    256 levels. find_parts: by which what masks hid for nothing is given back; None: it is not. Batches are always the
    same ones, wherever the work was interrupted, so that the results are, too.
    """
    places = places_of(names, cases)
    missing = places - set(done)
    with progress_bar(len(places), "scoring", visible=True, initial=len(places) - len(missing)) as bar:
        for kind, source in cases.items():
            for start in range(0, len(source), how.batch_size):
                batch = range(start, min(start + how.batch_size, len(source)))
                wanted = [name for name in names if any((name, kind, index) in missing for index in batch)]
                opened = [source[index] for index in batch] if wanted else []
                of_base = None
                for name in wanted:
                    seeds = [how.seed + index for index in batch]
                    results = results_of(model, name, opened, how, seeds, find_parts, of_base)
                    of_base = results if name == BASE else of_base
                    for index, case, (result, more) in zip(batch, opened, results, strict=True):
                        if (place := (name, kind, index)) in missing:
                            result = as_tensor(to_picture(result)) if saved else result
                            yield place, {**measured(case, result), **more}, result
                            bar.update()


def results_of(
    model: TryOnModel, name: str, cases: Sequence[Case], how: Denoising, seeds: Sequence[int],
    find_parts: FindParts | None, of_base: Sequence[tuple[Tensor, Line]] | None = None,
) -> list[tuple[Tensor, Line]]:  # fmt: skip
    """The results of a batch, [3, H, W/2] in [-1, 1] each, and what is known of them before they are measured.

    of_base: BASE's results of these cases, where they are there already. Garments that a LoRA leaves to the model have
    the very results of BASE, in whose batch they round in the same way.
    """
    samples, transformer = [case.sample for case in cases], model.pipeline.transformer
    if name == VAE:
        return [through_vae(model.pipeline, case) for case in cases]
    if name == FILL:
        return [(filled(sample), {}) for sample in samples]
    left = {row for row, each in enumerate(samples) if name != BASE and each.category in model.facts.base_categories}
    if left and of_base is None:
        of_base = results_of(model, BASE, cases, how, seeds, find_parts)
    results = {row: of_base[row] for row in left}
    if own := [row for row in range(len(samples)) if row not in left]:
        (transformer.disable_adapters if name == BASE else transformer.enable_adapters)()
        some = [samples[row] for row in own]
        panels = try_on_batch(
            model.pipeline, some, [model.prompts[prompt_key(each.category, each.try_off)] for each in some],
            steps=how.steps, guidance=how.guidance_scale, seeds=[seeds[row] for row in own],
        )  # fmt: skip
        if find_parts:
            panels = [with_given_back(*each, find_parts) for each in zip(some, panels, strict=True)]
        results |= {row: (panel, {}) for row, panel in zip(own, panels, strict=True)}
    return [results[row] for row in range(len(samples))]


def with_given_back(sample: TryOnSample, panel: Tensor, find_parts: FindParts) -> Tensor:
    """A result, [3, H, W/2] in [-1, 1], with everything as it was that its mask hid for nothing."""
    person, result, mask = to_picture(sample.person), to_picture(panel), mask_picture(sample.mask.bool())
    return as_tensor(given_back(person, result, mask, sample.category, find_parts(person), find_parts(result)))


def filled(sample: TryOnSample) -> Tensor:
    """The person, or in a try-off the garment's picture, with the mask filled with the garment's mean colour:
    [3, H, W/2]."""
    worn = (sample.garment < WHITE).any(0)
    colour = sample.garment[:, worn].mean(1) if worn.any() else torch.ones(3)
    panel = sample.garment if sample.try_off else sample.person
    return torch.where(sample.mask.bool(), colour[:, None, None], panel)


@torch.no_grad()
def through_vae(pipeline: FluxFillPipeline, case: Case) -> tuple[Tensor, Line]:
    """The truth as the VAE can show it, of a try-on inside the mask: [3, H, W/2]. And the PSNR of the whole diptych."""
    sample = case.sample
    diptych = torch.cat([sample.garment, sample.person if sample.try_off else case.truth], dim=-1)
    decoded = decode_latents(pipeline.vae, encode_pictures(pipeline.vae, diptych[None])).clamp(-1, 1)
    quality = psnr(decoded, diptych[None], torch.ones_like(diptych[None, :1])).item()
    garment, person = split_diptych(decoded[0])
    result = garment if sample.try_off else torch.where(sample.mask.bool(), person, sample.person)
    return result, {"psnr_diptych": quality}


def measured(case: Case, result: Tensor) -> Line:
    """The category of a case and the scores of a result, [3, H, W/2] in [-1, 1], against the truth where it is known.

    changed_outside: of a try-on, the share of the pixels outside the mask that are not the person's. on_edges: how much
    of the mask's outline follows the picture, see tryon.data.outline.
    """
    sample, scores = case.sample, {}
    if not sample.try_off:
        person, hidden = to_picture(sample.person), sample.mask[0].bool().numpy()
        outside = (np.asarray(to_picture(result)) != np.asarray(person)).any(-1)[~hidden]
        on_edges = outline_on_edges(person, Image.fromarray(hidden.astype(np.uint8) * 255))
        scores = {"changed_outside": float(outside.mean()) if outside.size else 0.0, "on_edges": on_edges}
    if case.truth is not None:
        both, mask = (result[None], case.truth[None]), sample.mask[None]
        inside, whole = ssim(*both, mask, interior(mask))
        scores |= {"psnr": psnr(*both, mask).item(), "ssim": inside.item()}
        scores |= {"psnr_whole": psnr(*both, torch.ones_like(mask)).item(), "ssim_whole": whole.item()}
    if case.ends_right:
        scores["length_right"] = float(case.ends_right(result))
    if case.leftovers:
        scores["leftovers"] = case.leftovers(result)
    return {"category": sample.category, **{name: value for name, value in scores.items() if value is not None}}


def score_run(run: Path, config: TrainConfig, data: str, cases: Cases) -> None:
    """The last step of a run: scores its LoRA, read from its file, on cases by kind. Logs a table, and writes
    evaluation.json and evaluation-<kind>.png. data: what the cases are of, in words."""
    free_memory()  # of the training
    models = models_of(config)
    lora = find_lora(str(run))
    model, digest = load_try_on(models, lora), file_hash(lora)[:16]
    steps, guidance = config.num_inference_steps, config.validation_guidance_scale
    how = Denoising(steps, guidance, config.seed, config.train_batch_size)
    shown = {BASE: "base", digest: "LoRA"}
    headings = {**shown, FILL: "fill", VAE: "vae"}
    lines, pictures = {}, {}
    for place, line, result in measured_results(model, list(headings), cases, how, saved=False):
        lines[place], pictures[place] = line, to_picture(result)

    results = compare.summarise(lines, headings, cases)
    said = [*aligned(compare.overview(results, headings)), *compare.lengths(results)]
    for line in said:
        logger.info("%s", line)
    for kind, source in cases.items():
        picked = range(min(GRID_ROWS, len(source)))
        grid = compare.case_grid(source, kind, picked, shown, lines, pictures.__getitem__)
        grid.save(run / f"evaluation-{kind}.png")
    settings = settings_of(data, model.facts, replace(models, base=None, transformer=None), model.size, how)
    facts = {"step": model.facts.step, "base_categories": model.facts.base_categories}
    legend = {"LoRA": {"file": str(lora), "sha256": digest, **facts}}
    settings["num_samples"] = config.num_evaluation_samples
    save_scores(run, evaluation_of(settings, legend, {}, results))


def settings_of(
    data: str, facts: LoraFacts, config: TryOnConfig, size: tuple[int, int], how: Denoising
) -> dict[str, Any]:
    """What the pictures follow from. data: what the cases are of, in words. config: with the models' names where they
    are others than the LoRA was trained for. size: height and width of the panel."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "data": data, "height": size[0], "width": size[1], **vars(how), "base": config.base or facts.base,
        "transformer": config.transformer or facts.transformer, "prompt": facts.prompt,
        "max_sequence_length": facts.max_sequence_length, "lora_scale": config.lora_scale,
        "quantization": choose_quantization(config.quantization, device), "device": device.type,
    }  # fmt: skip


def evaluation_of(
    settings: dict[str, Any], loras: dict[str, Any], missing: dict[str, str], results: Results
) -> dict[str, Any]:
    """The content of evaluation.json. loras: for each heading file, sha256, step and base_categories. missing: for each
    metric that was not computed, why."""
    facts = {"version": compare.EVALUATION_VERSION, "settings": settings, "loras": loras, "not_computed": missing}
    return {**facts, "scores": results}


def save_scores(folder: Path, evaluation: dict[str, Any]) -> None:
    """Writes evaluation.json. Raises ValueError, once it is written, where a pixel outside a mask is not the
    person's."""
    save_json(folder / EVALUATION, evaluation)
    if changed := compare.changed_outside(evaluation["scores"]):
        raise ValueError(f"{', '.join(changed)} changed pixels outside of the masks, which must stay the person's")


def open_folder(folder: Path, settings: dict[str, Any], cases: Cases) -> None:
    """Prepares the folder for these settings and cases; it may hold some scores of them already. Raises ValueError
    where it holds scores of other settings, with the differences, or of other cases, and where it cannot be written."""
    file, advice = folder / SETTINGS, "give the same, or name another folder with --output_dir"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            save_json(file, settings)
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error.strerror}): name another with --output_dir") from error
    was = read_json(file)
    if "num_samples" in was:
        raise ValueError(f"{folder} holds scores of an older version: name another folder with --output_dir")
    changed = [name for name in {**was, **settings} if was.get(name) != settings.get(name)]
    if changed:
        differences = "; ".join(f"{name} was {was.get(name)} and is {settings.get(name)}" for name in changed)
        raise ValueError(f"{folder} holds scores of other settings: {differences}: {advice}")
    for (_, kind, index), line in read_lines(folder).items():
        if kind in cases and index < len(cases[kind]) and cases[kind].key(index) != line["key"]:
            name = cases[kind].name(index)
            raise ValueError(f"{folder} holds scores of other data ({kind} case {index} is {name} now): {advice}")


def measure(
    folder: Path, model: TryOnModel, names: Sequence[str], cases: Cases, how: Denoising,
    find_parts: FindParts | None = None,
) -> None:  # fmt: skip
    """Makes, saves and measures what the folder does not hold yet. find_parts: see measured_results. Raises
    ValueError where it cannot be written."""
    done = read_lines(folder)
    for place, found, result in measured_results(model, names, cases, how, done, saved=True, find_parts=find_parts):
        name, kind, index = place
        what = {"name": cases[kind].name(index), "key": cases[kind].key(index)}
        line = {"model": name, "kind": kind, "case": index, **what, **found}
        path = picture_path(folder, place)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            to_picture(result).save(path)
            with (folder / LINES).open("a") as file:
                file.write(f"\n{json.dumps(line)}")  # the newline ends a line that was cut short
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise ValueError(
                f"{folder} cannot be written ({error}): make room on the disk, then give the same command again"
            ) from error


def write_scores(
    folder: Path, settings: dict[str, Any], loras: dict[str, Any], models: dict[str, str], cases: Cases,
    perception: Perception,
) -> None:  # fmt: skip
    """Says what the folder's measured cases mean: logs tables, writes evaluation.md, worst-<kind>.png and
    evaluation.json. models: for each name its heading, BASE first. Raises ValueError as `save_scores` does."""
    save_inputs(folder, cases)
    held = read_lines(folder)
    lines = {place: held[place] for place in places_of(models, cases)}
    results = compare.summarise(lines, models, cases, perceive(folder, lines, models, cases, perception))
    names = names_of(loras)
    said = compare.findings(lines, results, models, names, cases)
    left = {names[heading]: left_to_base(lora["base_categories"]) for heading, lora in loras.items()}
    said += [f"{name}: {sentence}." for name, sentence in left.items() if sentence]
    evaluation = evaluation_of(settings, loras, perception.missing, results)
    keep_earlier(folder, evaluation)
    text = compare.page(settings["data"], loras, said, perception.missing, results)
    (folder / "evaluation.md").write_text(text)
    for line in compare.terminal(loras, said, perception.missing, results):
        logger.info("%s", line)
    pictures, shown = {}, {each: names[heading] for each, heading in models.items()}
    for kind, source in cases.items():
        picked = compare.worst_cases(lines, models, kind, len(source))[:WORST_ROWS]
        grid = compare.case_grid(source, kind, picked, shown, lines, partial(saved_picture, folder))
        grid.save(folder / f"worst-{kind}.png")
        order = "the worst cases first" if "psnr" in lines[BASE, kind, 0] else "the first cases"
        pictures[f"{kind}, {order}"] = grid
        logger.info("%s: %s", order, folder / f"worst-{kind}.png")
    (folder / "evaluation.html").write_text(
        compare.web_page(settings, loras, said, perception.missing, results, pictures)
    )
    logger.info("scores: %s, evaluation.md and evaluation.json beside it", folder / "evaluation.html")
    save_scores(folder, evaluation)


def keep_earlier(folder: Path, evaluation: dict[str, Any]) -> None:
    """Moves what another comparison left there, of other LoRAs, pairs or measures, into a numbered folder."""
    if not (was := read_json(folder / EVALUATION)) or was == json.loads(json.dumps(evaluation)):
        return
    earlier = folder / EARLIER / str(1 + len(list((folder / EARLIER).glob("*"))))
    earlier.mkdir(parents=True)
    for file in (*folder.glob("evaluation.*"), *folder.glob("worst-*.png")):
        file.rename(earlier / file.name)
    logger.info("another comparison was here before: it is kept in %s", earlier)


def save_inputs(folder: Path, cases: Cases) -> None:
    """Saves the person and the garment of each case, where they are not there yet."""
    with progress_bar(sum(map(len, cases.values())), "saving persons and garments", visible=True) as bar:
        for kind, index in ((kind, index) for kind, source in cases.items() for index in range(len(source))):
            paths = {each: input_path(folder, each, kind, index) for each in INPUTS}
            if not all(path.is_file() for path in paths.values()):
                sample = cases[kind][index].sample
                for each, path in paths.items():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    to_picture(getattr(sample, each)).save(path)
            bar.update()


def perceive(
    folder: Path, lines: dict[Place, Line], models: Collection[str], cases: Cases, perception: Perception
) -> dict[Place, np.ndarray]:
    """Shows the folder's pictures to the networks that could be loaded. Adds LPIPS, leftovers, and how much of a
    garment's text is found again to the lines; returns Inception's features, [D] each, of the results and, as of a
    model REAL, of the truths, or of the persons where there is none."""
    features: dict[Place, np.ndarray] = {}
    if not (perception.lpips or perception.features or perception.labels or perception.read):
        return features
    with progress_bar(sum(map(len, cases.values())), "comparing pictures", visible=True) as bar:
        for kind, index in ((kind, index) for kind, source in cases.items() for index in range(len(source))):
            case = cases[kind][index]
            real = (case.sample.person if case.truth is None else case.truth)[None]
            printed = perception.read(to_picture(case.sample.garment), None) if perception.read else []
            looks = perception.labels and case.leftovers is None and not case.sample.try_off
            before = perception.labels(to_picture(case.sample.person)) if looks else None
            if perception.features:
                features[REAL, kind, index] = perception.features(real)[0].numpy()
            for place in ((name, kind, index) for name in models):
                picture = saved_picture(folder, place)
                result = as_tensor(picture)[None]
                if printed:
                    lines[place]["text"] = found_again(printed, perception.read(picture, case.sample.mask))
                if perception.lpips and case.truth is not None:
                    lines[place]["lpips"] = perception.lpips(result, real).item()
                if perception.features:
                    features[place] = perception.features(result)[0].numpy()
                if looks:
                    after, sample = perception.labels(saved_picture(folder, place)), case.sample
                    lines[place]["leftovers"] = share_by_labels(before, after, sample.mask, sample.category)
            bar.update()
    if perception.read and not any("text" in line for line in lines.values()):
        perception.missing["text"] = "no text was read on any garment"
    return features


def saved_picture(folder: Path, place: Place) -> Image.Image:
    """A result that lies there."""
    return read_picture(picture_path(folder, place))


def as_tensor(picture: Image.Image) -> Tensor:
    """[3, H, W] in [-1, 1]: the picture as it is."""
    return fit_picture(picture, picture.height, picture.width)
