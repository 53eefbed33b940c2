"""Every setting of trainings and try-ons, as fields of dataclasses that tryon.cli makes command lines from, and what is
wrong with their values.

Nothing heavy is imported here, so that `--help` and a wrong flag answer at once.
"""

import dataclasses
import math
import re
import typing
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

PROJECT = Path(__file__).resolve().parent.parent

FLUX_BASE = "black-forest-labs/FLUX.1-dev"
CATVTON_TRANSFORMER = "xiaozaa/catvton-flux-alpha"
DEFAULT_PARSER = "mattmdjaga/segformer_b2_clothes"  # of people in photographs
PARSER_FILES = ["*.json", "*.safetensors"]  # what is taken of a parser's repository

Category = Literal["upper", "lower", "full"]
MaskRuleName = Literal["rectangle", "hull", "parsing"]
LoraTargets = Literal["all", "attention", "attention_and_context"]
LoraBlocks = Literal["both", "double", "single"]
KeepBest = Literal["none", "loss", "loss_upper", "loss_lower", "loss_full"]
Quantization = Literal["none", "fp8", "int8", "nf4", "auto"]

FIRST_BLOCK_THRESHOLD = 0.1  # of --cache first_block

MODELS = ("pretrained_model_name_or_path", "pretrained_inpaint_model_name_or_path")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
RUN_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}", re.ASCII)  # one folder's name, and no path, flag or hidden file

# Trackers that accelerate knows, by the name of their package.
TRACKERS = ("tensorboard", "wandb", "comet_ml", "mlflow", "aim", "clearml", "dvclive", "swanlab", "trackio")

# The toy's panel: the smallest at which a texture survives the VAE's 8x compression.
TOY_HEIGHT, TOY_WIDTH = 192, 144
TOY_MAX_SEQUENCE_LENGTH = 16
TOY_NOTICE = "it was trained on drawings, and on photographs its masks and results only show that the steps work"

# Bounds of numbers, where no nearer one is known.
MOST = 10**9  # of what is counted: samples, steps, pictures
MOST_AT_ONCE = 1024  # of what takes memory together: samples of a batch, processes
MOST_SEED = 2**63 - 1  # torch's generators take less than 2^64, and seeds are counted on from the first one
MOST_DENOISING = 1000  # steps: FLUX was trained with so many noise levels
MOST_GUIDANCE = 1000
MOST_GPU_MEMORY = 100_000  # GB
MOST_RANK = 3072  # FLUX's width: a LoRA of a higher rank says nothing more
# Of a panel. FLUX was trained on pictures of up to about 2 megapixels, which are two panels here.
MOST_SIDE, MOST_PANEL_PIXELS = 4096, 4 * 2**20


