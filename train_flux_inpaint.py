"""The inpaint training loop: LoRA fine-tuning of a FLUX-Fill transformer on garment | person diptychs.

`train(config, train_data, val_data)` is all there is to call; any data set that gives TryOnSamples will do. Run as a
script it trains on a folder laid out as VITON-HD or DressCode is:

    python train_flux_inpaint.py --dataroot <folder> --train_data_list train_pairs.txt

Every random draw follows from (seed, optimiser step, accumulation index, index in the global batch), and the order of
the samples from (seed, epoch): neither the number of processes nor an interruption changes what is trained on.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from folder_lists import dresscode_pairs, is_dresscode, viton_hd_pairs
from tryon.config import (
    MaskConfig,
    TrainConfig,
    cuda_device_count,
    mistakes,
    resolve,
    seconds_of,
    setting,
)
from tryon.entry import TIME_IS_UP, asked_to_stop, check_first, finishing_steps, run_script, stop_after
from tryon.flags import parse_flags
from tryon.runs import (
    SAME_WHEN_RESUMED,
    STEP_PARTS,
    Refused,
    check_identity,
    find_checkpoint,
    find_lora,
    locked,
    own_run,
    step_of,
    with_paths,
)


@dataclass(frozen=True, kw_only=True)
class FolderConfig:
    """Which folder this script trains on."""

    dataroot: str | None = setting(None, "folder laid out as VITON-HD or DressCode is; needed")
    train_data_list: str = setting("train_pairs.txt", "list of training pairs, in dataroot or in each of its folders")
    validation_data_list: str | None = setting(
        None, "list of validation pairs (default test_pairs.txt, and test_pairs_paired.txt for DressCode)"
    )


def read_settings(argv: list[str]) -> tuple[TrainConfig, FolderConfig, MaskConfig]:
    """The run's resolved configuration and folder. Raises ValueError, in one sentence, for every mistake."""
    description = "Trains a try-on LoRA on VITON-HD or DressCode. Defaults shown are the full profile's."
    given, folder_given, mask_given = parse_flags(
        argv, "python train_flux_inpaint.py", description, TrainConfig, FolderConfig, MaskConfig
    )
    config, folders = resolve(given, cuda_device_count()), FolderConfig(**folder_given)
    masks = MaskConfig(**mask_given)
    if folders.dataroot is None:
        raise ValueError("--dataroot is missing: name a folder laid out as VITON-HD or DressCode is")
    folders = replace(folders, dataroot=str(Path(folders.dataroot).expanduser().absolute()))
    if problems := list(mistakes(masks)):
        raise ValueError("; ".join(problems))
    dresscode = is_dresscode(folders.dataroot)
    if not dresscode and mask_given:
        raise ValueError(f"--{next(iter(mask_given))} has no place here: VITON-HD folders have masks of their own")
    if folders.validation_data_list is None:
        found = "test_pairs_paired.txt" if dresscode else "test_pairs.txt"
        folders = replace(folders, validation_data_list=found)
    check_lists(folders, config)
    return with_paths(config, "dresscode_lora" if dresscode else "viton_hd_lora"), folders, masks


def check_lists(folders: FolderConfig, config: TrainConfig) -> None:
    """Raises ValueError where a list of pairs cannot be used, or DressCode's two share persons."""
    root, train_list, validation_list = folders.dataroot, folders.train_data_list, folders.validation_data_list
    limits = config.max_train_samples, config.max_validation_samples
    if not is_dresscode(root):
        viton_hd_pairs(root, "train", train_list, limits[0])
        viton_hd_pairs(root, "test", validation_list, limits[1])
        return
    trained, validated = dresscode_pairs(root, train_list, limits[0]), dresscode_pairs(root, validation_list, limits[1])
    if both := {person for person, *_ in trained} & {person for person, *_ in validated}:
        raise ValueError(f"{train_list} and {validation_list} share {len(both)} persons: give lists that share none")


