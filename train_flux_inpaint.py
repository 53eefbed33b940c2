"""The inpaint training loop: LoRA fine-tuning of a FLUX-Fill transformer on garment | person diptychs.

`train(config, train_data, val_data)` is all there is to call; any data set that gives TryOnSamples will do. Run as a
script it trains on a folder: VITON-HD, DressCode, or a person's own with image/ and cloth/:

    python train_flux_inpaint.py --dataroot <folder> --train_data_list train_pairs.txt

Every random draw follows from (seed, optimiser step, accumulation index, index in the global batch), and the order of
the samples from (seed, epoch): neither the number of processes nor an interruption changes what is trained on.
"""

from folder_lists import has_masks, read_pairs, read_settings
from tryon.cli import check_first, run_script

if __name__ == "__main__":
    check_first(read_settings)  # --help and a wrong flag answer before the heavy imports

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration
from diffusers import FluxTransformer2DModel
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from folder_datasets import describe_pairs, load_folder
from tryon.answer import answer
from tryon.config import TrainConfig, base_categories, seconds_of, taken_off
from tryon.console import on_terminal, progress_bar, set_up_logging
from tryon.data.category import Category, mask_variation_of
from tryon.data.layout import pairs_in_words
from tryon.data.persons import PERSONS, PhotographSource, person_digests, write_persons
from tryon.data.sample import PromptEmbedding, SampleSource
from tryon.data.split import few_pairs
from tryon.data.try_off import with_try_offs
from tryon.evaluation.cases import paired_cases, try_offs_of
from tryon.evaluation.score import score_run
from tryon.files import files_fingerprint
from tryon.flux.attention import fall_back, uses_safest
from tryon.flux.flow_matching import NoiseLevels, noise_levels
from tryon.flux.load import TEXT_PARTS, ModelFiles, fetch_training_models, load_scheduler, load_transformer, load_vae
from tryon.flux.lora import read_lora
from tryon.flux.lora_header import LoraFacts, verify_lora
from tryon.flux.memory import check_panel_fits, dtype_of, resolved
from tryon.flux.placement import prepare_transformer
from tryon.flux.prompt_cache import cache_prompts
from tryon.flux.prompts import TRY_OFF_PROMPT, prompts_of
from tryon.hub import check_login
from tryon.inference.pipeline import build_pipeline
from tryon.report import REPORT, write_data, write_environment, write_report
from tryon.runs import (
    SAME_WHEN_RESUMED,
    TrainedAlready,
    check_identity,
    find_checkpoint,
    find_lora,
    is_scored,
    lacks_its_end,
    locked,
    lora_file,
    own_run,
    resume_hint,
    step_of,
)
from tryon.share import ShareConfig, push
from tryon.signals import TIME_IS_UP, asked_to_stop, finishing_steps, stop_after
from tryon.toy.model import toy_name, use_toy_model
from tryon.training.batches import count_sampled, load_batches, sampled_in_step
from tryon.training.checkpoint import CheckpointWriter, TrainerState, load_checkpoint, tidy, verify
from tryon.training.ema import WeightAverage, make_average
from tryon.training.latent_cache import LatentData, cache_latents, data_identity, latent_files
from tryon.training.plan import seen_often
from tryon.training.progress import Progress
from tryon.training.speed import device_name
from tryon.training.step import make_lr_scheduler, make_optimizer, make_passes, optimiser_step
from tryon.training.tracking import forget_metrics_after, log_metrics, start_processes, start_trackers, with_trackers
from tryon.training.validation import check_is_measured, make_validation, validation_picture

logger = logging.getLogger(__name__)

PairCounts = Mapping[str, Mapping[Category, int]]  # {what, such as "validation": {category: pairs}}


@dataclass(frozen=True)
class Training:
    """What the loop needs. model: the transformer as accelerate wraps it. first_step: optimiser steps done before.
    seen: whether the validation picture of that step is there already."""

    config: TrainConfig
    run: Path
    accelerator: Accelerator
    identity: dict[str, Any]  # see TrainerState
    latents: LatentData
    prompts: dict[str, PromptEmbedding]  # by prompt_key
    levels: NoiseLevels
    transformer: FluxTransformer2DModel
    model: nn.Module
    average: WeightAverage | None  # on the main process, with --ema_decay
    optimizer: Optimizer
    lr_scheduler: LRScheduler
    validate: Callable[[int], None]  # see make_validation
    facts: LoraFacts
    first_step: int
    max_steps: int
    seen: bool

    def sampled(self, first_step: int, step: int) -> dict[Category, int]:
        """How many samples of each category the steps from first_step to step take, in all processes together."""
        per_step = samples_per_step(self.config, self.accelerator)
        return count_sampled(self.latents, self.config.balance, self.config.seed, first_step, step, per_step)