def setting(
    default: Any,
    help: str,
    least: float | None = None,
    most: float | None = None,
    *,
    needed: bool = False,
    positional: bool = False,
) -> Any:
    """A dataclass field that becomes a flag: its help text, the closed range of its value, which every number has, and
    whether it must be given; positional: an argument without a flag, which must be given too, or any number of them
    for a tuple."""
    limits = {"least": least, "most": most}
    return field(default=default, metadata={"help": help, **limits, "needed": needed, "positional": positional})


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What `train()` and its data sets read. The defaults are those of the `full` profile."""

    profile: Literal["full", "quick_test", "h100"] = setting("full", "the settings that the other flags change")
    toy: bool = setting(False, "use the embedded toy model; the launcher its data too, unless other data is named")

    pretrained_model_name_or_path: str = setting(
        FLUX_BASE, "hub name or folder with FLUX.1-dev's tokenizers, text encoders, VAE and scheduler"
    )
    pretrained_inpaint_model_name_or_path: str = setting(
        CATVTON_TRANSFORMER, "hub name, folder or .safetensors file of the FLUX-Fill transformer that is trained on"
    )
    cache_dir: str | None = setting(None, "where the hub's files are kept; the hub's own default if not given")
    max_sequence_length: int = setting(512, "length that T5's text is padded to, in tokens", 1, 512)
    prompt: Literal["fixed", "category"] = setting(
        "fixed", "the prompt: CatVTON-Flux's own for every pair, or one per garment category"
    )

    height: int = setting(768, "height of one panel in pixels, a multiple of 16", 16, MOST_SIDE)
    width: int = setting(
        576, "width of one panel in pixels, a multiple of 16; the diptych is twice as wide", 16, MOST_SIDE
    )
    max_train_samples: int | None = setting(None, "train on the first N samples only", 1, MOST)
    max_validation_samples: int = setting(64, "validate on at most N samples", 1, MOST)
    data_cache_dir: str = setting(str(PROJECT / "cache"), "where latents and the toy's files are kept between runs")
    dataloader_num_workers: int = setting(2, "processes that read data while the model works; 0: none", 0, MOST_AT_ONCE)

    output_dir: str | None = setting(None, "the run's folder; by default a new one, named after profile and time")
    run_name: str | None = setting(None, "name of the run's folder, where runs are kept: a new one, unless resumed")
    seed: int = setting(0, "seed of the split, the shuffling, the noise and the LoRA's first weights", 0, MOST_SEED)
    num_processes: int = setting(1, "processes to train with, one per GPU", 1, MOST_AT_ONCE)
    mixed_precision: Literal["no", "bf16"] = setting("bf16", "bf16, or no for float32 throughout")

    base_categories: str = setting(
        "none", "categories that the model masters already, separated by commas: they are not trained on, and dressed "
        "without the LoRA",
    )  # fmt: skip
    balance: Literal["sqrt", "equal", "none"] = setting(
        "sqrt", "how often categories are sampled: by the square root of their number, equally, or as they come"
    )
    max_train_steps: int = setting(8_000, "optimiser steps", 1, MOST)
    num_train_epochs: int | None = setting(
        None, "train on N times as many samples as there are, instead of max_train_steps", 1, MOST
    )
    train_batch_size: int = setting(1, "samples per process and forward pass", 1, MOST_AT_ONCE)
    gradient_accumulation_steps: int = setting(8, "forward passes per optimiser step", 1, MOST)
    gradient_checkpointing: str = setting(
        "auto",
        "which blocks recompute their activations in the backward pass, which saves memory and takes time: none, full "
        "(all), a number N (every N-th), or auto (as few as fit on the GPU)",
    )
    quantization: Quantization = setting(
        "auto",
        "how the frozen weights are kept on the GPU: in full (none), in 8 bits (fp8, int8), in 4 (nf4), or auto, as "
        "the GPU's memory asks for",
    )
    offload: bool = setting(
        False, "keep the frozen weights in the host's memory and fetch each block when it runs: slow, for small GPUs"
    )
    compile: bool = setting(True, "compile the transformer's blocks: a minute at the start, faster steps")
    weighting_scheme: Literal["none", "logit_normal", "mode", "cosmap", "sigma_sqrt"] = setting(
        "none", "how noise levels are drawn and losses weighted; none is uniform and unweighted"
    )
    logit_mean: float = setting(0.0, "mean of logit_normal; a positive one means less noise", -100, 100)
    logit_std: float = setting(1.0, "standard deviation of logit_normal", 0, 100)
    timestep_shift: Literal["none", "resolution"] = setting(
        "none", "whether noise levels are shifted towards noise, as inference shifts them for panels of this size"
    )
    guidance_scale: float = setting(1.0, "guidance that the transformer is told in training", 0, MOST_GUIDANCE)
    mask_loss_weight: float = setting(
        1.0, "how many times as much the repainted region counts in the loss as the rest", 0.01, 100
    )
    teacher_weight: float = setting(
        0.0, "share of the target that is what the model predicts without its LoRA, in the teacher's categories", 0, 1
    )
    teacher_categories: str = setting("upper", "categories that the model masters already, separated by commas")
    try_off_share: float = setting(
        0.0, "share of the samples that are try-offs: from the person the garment's product picture is painted", 0, 1
    )

    learning_rate: float = setting(1e-4, "learning rate after the warm-up", 0, 1)
    lr_scheduler: Literal["constant", "linear", "cosine"] = setting(
        "constant", "how the learning rate goes on after the warm-up"
    )
    lr_warmup_steps: int = setting(100, "optimiser steps over which the learning rate rises from 0", 0, MOST)
    optimizer: Literal["adamw", "adamw8bit"] = setting("adamw", "AdamW in float32, or with 8-bit moments")
    adam_beta1: float = setting(0.9, "decay of AdamW's first moment", 0, 1)
    adam_beta2: float = setting(0.999, "decay of AdamW's second moment", 0, 1)
    adam_weight_decay: float = setting(1e-4, "decoupled weight decay", 0, 100)
    adam_epsilon: float = setting(1e-8, "AdamW's epsilon", 0, 1)
    max_grad_norm: float = setting(1.0, "gradients are scaled down to this norm", 0, MOST)

    lora_rank: int = setting(64, "rank of the LoRA", 1, MOST_RANK)
    lora_alpha: int | None = setting(
        None, "alpha of the LoRA; its rank if not given, which loads everywhere", 1, 100 * MOST_RANK
    )
    lora_dropout: float = setting(0.0, "share of the LoRA's inputs that training leaves out at random", 0, 0.99)
    lora_targets: LoraTargets = setting(
        "all", "layers with a LoRA: attention's for the picture, those for the text too, or the feed-forward ones also"
    )
    lora_blocks: LoraBlocks = setting("both", "which of the transformer's blocks have them")
    ema_decay: float = setting(
        0.0, "decay of a moving average of the LoRA's weights, which is saved beside it: 0.99, say; 0: none", 0, 0.99999
    )
    init_lora: str | None = setting(None, "start from this LoRA: a run, a checkpoint, a folder or a .safetensors file")

    validation_steps: int = setting(500, "validate every N optimiser steps, and at the end", 1, MOST)
    num_validation_images: int = setting(4, "pairs drawn in each validation grid", 1, MOST)
    num_inference_steps: int = setting(30, "denoising steps of a validation picture", 1, MOST_DENOISING)
    validation_guidance_scale: float = setting(30.0, "guidance of a validation picture", 0, MOST_GUIDANCE)
    num_evaluation_samples: int = setting(
        0, "held-out pairs of each category that the finished LoRA is scored on, beside the model without it", 0, MOST
    )
    checkpointing_steps: int = setting(500, "save a checkpoint every N optimiser steps, and at the end", 1, MOST)
    checkpoints_total_limit: int | None = setting(5, "keep the newest N checkpoints; 'none' keeps all", 2, MOST)
    keep_best: KeepBest = setting(
        "none", "also keep the checkpoint with the lowest validation loss, of this kind: it is the run's result then"
    )
    resume_from_checkpoint: str | None = setting(None, "a run, a checkpoint folder, or 'latest'")
    max_time: str | None = setting(None, "save and stop, with exit code 124, this long after the start: hh:mm")
    report_to: str = setting(
        "tensorboard",
        f"where curves and pictures go besides the run: none, or some of {', '.join(TRACKERS)}, separated by commas",
    )
    push_to_hub: str | None = setting(
        None, "upload the finished LoRA and a card of it to this repository of the hub: user/name"
    )
    private: bool = setting(False, "make that repository a private one; one that is public already is refused")


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Whether a run is only planned, and for what machine, or the machine only checked."""

    check: bool = setting(
        False, "compare everything that depends on the GPU with plain arithmetic, at this run's settings, time it, and "
        "stop: exit code 0 where the machine is fit for the run; nothing is downloaded"
    )  # fmt: skip
    plan: bool = setting(False, "print what the run needs of memory and disk and how long it will take, and stop")
    gpu_memory: float | None = setting(
        None, "plan for a card sold as having this many GB instead of this machine's", 1, MOST_GPU_MEMORY
    )
    price_per_hour: float | None = setting(None, "plan what the run costs at this price of the machine", 0, MOST)


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """What of a person is hidden in training: the rule of the agnostic masks, and how far they reach beyond it."""

    mask_rule: MaskRuleName = setting(
        "rectangle", "what of the person is hidden; hull and parsing follow the body, whose parts they have to know"
    )
    mask_top: float = setting(0.0, "how much further up masks reach than their rule, as a share of the picture", 0, 1)
    mask_bottom: float = setting(0.0, "how much further down", 0, 1)
    mask_left: float = setting(0.0, "how much further to the left", 0, 1)
    mask_right: float = setting(0.0, "how much further to the right", 0, 1)
    mask_growth: float = setting(
        0.0, "reach further on each side by up to this share, at random, but never further over the face", 0, 1
    )
    mask_variation: float = setting(
        0.0, "share of the masks that follow a larger rule, or an outline as if drawn by hand, at random", 0, 1
    )
    variants: int = setting(
        2, "fixed versions of each pair that has something random in it; each epoch uses the next one", 1, 1000
    )