if __name__ == "__main__":
    check_first(read_settings)  # --help and a wrong flag answer before the heavy imports

import logging
import math
import time
from collections import Counter
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from hashlib import sha256
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration

from folder_datasets import load_dresscode, load_viton_hd
from tryon.console import on_terminal, progress_bar, set_up_logging
from tryon.data.category import CATEGORIES, Category
from tryon.data.sample import PromptEmbedding, SampleSource
from tryon.evaluation.cases import paired_cases
from tryon.evaluation.score import score_run
from tryon.files import files_fingerprint
from tryon.flux.attention import fall_back, uses_safest
from tryon.flux.load import TEXT_PARTS, ModelFiles, fetch_training_models, load_scheduler, load_transformer, load_vae
from tryon.flux.lora_header import LoraFacts
from tryon.flux.memory import resolved
from tryon.flux.placement import prepare_transformer
from tryon.flux.prompt_cache import cache_prompts
from tryon.flux.prompts import prompt_for
from tryon.hub import check_login
from tryon.inference.pipeline import build_pipeline
from tryon.report import REPORT, write_data, write_environment, write_report
from tryon.share import push
from tryon.toy.model import toy_name, use_toy_model
from tryon.training.batches import count_draws, drawn_in_step, load_batches
from tryon.training.checkpoint import CheckpointWriter, TrainerState, load_checkpoint, tidy, verify
from tryon.training.clock import Clock, shares
from tryon.training.latent_cache import cache_latents, latent_files
from tryon.training.speed import device_name, remember_speed
from tryon.training.step import make_lr_scheduler, make_optimizer, optimiser_step
from tryon.training.tracking import forget_metrics_after, log_metrics, start_processes, start_trackers, with_trackers
from tryon.training.validation import make_validation, validation_picture

logger = logging.getLogger(__name__)

WORTH_REMEMBERING = 20  # steps: fewer say little about a run's speed
LOG_EVERY = 10  # optimiser steps between two plain lines in the log; metrics.jsonl gets every step


def train(config: TrainConfig, train_data: SampleSource, val_data: SampleSource) -> Path:
    """Trains a LoRA and returns the run's folder, config.output_dir, with checkpoints, metrics and pictures in it.

    Raises ValueError, in one sentence, for everything the user can mend: models that cannot be loaded, data that cannot
    be read, a checkpoint of another LoRA, a loss that is no longer finite.
    """
    assert config.output_dir is not None, "the caller chooses the run's folder"
    run, checkpoint = Path(config.output_dir), None
    if config.resume_from_checkpoint:  # looked at before hours may be spent on encoding
        checkpoint = find_checkpoint(config.resume_from_checkpoint, run)
        verify(checkpoint)
    stop_after(None if config.max_time is None else seconds_of(config.max_time))
    with locked(run) if start_processes().is_main_process else nullcontext():
        accelerator = start_accelerator(config, run, step_of(checkpoint) if checkpoint else 0)
        accelerator.wait_for_everyone()  # until all have found the checkpoint
        if accelerator.is_main_process:
            tidy(run, checkpoint)
        try:
            run_training(config, train_data, val_data, accelerator, checkpoint)
        finally:  # the curves' last points are still in memory
            with_trackers(accelerator, lambda tracker: tracker.finish())
            accelerator.trackers.clear()
        accelerator.end_training()
    return run


