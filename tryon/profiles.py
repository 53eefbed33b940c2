"""The profiles, what they become on the toy, and the configuration that a command line asks for.

Nothing heavy is imported here, so that `--help` and a wrong flag answer at once.
"""

import ctypes
from dataclasses import replace
from os import environ
from typing import Any

from tryon.config import (
    MODELS,
    TOY_HEIGHT,
    TOY_MAX_SEQUENCE_LENGTH,
    TOY_WIDTH,
    PlanConfig,
    TrainConfig,
    in_order,
    mistakes,
)
from tryon.units import plural


def full() -> TrainConfig:
    """the profile where none is named: one GPU, all samples, 8000 steps"""
    return TrainConfig()


def quick_test() -> TrainConfig:
    """a hundred samples, fifty steps: shows that everything works; where there is no GPU, learns to dress toys"""
    return replace(
        full(), profile="quick_test", height=512, width=384, max_train_samples=100, max_validation_samples=20,
        max_train_steps=50, gradient_accumulation_steps=4, lora_rank=16, lr_warmup_steps=10,
        validation_steps=25, num_evaluation_samples=4, checkpointing_steps=25,
        compile=False,  # it takes longer than all the steps
    )  # fmt: skip


def h100() -> TrainConfig:
    """full for one 80 GB GPU: a larger LoRA"""
    # Batches of 1: nothing has to be recomputed then, which is 30 % less arithmetic than batches of 4 with all of it.
    return replace(full(), profile="h100", lora_rank=128)


def on_toy(config: TrainConfig) -> TrainConfig:
    """Any profile on the toy model: small panels, a short text, float32, few denoising steps.

    The quick test also gets the data, steps, batches, rates and noise levels by which the toy learns in minutes the
    garments that its base has never seen; the other profiles keep their own. `tryon.toy.model.use_toy_model` fills in
    the paths of the toy's files.
    """
    if config.profile == "quick_test":
        config = replace(
            config, base_categories="upper", max_train_samples=440, balance="none", max_train_steps=360,
            train_batch_size=4, gradient_accumulation_steps=1, learning_rate=1.2e-2, lr_scheduler="cosine",
            validation_steps=180, num_evaluation_samples=16, checkpointing_steps=180,
            # The toy denoises in few steps, most of them at high noise: there it has to be right.
            weighting_scheme="logit_normal", logit_mean=-1.0,
        )  # fmt: skip
    return replace(
        config, toy=True, height=TOY_HEIGHT, width=TOY_WIDTH, max_sequence_length=TOY_MAX_SEQUENCE_LENGTH,
        prompt="category", mixed_precision="no", gradient_checkpointing="none", compile=False,
        num_inference_steps=2, dataloader_num_workers=0,
    )  # fmt: skip


# Each is a switch of the command line, explained by its docstring.
PROFILES = {"full": full, "quick_test": quick_test, "h100": h100}


def cuda_device_count() -> int:
    """CUDA devices that this process may use, asked of the driver itself: importing torch would take seconds."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return 0 if failed else count.value


def resolve(given: dict[str, Any], cuda_devices: int, plan: PlanConfig = PlanConfig()) -> TrainConfig:
    """The run's configuration: the profile, the toy's settings where it is used, then the flags given.

    Without a CUDA device the quick test runs on the toy, unless it is planned for another machine, whose devices cannot
    be counted from here. Raises ValueError with every mistake in one sentence, and for a profile that needs a GPU where
    there is none.
    """
    if plan.plan and plan.gpu_memory:
        cuda_devices = given.get("num_processes", 1)
    defaults = PROFILES[given.get("profile", "full")]()
    toy = given.get("toy", False) or (defaults.profile == "quick_test" and cuda_devices == 0)
    offloaded = {"gradient_checkpointing": "full", "compile": False} if given.get("offload") else {}
    config = replace(on_toy(defaults) if toy else defaults, **{**offloaded, **given, "toy": toy})
    problems = list(mistakes(config))
    if plan.check and plan.plan:
        problems.append("--check measures and --plan foretells: give one of them")
    if not plan.plan and plan.gpu_memory:
        problems.append("--gpu_memory is for --plan: add it, or leave it out")
    if not (plan.plan or plan.check) and plan.price_per_hour:
        problems.append("--price_per_hour is for --plan and --check: add one, or leave it out")
    if toy:
        why = "--toy was given" if given.get("toy") else "there is no GPU"
        named = [name for name in MODELS if name in given]
        problems += [f"--{name} was given, but {why} and the toy model is used: leave it out" for name in named]
    if problems:
        raise ValueError("; ".join(problems))
    config = replace(
        config, lora_alpha=config.lora_alpha or config.lora_rank,
        # In one order: a run that is resumed compares them with what it began with.
        base_categories=in_order(config.base_categories), teacher_categories=in_order(config.teacher_categories),
    )  # fmt: skip
    if not toy and cuda_devices == 0:
        raise ValueError(
            f"the {config.profile} profile needs a CUDA device and none was found: run it on a machine with a GPU, add "
            "--toy to run it on the toy model, or give train_deepfashion_lora.sh --plan --gpu_memory 24 to see what it "
            "would need"
        )
    here = int(environ.get("LOCAL_WORLD_SIZE", config.num_processes))  # on this machine, where there are several
    if not toy and here > cuda_devices:
        raise ValueError(
            f"--num_processes {config.num_processes} was given for {plural(cuda_devices, 'CUDA device')}: "
            "ask for at most one process per device"
        )
    return config