def train(
    config: TrainConfig, train_data: SampleSource, val_data: SampleSource, begun: Callable[[], None] = lambda: None
) -> Path:
    """Trains a LoRA and returns the run's folder, config.output_dir, with checkpoints, metrics and pictures in it.

    begun: is called on the main process once models, data and checkpoint are accepted. A start that is refused before
    leaves checkpoints, curves and records of the run as they were.

    Raises ValueError, in one sentence, for everything the user can mend: models that cannot be loaded, data that cannot
    be read, a checkpoint of another LoRA, a loss that is no longer finite.
    """
    assert config.output_dir is not None, "the caller chooses the run's folder"
    run, checkpoint = Path(config.output_dir), None
    # What it starts from is looked at before hours may be spent on encoding.
    if config.resume_from_checkpoint:
        checkpoint = find_checkpoint(config.resume_from_checkpoint, run)
        verify(checkpoint)
    elif config.init_lora:
        verify_lora(find_lora(config.init_lora))
    if checkpoint or config.init_lora:
        read_lora(lora_file(checkpoint) if checkpoint else find_lora(config.init_lora))
    stop_after(None if config.max_time is None else seconds_of(config.max_time))
    with locked(run) if start_processes().is_main_process else nullcontext():
        accelerator = start_accelerator(config, run)
        try:
            training = setup(config, train_data, val_data, accelerator, checkpoint)
            accelerator.wait_for_everyone()  # until all have found the checkpoint
            if accelerator.is_main_process:
                tidy(run, checkpoint)
                begun()
            fit(training)
        finally:  # the curves' last points are still in memory
            with_trackers(accelerator, lambda tracker: tracker.finish())
            accelerator.trackers.clear()
        accelerator.end_training()
    return run


def setup(
    config: TrainConfig, train_data: SampleSource, val_data: SampleSource, accelerator: Accelerator,
    checkpoint: Path | None,
) -> Training:  # fmt: skip
    """Encodes what never changes, loads the transformer with its LoRA, and restores the checkpoint if one is given."""
    run = Path(config.output_dir)
    config = resolved(config, accelerator.device)
    check_is_measured(config, val_data)
    check_is_trained_on(config, train_data)
    dtype = dtype_of(config)

    # The models' files, and whether the checkpoint belongs to them and to the data: nothing is computed before.
    with accelerator.main_process_first():  # one downloads, the others find it
        files = fetch_training_models(config, accelerator.device)
    check_panel_fits((config.height, config.width), files.base, dtype, accelerator.device)
    if config.try_off_share:
        train_data = with_try_offs(train_data)
    train_files = latent_files(train_data, files, config, dtype)
    identity = run_identity(config, files, train_files)
    if checkpoint:
        check_identity(checkpoint, identity)

    # Text encoders and VAE first: the prompts and pictures never change, so they are encoded once, and the text
    # encoders are gone before the transformer arrives. The VAE stays, for the validation pictures.
    prompts = encode_prompts(config, files, dtype, accelerator)
    vae = load_vae(files.base, dtype, accelerator.device)
    val_files = latent_files(val_data, files, config, dtype)
    train_latents = cache_latents(train_data, train_files, "training samples", vae, config, accelerator)
    train_latents = replace(train_latents, try_offs=config.try_off_share > 0)
    val_latents = cache_latents(val_data, val_files, "validation samples", vae, config, accelerator)

    # Where it goes on from.
    step, max_steps = step_of(checkpoint) if checkpoint else 0, config.max_train_steps
    if config.num_train_epochs:
        rows = len(train_latents.categories)
        max_steps = math.ceil(config.num_train_epochs * rows / samples_per_step(config, accelerator))
    if checkpoint and step >= max_steps:
        raise TrainedAlready(f"{checkpoint} is at step {step} of {max_steps}: give more --max_train_steps")

    # The transformer: frozen weights where they fit, a LoRA in every layer, an optimiser for the LoRA alone.
    transformer = load_transformer(files.transformer, dtype)
    init_lora = find_lora(config.init_lora) if config.init_lora else None
    parameters = prepare_transformer(transformer, config, accelerator.device, init_lora)
    optimizer = make_optimizer(config, parameters)
    average = make_average(config, parameters) if accelerator.is_main_process else None

    if checkpoint:
        state = load_checkpoint(checkpoint, identity, transformer, optimizer, average)
        if state.safest_attention:
            fall_back(transformer)
        forget_metrics_after(run, step)
        logger.info("resumed from %s at step %d", checkpoint, step)
    else:
        forget_metrics_after(run, -1)  # of a start that came to no checkpoint
    lr_scheduler = make_lr_scheduler(config, optimizer, step, max_steps)

    seen = validation_picture(run, step).exists()  # asked by all before one can draw it
    model = accelerator.prepare(transformer)  # autocast and, with several processes, DDP
    scheduler = load_scheduler(files.base)
    pipeline = build_pipeline(transformer, vae, scheduler)
    validate = make_validation(config, accelerator, pipeline, val_data, val_latents, prompts, run, average)
    start_trackers(accelerator, config, run, step)
    if accelerator.is_main_process:
        write_environment(run, device_name(accelerator.device))
    return Training(
        config, run, accelerator, identity, train_latents, prompts, noise_levels(config, scheduler), transformer, model,
        average, optimizer, lr_scheduler, validate, lora_facts(config, train_data), step, max_steps, seen,
    )  # fmt: skip