def run_training(
    config: TrainConfig,
    train_data: SampleSource,
    val_data: SampleSource,
    accelerator: Accelerator,
    checkpoint: Path | None,
) -> None:
    """Encodes, loads and trains, from the checkpoint where one is given."""
    run = Path(config.output_dir)
    config = resolved(config, accelerator.device)
    dtype = torch.bfloat16 if config.mixed_precision == "bf16" else torch.float32

    with accelerator.main_process_first():  # one downloads, the others find it
        files = fetch_training_models(config, accelerator.device)

    train_files = latent_files(train_data, files, config, dtype)
    state = TrainerState(step=0, identity=run_identity(config, files, train_files))
    if checkpoint:
        check_identity(checkpoint, state.identity)

    # Text encoders and VAE first: the prompts and pictures never change, so they are encoded once, and the text
    # encoders are gone before the transformer arrives. The VAE stays, for the validation pictures.
    prompts = encode_prompts(config, files, dtype, accelerator)
    vae = load_vae(files.base, dtype, accelerator.device)
    val_files = latent_files(val_data, files, config, dtype)
    train_latents = cache_latents(train_data, train_files, "training samples", vae, config, accelerator)
    val_latents = cache_latents(val_data, val_files, "validation samples", vae, config, accelerator)

    transformer = load_transformer(files.transformer, dtype)
    init_lora = find_lora(config.init_lora) if config.init_lora else None
    parameters = prepare_transformer(transformer, config, accelerator.device, init_lora)
    optimizer = make_optimizer(config, parameters)
    samples_per_step = config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes
    max_steps = config.max_train_steps
    if config.num_train_epochs:
        max_steps = math.ceil(config.num_train_epochs * len(train_latents.categories) / samples_per_step)
    if checkpoint:
        state = load_checkpoint(checkpoint, state.identity, transformer, optimizer)
        if state.step >= max_steps:
            raise Refused(f"{checkpoint} is at step {state.step} of {max_steps}: give more --max_train_steps")
        if state.safest_attention:
            fall_back(transformer)
        forget_metrics_after(run, state.step)
        logger.info("resumed from %s at step %d", checkpoint, state.step)
    lr_scheduler = make_lr_scheduler(config, optimizer, state.step, max_steps)

    seen = validation_picture(run, state.step).exists()  # asked by all before one can draw it
    model = accelerator.prepare(transformer)  # autocast and, with several processes, DDP
    pipeline = build_pipeline(transformer, vae, load_scheduler(files.base))
    look = make_validation(config, accelerator, pipeline, val_data, val_latents, prompts, run)

    writer = CheckpointWriter(run, config.checkpoints_total_limit)

    def validate(step: int) -> None:
        look(step)
        writer.wait()  # the report names the newest checkpoint
        drawn = count_draws(train_latents, config.balance, config.seed, 0, step, samples_per_step)
        log_metrics(accelerator, run, step, {f"drawn/{category}": count for category, count in drawn.items()})
        if accelerator.is_main_process and (run / "config.json").is_file():  # none where train() is called as a library
            write_report(run)

    if accelerator.is_main_process:
        write_environment(run, device_name(accelerator.device))
    clock, begun = Clock(accelerator.device), time.monotonic()
    if state.step == 0 or (state.step % config.validation_steps == 0 and not seen):  # it was stopped before it looked
        with clock.part("validation"):
            validate(state.step)
    spent: Counter[str] = Counter()  # seconds by part

    def take_time() -> None:
        seconds = clock.take()
        spent.update(seconds)
        log_metrics(accelerator, run, state.step, {f"time/{part}": each for part, each in seconds.items()})

    model.train()
    batches = iter(load_batches(config, train_latents, prompts, accelerator, state.step, max_steps))
    is_shown = accelerator.is_main_process and on_terminal()  # a log has lines of every tenth step
    bar = progress_bar(max_steps, "training", is_shown, initial=state.step)
    started, first_step = time.monotonic(), state.step
    with finishing_steps(), writer:
        while state.step < max_steps:
            samples = partial(drawn_in_step, train_latents, config, state.step, accelerator.num_processes)
            metrics = optimiser_step(
                config, state.step, model, batches, optimizer, lr_scheduler, accelerator, clock, samples
            )
            state = replace(state, step=state.step + 1, safest_attention=uses_safest(transformer))
            log_metrics(accelerator, run, state.step, metrics)
            words = "loss {train/loss:.4f}, lr {train/learning_rate:.1e}, {train/seconds:.2f} s/step"
            words = words.format_map(metrics)
            bar.set_postfix_str(words, refresh=False)
            bar.update()
            if state.step % LOG_EVERY == 0 or state.step == max_steps:
                left = (time.monotonic() - started) / (state.step - first_step) * (max_steps - state.step)
                logger.info("step %d/%d: %s, %s left", state.step, max_steps, words, timedelta(seconds=round(left)))
                take_time()

            # Once in a while: save, then look. A picture that fails must not cost the weights it shows.
            writer.raise_if_failed()
            stop = agreed_stop(accelerator)
            if state.step % config.checkpointing_steps == 0 or state.step == max_steps or stop:
                with clock.part("checkpoint"):
                    if accelerator.is_main_process:
                        facts = lora_facts(config, train_data, state.step)
                        writer.save(state, facts, transformer, optimizer)
                    if state.step == max_steps or stop:
                        writer.wait()
                        accelerator.wait_for_everyone()  # one that leaves takes the others with it
            if stop == TIME_IS_UP:
                logger.info("--max_time %s is over", config.max_time)
            if stop > 128 or (stop and state.step < max_steps):
                bar.close()
                raise SystemExit(stop)
            if state.step % config.validation_steps == 0 or state.step == max_steps:
                with clock.part("validation"):
                    validate(state.step)
    if (stop := asked_to_stop()) > 128:  # while the last pictures were drawn
        raise SystemExit(stop)
    bar.close()
    take_time()
    if accelerator.is_main_process and state.step - first_step >= WORTH_REMEMBERING:
        trained = sum(spent[part] for part in STEP_PARTS)
        remember_speed(config, accelerator.device, trained / (state.step - first_step))
    logger.info("where time went: %s", shares(spent, time.monotonic() - begun))
    drawn = count_draws(train_latents, config.balance, config.seed, first_step, state.step, samples_per_step)
    logger.info("drawn: %s", ", ".join(f"{count} {category}" for category, count in drawn.items()))