@dataclass(frozen=True, kw_only=True)
class TryOnConfig:
    """Which LoRA dresses people, on which models, at which size. What is not given comes from the LoRA's header."""

    lora: str | None = setting(
        None, "a run, a folder of runs (its newest), a checkpoint, a .safetensors file or a hub name", needed=True
    )
    lora_scale: float = setting(1.0, "strength of the LoRA; 0 is the model without it", 0, 100)
    base: str | None = setting(None, "hub name or folder of FLUX.1-dev; as trained if not given")
    transformer: str | None = setting(
        None, "hub name, folder or .safetensors file of the Fill transformer; as trained if not given"
    )
    toy: bool = setting(False, "use the embedded toy model")
    height: int | None = setting(
        None, "height of the panel in pixels, a multiple of 16; as trained if not given", 16, MOST_SIDE
    )
    width: int | None = setting(
        None, "width of the panel in pixels, a multiple of 16; as trained if not given", 16, MOST_SIDE
    )
    quantization: Quantization = setting(
        "auto", "how the transformer's weights are kept on the GPU: none, fp8, int8, nf4, or as its memory asks for"
    )
    offload: bool = setting(False, "keep them in the host's memory and fetch each block when it runs: for small GPUs")
    compile: bool = setting(False, "compile the transformer's blocks: a minute at the first picture, faster ones after")
    cache: str = setting(
        "none",
        "first_block[:threshold] skips the blocks after the first in denoising steps in which what the first one adds "
        f"has changed, as a share of itself, by less than the threshold ({FIRST_BLOCK_THRESHOLD}) since they last ran: "
        "faster, and not quite the same picture; none runs all",
    )
    cache_dir: str | None = setting(None, "where the hub's files are kept; the hub's own default if not given")
    data_cache_dir: str = setting(str(PROJECT / "cache"), "where prompt embeddings and the toy's files are kept")