def fit(training: Training) -> None:
    """Trains to the last step, and saves and validates on the way.

    Leaves the process after a step, saved, where a signal has come or --max_time is over.
    """
    config, accelerator, step = training.config, training.accelerator, training.first_step
    progress = Progress(config, accelerator, training.run, step, training.max_steps)
    writer = CheckpointWriter(training.run, config.checkpoints_total_limit)

    # What the pictures look like before; a resumed run may have been stopped before it looked.
    if step == 0 or (step % config.validation_steps == 0 and not training.seen):
        with progress.clock.part("validation"):
            look(training, step, writer)

    training.model.train()
    passes = make_passes(config, training.model, training.optimizer.param_groups[0]["params"], accelerator)
    batches = iter(load_batches(config, training.latents, training.prompts, accelerator, step, training.max_steps))
    progress.start()
    with finishing_steps(), writer:
        while step < training.max_steps:
            # One update, from the gradients of all micro-batches.
            samples = partial(sampled_in_step, training.latents, config, step, accelerator.num_processes)
            metrics = optimiser_step(
                config, training.levels, step, training.model, passes, batches, training.optimizer,
                training.lr_scheduler, accelerator, progress.clock, samples,
            )  # fmt: skip
            if training.average:
                training.average.update()
            step += 1
            progress.show(step, metrics)

            # A checkpoint that could not be written ends the training, as its loss would be noticed too late. All
            # processes stop after the same step.
            writer.raise_if_failed()
            is_last, stop = step == training.max_steps, agreed_stop(accelerator)

            # Once in a while: save, then look. A picture that fails must not cost the weights it shows.
            if step % config.checkpointing_steps == 0 or is_last or stop:
                with progress.between_steps("checkpoint", step):
                    save(training, step, writer, wait=is_last or stop > 0)
            if stop == TIME_IS_UP:
                logger.info("--max_time %s is over", config.max_time)
            if stop > 128 or (stop and not is_last):
                progress.close()
                raise SystemExit(stop)
            if step % config.validation_steps == 0 or is_last:
                with progress.between_steps("validation", step):
                    passes.forget()  # the pictures need its memory
                    look(training, step, writer)
    if (stop := asked_to_stop()) > 128:  # while the last pictures were drawn
        raise SystemExit(stop)
    progress.finish(step)
    sampled = training.sampled(training.first_step, step)
    logger.info("sampled: %s", ", ".join(f"{count} {category}" for category, count in sampled.items()))


def save(training: Training, step: int, writer: CheckpointWriter, wait: bool) -> None:
    """Begins to write a checkpoint, on the main process. wait: until it is written, on all: a process that leaves takes
    the others with it."""
    if training.accelerator.is_main_process:
        facts = replace(training.facts, step=step)
        state = TrainerState(step, training.identity, uses_safest(training.transformer), training.config.keep_best)
        writer.save(state, facts, training.transformer, training.optimizer, training.average)
    if wait:
        visible = training.accelerator.is_main_process and on_terminal()
        with progress_bar(1, f"saving step {step}", visible) as bar:
            writer.wait()
            bar.update()
        training.accelerator.wait_for_everyone()