def agreed_stop(accelerator: Accelerator) -> int:
    """The exit code with which all processes leave after this step, because one got a signal or the time is up; else
    0."""
    code = asked_to_stop()
    if accelerator.num_processes > 1:
        code = int(accelerator.gather(torch.tensor([code], device=accelerator.device)).max())
    return code


def start_accelerator(config: TrainConfig, run: Path, first_step: int) -> Accelerator:
    """Accelerate with the run's folder and trackers, whose curves go on after `first_step`.

    Raises ValueError where fewer processes run than were asked for.
    """
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
            f"{accelerator.num_processes} processes run, --num_processes says {config.num_processes}: start the "
            "training with train_deepfashion_lora.sh or with accelerate launch --num_processes"
        )
    if accelerator.is_main_process:
        run.mkdir(parents=True, exist_ok=True)
    start_trackers(accelerator, config, run, first_step)
    return accelerator


def encode_prompts(
    config: TrainConfig, files: ModelFiles, dtype: torch.dtype, accelerator: Accelerator
) -> dict[Category, PromptEmbedding]:
    """The prompt embedding of each category, encoded by the main process where it is not cached yet."""
    texts = {category: prompt_for(config.prompt, category) for category in CATEGORIES}
    with accelerator.main_process_first():
        embeddings = cache_prompts(
            sorted(set(texts.values())),
            files.base,
            config.max_sequence_length,
            dtype,
            accelerator.device,
            Path(config.data_cache_dir),
        )
    return {category: embeddings[text] for category, text in texts.items()}