def models_of(config: TrainConfig) -> TryOnConfig:
    """The models of a training, and how it keeps their weights, to dress people with."""
    return TryOnConfig(
        base=config.pretrained_model_name_or_path, transformer=config.pretrained_inpaint_model_name_or_path,
        toy=config.toy, quantization=config.quantization, offload=config.offload,
        cache_dir=config.cache_dir, data_cache_dir=config.data_cache_dir,
    )  # fmt: skip


def is_nowhere(name: str) -> bool:
    """Whether a name is neither a path that exists nor of the form of a name on the hub."""
    return not Path(name).expanduser().exists() and not HUB_NAME.fullmatch(name)


def mistakes(config: Any) -> typing.Iterator[str]:
    """A clause for every value of the dataclass that is out of range, and for combinations that cannot work."""
    for each in dataclasses.fields(config):
        value, least, most = getattr(config, each.name), each.metadata.get("least"), each.metadata.get("most")
        if value is None or isinstance(value, str | tuple):
            continue
        if not math.isfinite(value):
            yield f"--{each.name} {value} is not a finite number"
        elif least is not None and value < least:
            yield f"--{each.name} {value} is too small: give {least} to {most}"
        elif most is not None and value > most:
            yield f"--{each.name} {value} is too large: give {least} to {most}"
        elif each.name in ("height", "width") and value % 16:
            yield f"--{each.name} {value} is not a multiple of 16"
    if isinstance(config, TrainConfig | TryOnConfig) and config.height and config.width:
        yield from oversized(config.height, config.width)
    if isinstance(config, TrainConfig | TryOnConfig) and config.offload and config.compile:
        yield "--offload and --compile do not go together: give one of them"
    if isinstance(config, TryOnConfig):
        try:
            cache_threshold(config.cache)
        except ValueError as error:
            yield str(error)
    max_time = getattr(config, "max_time", None)
    if max_time is not None and not re.fullmatch(r"\d{1,4}:[0-5]\d", max_time):
        yield f"--max_time {max_time} is not hh:mm, such as 11:30, and at most 9999:59"
    for name in (*MODELS, "base", "transformer"):
        if (model := getattr(config, name, None)) and is_nowhere(model):
            yield f"--{name} {model} is neither here nor a hub name: check the path"
    known = typing.get_args(Category)
    for flag in ("base_categories", "teacher_categories"):
        names = category_names(getattr(config, flag, "none"))
        for name in names:
            if name not in known:
                yield f"--{flag} {name or 'nothing'} is no category: give some of {', '.join(known)}"
        if len({*names}) < len(names):
            yield f"--{flag} names {max(names, key=names.count)} twice: name it once"
        if flag == "base_categories" and {*names} >= {*known}:
            yield "--base_categories names all categories, and nothing is left to train on: leave one out"
    if not isinstance(config, TrainConfig):
        return
    for name in ("learning_rate", "max_grad_norm", "adam_epsilon"):
        if getattr(config, name) == 0:
            yield f"--{name} must be greater than 0"
    asked = config.gradient_checkpointing
    if asked not in ("none", "auto", "full") and not re.fullmatch(r"[1-9]\d{0,2}", asked, re.ASCII):
        yield f"--gradient_checkpointing {asked} is neither none, auto, full nor a number of blocks from 1 to 999"
    if config.offload and asked != "full":
        yield f"--offload recomputes every block: leave --gradient_checkpointing {asked} out, or say full"
    if config.teacher_weight and not set(teacher_categories(config)) - set(base_categories(config)):
        yield (
            f"--teacher_weight has nothing to teach: --base_categories {config.base_categories} leaves none of "
            f"--teacher_categories {config.teacher_categories} to train on"
        )
    yield from _mistaken_trackers(config)
    yield from mistaken_upload(config.push_to_hub, config.private)
    if config.run_name is not None and not RUN_NAME.fullmatch(config.run_name):
        yield (
            f"--run_name {config.run_name} is no name of a folder: give at most 100 letters, digits, dots, dashes and "
            "underscores, the first a letter or a digit"
        )
    if config.init_lora and config.resume_from_checkpoint:
        yield "--init_lora starts a run and --resume_from_checkpoint continues one: give one of them"