def look(training: Training, step: int, writer: CheckpointWriter) -> None:
    """Validates, and writes the run's report as it is by now."""
    training.validate(step)
    writer.wait()  # the report names the newest checkpoint
    sampled = {f"drawn/{category}": count for category, count in training.sampled(0, step).items()}
    log_metrics(training.accelerator, training.run, step, sampled)
    has_settings = (training.run / "config.json").is_file()  # not where train() is called as a library
    if training.accelerator.is_main_process and has_settings:
        write_report(training.run)


def samples_per_step(config: TrainConfig, accelerator: Accelerator) -> int:
    """Samples of an optimiser step, of all processes together."""
    return config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes


def agreed_stop(accelerator: Accelerator) -> int:
    """The exit code with which all processes leave after this step, because one got a signal or the time is up; else
    0."""
    code = asked_to_stop()
    if accelerator.num_processes > 1:
        code = int(accelerator.gather(torch.tensor([code], device=accelerator.device)).max())
    return code


def start_accelerator(config: TrainConfig, run: Path) -> Accelerator:
    """Accelerate with the run's folder. Raises ValueError where fewer processes run than were asked for."""
    if not config.toy and not torch.cuda.is_available():
        raise ValueError("there is a GPU that torch cannot use: update the NVIDIA driver, or add --toy")
    start_processes()
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=config.mixed_precision,
        # The buffers are frozen weights, the same everywhere: they need not be sent around before every step. Nor need
        # gradients be there twice.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        project_config=ProjectConfiguration(project_dir=str(run), logging_dir=str(run / "logs")),
    )
    if accelerator.num_processes != config.num_processes:
        raise ValueError(
            f"--num_processes is {config.num_processes}, and the number of processes that run is "
            f"{accelerator.num_processes}: start the training with train_deepfashion_lora.sh or with accelerate launch "
            "--num_processes"
        )
    if accelerator.is_main_process:
        run.mkdir(parents=True, exist_ok=True)
    return accelerator


def encode_prompts(
    config: TrainConfig, files: ModelFiles, dtype: torch.dtype, accelerator: Accelerator
) -> dict[str, PromptEmbedding]:
    """The prompts' embeddings by prompt_key, encoded by the main process where they are not cached yet."""
    texts = prompts_of(config.prompt, try_off_prompt(config))
    with accelerator.main_process_first():
        different, length, cache = sorted(set(texts.values())), config.max_sequence_length, Path(config.data_cache_dir)
        embeddings = cache_prompts(different, files.base, length, dtype, accelerator.device, cache)
    return {key: embeddings[text] for key, text in texts.items()}


def try_off_prompt(config: TrainConfig) -> str | None:
    """The prompt of the run's try-offs; None where there are none."""
    return TRY_OFF_PROMPT if config.try_off_share else None


def run_identity(config: TrainConfig, files: ModelFiles, train_files: list[Path]) -> dict[str, Any]:
    """What a resumed run may not change: SAME_WHEN_RESUMED, and data and models by their content: they may lie
    elsewhere, or have been downloaded again. train_files: named after the training samples' content."""
    return {
        "data": data_identity(train_files),
        "text encoders": files_fingerprint(*(files.base / part for part in TEXT_PARTS))[:12],
        "transformer": files_fingerprint(files.transformer)[:12],
        "quantization": config.quantization,  # what "auto" means here
        **{name: getattr(config, name) for name in SAME_WHEN_RESUMED},
    }