def run_identity(config: TrainConfig, files: ModelFiles, train_files: list[Path]) -> dict[str, Any]:
    """What a resumed run may not change: SAME_WHEN_RESUMED, and data and models by their content: they may lie
    elsewhere, or have been downloaded again. train_files: named after the training samples' content."""
    digest = sha256("".join(path.name for path in train_files).encode()).hexdigest()
    return {
        "data": f"{len(train_files)} samples {digest[:12]}",
        "text encoders": files_fingerprint(*(files.base / part for part in TEXT_PARTS))[:12],
        "transformer": files_fingerprint(files.transformer)[:12],
        "quantization": config.quantization,  # what "auto" means here
        **{name: getattr(config, name) for name in SAME_WHEN_RESUMED},
    }


def lora_facts(config: TrainConfig, data: SampleSource, step: int) -> LoraFacts:
    """What the LoRA's header says of its training."""
    rule = data.mask_rule
    return LoraFacts(
        base=toy_name() if config.toy else config.pretrained_model_name_or_path,
        transformer=toy_name() if config.toy else config.pretrained_inpaint_model_name_or_path,
        prompt=config.prompt,
        max_sequence_length=config.max_sequence_length,
        height=config.height,
        width=config.width,
        mask_rule=rule.name if rule else "given",
        profile=config.profile,
        step=step,
        mask_offsets=rule.offsets if rule else (0.0, 0.0, 0.0, 0.0),
        mask_parser=rule.parser if rule else None,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.validation_guidance_scale,
    )


def evaluate_on(val_data: SampleSource, run: Path, config: TrainConfig) -> None:
    """Scores the finished run's LoRA on its first validation pairs of each category, for its report."""
    cases = {"paired": paired_cases(val_data, config.num_evaluation_samples)}
    score_run(run, config, "pairs held back from the training", cases)
    write_report(run)


def folder_data(folders: FolderConfig, masks: MaskConfig, config: TrainConfig) -> tuple[SampleSource, SampleSource]:
    """Training and validation data of the folder."""
    sizes = (config.height, config.width)
    train_list, validation_list = folders.train_data_list, folders.validation_data_list
    limits = config.max_train_samples, config.max_validation_samples
    if is_dresscode(folders.dataroot):
        train_data = load_dresscode(folders.dataroot, train_list, masks, *sizes, limits[0])
        masks = replace(masks, mask_growth=0.0)
        val_data = load_dresscode(folders.dataroot, validation_list, masks, *sizes, limits[1])
        return train_data, val_data
    return (
        load_viton_hd(folders.dataroot, "train", train_list, *sizes, limits[0]),
        load_viton_hd(folders.dataroot, "test", validation_list, *sizes, limits[1]),
    )


def pairs_of(data: SampleSource) -> dict[Category, int]:
    """How many pairs of each category there are; a pair's variants are one."""
    return dict(Counter(data.category(index) for index in range(len(data) // data.variants)))


def main(argv: list[str]) -> None:
    config, folders, masks = read_settings(argv)
    state = start_processes()
    set_up_logging(state.is_main_process)
    if config.push_to_hub and state.is_main_process:
        check_login(config.push_to_hub)  # a run must not fail at its end for want of it
    train_data, val_data = folder_data(folders, masks, config)
    if config.toy:
        with state.main_process_first():
            config = use_toy_model(config, asked_for="--toy" in argv)
    config = resolved(config, state.device)
    others = [folders, masks] if is_dresscode(folders.dataroot) else [folders]
    with own_run(config, state.is_main_process, *others):
        if state.is_main_process:
            data = {"training": train_data, "validation": val_data}
            write_data(Path(config.output_dir), {what: pairs_of(each) for what, each in data.items()})
        run = train(config, train_data, val_data)
    if config.num_evaluation_samples and state.is_main_process:
        evaluate_on(val_data, run, config)
    if config.push_to_hub and state.is_main_process:
        push(run, config.push_to_hub, config.private)
    logger.info("pictures, curves, and how to use the LoRA: %s", run / REPORT)
    logger.info("finished: %s", run)


if __name__ == "__main__":
    run_script(main)