def oversized(height: int, width: int) -> typing.Iterator[str]:
    """A clause where a panel of this size has more pixels than there may be."""
    if height * width > MOST_PANEL_PIXELS:
        yield (
            f"a panel of {height} x {width} (height x width) has {height * width:,} pixels: give a --height and a "
            f"--width with at most {MOST_PANEL_PIXELS:,}, such as 2048 and 1536"
        )


def cache_threshold(cache: str) -> float | None:
    """The threshold of a First-Block-Cache that --cache asks for; None: it asks for none. Raises ValueError where it
    is neither."""
    kind, given, threshold = cache.partition(":")
    if cache == "none":
        return None
    try:
        value = float(threshold) if given else FIRST_BLOCK_THRESHOLD
    except ValueError:
        value = math.nan
    if kind != "first_block" or not 0 < value <= 1:
        raise ValueError(
            f"--cache {cache} is neither none nor first_block with a threshold above 0 and up to 1, such as "
            f"first_block:{FIRST_BLOCK_THRESHOLD}"
        )
    return value


def base_categories(config: TrainConfig) -> list[str]:
    """The names that --base_categories gives."""
    return category_names(config.base_categories)


def taken_off(config: TrainConfig) -> list[Category]:
    """The categories whose garments the LoRA learns to take off."""
    of_base = base_categories(config)
    return [each for each in typing.get_args(Category) if each not in of_base] if config.try_off_share else []


def teacher_categories(config: TrainConfig) -> list[str]:
    """The names that --teacher_categories gives."""
    return category_names(config.teacher_categories)


def category_names(listed: str) -> list[str]:
    """Names with commas between; none for "none"."""
    return [] if listed == "none" else [name.strip() for name in listed.split(",")]


def in_order(listed: str) -> str:
    """Names that category_names reads, in the order of the categories, without spaces."""
    names = category_names(listed)
    return ",".join(each for each in typing.get_args(Category) if each in names) or "none"


def trackers(config: TrainConfig) -> list[str]:
    """The names that --report_to gives, each once."""
    names = config.report_to.split(",") if config.report_to != "none" else []
    return list(dict.fromkeys(name.strip() for name in names))


def _mistaken_trackers(config: TrainConfig) -> typing.Iterator[str]:
    for name in trackers(config):
        if name not in TRACKERS:
            yield f"--report_to {name or 'nothing'} is no tracker: give none, or some of {', '.join(TRACKERS)}"
            continue
        try:
            version(name)  # a folder of that name, which some trackers leave behind, would pass for the module
        except PackageNotFoundError:
            yield f"--report_to {name} is not installed: run `pip install {name}` in the environment that trains"


def mistaken_upload(push_to_hub: str | None, private: bool) -> typing.Iterator[str]:
    """A clause for every mistake in where a LoRA is uploaded to."""
    if push_to_hub is not None and not HUB_NAME.fullmatch(push_to_hub):
        yield f"--push_to_hub {push_to_hub} is no name of a repository: give user/name"
    if private and push_to_hub is None:
        yield "--private is for --push_to_hub: add it, or leave it out"


def seconds_of(time: str) -> int:
    """Seconds of a time given as hh:mm."""
    hours, minutes = time.split(":")
    return 60 * (60 * int(hours) + int(minutes))


def first_line(error: BaseException) -> str:
    """What an error says, in a line; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