def check_is_trained_on(config: TrainConfig, data: SampleSource) -> None:
    """Raises ValueError where the data have pairs that --base_categories leaves to the model without the LoRA."""
    found = {data.category(index) for index in range(len(data) // data.variants)}
    if left := sorted(found & {*base_categories(config)}):
        raise ValueError(
            f"the data have {left[0]}-body pairs and --base_categories {config.base_categories} leaves these to the "
            "model without the LoRA: give data without them, or another --base_categories"
        )


def lora_facts(config: TrainConfig, data: SampleSource) -> LoraFacts:
    """What the LoRA's header says of its training, at step 0."""
    rule = data.mask_rule
    return LoraFacts(
        base=toy_name() if config.toy else config.pretrained_model_name_or_path,
        transformer=toy_name() if config.toy else config.pretrained_inpaint_model_name_or_path,
        prompt=config.prompt, max_sequence_length=config.max_sequence_length, height=config.height, width=config.width,
        mask_rule=rule.name if rule else "given", profile=config.profile, step=0,
        mask_offsets=rule.offsets if rule else (0.0, 0.0, 0.0, 0.0), mask_parser=rule.parser if rule else None,
        num_inference_steps=config.num_inference_steps, guidance_scale=config.validation_guidance_scale,
        worn_reference_share=data.worn_reference_share,
        try_off_prompt=try_off_prompt(config), base_categories=tuple(base_categories(config)),
    )  # fmt: skip


def evaluate_on(val_data: SampleSource, run: Path, config: TrainConfig) -> None:
    """Scores the finished run's LoRA on its first validation pairs of each category, for its report."""
    paired = paired_cases(val_data, config.num_evaluation_samples)
    cases = {"paired": paired, **try_offs_of(paired, taken_off(config))}
    score_run(run, config, "pairs held back from the training", cases)
    write_report(run)


def run_training(
    config: TrainConfig, settings: tuple[Any, ...],
    load_data: Callable[[TrainConfig, torch.device], tuple[PhotographSource, SampleSource, PairCounts]],
    score: Callable[[SampleSource, Path, TrainConfig], None], *, toy_asked_for: bool,
) -> None:  # fmt: skip
    """A whole run, of this script or the driver: models, data, training, scores of the validation data, upload.

    settings: the data's dataclasses, which go into config.json. load_data: gives training and validation data and how
    many pairs they have; the main process calls it first. toy_asked_for: see use_toy_model.
    Of a run that has made all its steps, only what is missing of its end is done.
    """
    state = start_processes()
    set_up_logging(state.is_main_process)
    if config.push_to_hub and state.is_main_process:
        check_login(config.push_to_hub)  # a run must not fail at its end for want of it
    if config.toy:
        with state.main_process_first():
            config = use_toy_model(config, toy_asked_for)
    config, run = resolved(config, state.device), Path(config.output_dir)
    with own_run(config, state.is_main_process, *settings) as accepted:
        with state.main_process_first():
            fetch_training_models(config, state.device)  # what cannot be had or does not fit is refused before the data
            train_data, val_data, pairs = load_data(config, state.device)
        if state.is_main_process and (often := seen_often(config, len(train_data) // train_data.variants)):
            logger.warning("warning: %s", often)

        def begun() -> None:
            write_data(run, pairs)
            if not (config.resume_from_checkpoint and (run / PERSONS).is_file()):  # resumed, it has the same data
                write_persons(run, person_digests(train_data))
            accepted()

        try:
            train(config, train_data, val_data, begun)
        except TrainedAlready:
            if not lacks_its_end(config, run):
                raise
            logger.info("all steps are made: what is missing of the run's end follows")
    with resume_hint(config, trained=True):
        if config.num_evaluation_samples and state.is_main_process and not is_scored(config, run):
            score(val_data, run, config)
        if config.push_to_hub and state.is_main_process:
            push(ShareConfig(run=str(run), push_to_hub=config.push_to_hub, private=config.private))
    logger.info("pictures, curves, and how to use the LoRA: %s", run / REPORT)
    logger.info("finished: %s", run)


def pairs_of(data: SampleSource) -> dict[Category, int]:
    """How many pairs of each category there are; a pair's variants are one."""
    return dict(Counter(data.category(index) for index in range(len(data) // data.variants)))


def main(argv: list[str]) -> None:
    config, folders, masks, plan = read_settings(argv)
    toy_asked_for = "--toy" in argv
    if plan.plan or plan.check:
        train, validation = read_pairs(folders, config)
        data = [f"{folders.dataroot}, taken for {pairs_in_words(Path(folders.dataroot))}"]
        data += [*describe_pairs(folders, train, validation), *few_pairs(len(train), len(validation))]
        variants = masks.variants if mask_variation_of(masks).is_random else 1
        answer(config, plan, data, len(train), variants, toy_asked_for=toy_asked_for)
        return

    def load_data(config: TrainConfig, device: torch.device) -> tuple[PhotographSource, SampleSource, PairCounts]:
        train_data, val_data = load_folder(folders, masks, config, device)
        if start_processes().is_main_process:
            for line in few_pairs(len(train_data.pairs), len(val_data.pairs)):
                logger.warning("warning: %s", line)
        return train_data, val_data, {"training": pairs_of(train_data), "validation": pairs_of(val_data)}

    settings = (folders,) if has_masks(Path(folders.dataroot)) else (folders, masks)
    run_training(config, settings, load_data, evaluate_on, toy_asked_for=toy_asked_for)


if __name__ == "__main__":
    run_script(main)
