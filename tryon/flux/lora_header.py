"""A LoRA's file: where it lies, and what its header says that it was trained for. Imports nothing heavy."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tryon.config import CATVTON_TRANSFORMER, FLUX_BASE, TryOnConfig, oversized
from tryon.data.category import Category
from tryon.files import is_listed_otherwise
from tryon.runs import LORA_FILE, ema_file, find_lora, lora_file

PREFIX = "transformer."
# Keys of the file's header: rank and alpha, as diffusers reads them, and our own facts, which it leaves alone.
ADAPTER_KEY = "lora_adapter_metadata"
FACTS_KEY = "tryon_lora"
TOY = "toy-model"  # how the names of the toy's models begin
# Facts that a header leaves out where they are the default.
YOUNGER = ("try_off_prompt", "worn_reference_share", "base_categories")


@dataclass(frozen=True)
class LoraFacts:
    """What a LoRA was trained for: stored in its header, the defaults of its use. height, width: of one panel."""

    base: str
    transformer: str
    prompt: str
    max_sequence_length: int
    height: int
    width: int
    mask_rule: str  # of tryon.data.masks, or "given" where the data has masks of its own
    profile: str
    step: int
    mask_offsets: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)  # of the rule: top, bottom, left, right
    mask_parser: str | None = None  # that told the rule the person's parts
    num_inference_steps: int = 30  # of its validation pictures, as is the guidance
    guidance_scale: float = 30.0
    try_off_prompt: str | None = None  # with {garment} for the category; None: it was trained for no try-off
    worn_reference_share: float = 0.0  # of pairs, where the data allowed it, whose garment was shown worn by somebody
    base_categories: tuple[Category, ...] = ()  # that it was not trained on, which are dressed without it

    @property
    def known(self) -> bool:
        """Whether the header said so; otherwise these are the defaults for a LoRA of another project."""
        return self != OF_ANOTHER_PROJECT


OF_ANOTHER_PROJECT = LoraFacts(FLUX_BASE, CATVTON_TRANSFORMER, "fixed", 512, 768, 576, "rectangle", "", 0)


def lora_on_disk(name: str, hub_cache: str | None) -> Path:
    """The LoRA file that a path or a hub name means. Raises ValueError where there is none, or it is damaged."""
    if Path(name).expanduser().exists():
        file = find_lora(name)
        verify_lora(file)
        return file
    if Path(name).expanduser().parent.is_dir() and Path(name).parent != Path():
        raise ValueError(f"{name} does not exist: name a run, a checkpoint, a folder, a file or a hub name")
    from tryon.hub import hub_or_folder  # the hub's client takes a moment to import

    places = (LORA_FILE, f"transformer/{LORA_FILE}")
    folder = hub_or_folder(name, list(places), hub_cache)
    found = next((folder / place for place in places if (folder / place).is_file()), None)
    if found is None:
        raise ValueError(f"{name} holds no {LORA_FILE}, neither at its root nor in transformer/: name a LoRA's file")
    return found


def verify_lora(file: Path) -> None:
    """Raises ValueError where the file is the LoRA of a checkpoint whose manifest says that it was another."""
    checkpoint = file.parent.parent
    if file in (lora_file(checkpoint), ema_file(checkpoint)) and is_listed_otherwise(checkpoint, file):
        raise ValueError(f"{file} is damaged: take another checkpoint")


def read_header(file: Path) -> dict[str, str]:
    """The metadata of a safetensors file. Raises ValueError where it cannot be read."""
    try:
        with safe_open(file, framework="np") as opened:
            return opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read as safetensors ({error}): give a LoRA's .safetensors file") from error


def read_adapter(file: Path) -> dict[str, Any] | None:
    """Rank, alpha and layers, as peft's settings under PREFIX; None for a file that does not say them. Raises
    ValueError where they cannot be read."""
    entry = read_header(file).get(ADAPTER_KEY)
    try:
        return None if entry is None else {**json.loads(entry)}
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(f"{file} has a header that cannot be read ({error}): copy or download it again") from error


def facts_entry(facts: LoraFacts) -> str:
    """The facts as a header has them: without those that older versions do not know, where they do not matter."""
    said = asdict(facts).items()
    return json.dumps({name: value for name, value in said if value or name not in YOUNGER})


def read_facts(file: Path) -> LoraFacts:
    """What the LoRA was trained for; the defaults for one of another project. Raises ValueError where it cannot be
    read."""
    entry = read_header(file).get(FACTS_KEY)
    if entry is None:
        return OF_ANOTHER_PROJECT
    try:
        facts = LoraFacts(**json.loads(entry))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(
            f"{file} says in a way that is not known here what it was trained for ({error}): use the version of this "
            "project that made it, or a newer one"
        ) from error
    # JSON knows lists only.
    return replace(facts, mask_offsets=tuple(facts.mask_offsets), base_categories=tuple(facts.base_categories))


def is_for_toy(config: TryOnConfig, facts: LoraFacts) -> bool:
    """Whether people are dressed with the toy."""
    return config.toy or (facts.transformer.startswith(TOY) and not (config.base or config.transformer))


def panel_size(config: TryOnConfig, facts: LoraFacts) -> tuple[int, int]:
    """Height and width of the panel: as asked for, else as the LoRA was trained. Raises ValueError where it would be
    too large."""
    size = config.height or facts.height, config.width or facts.width
    for problem in oversized(*size):
        raise ValueError(problem)
    return size


def denoising(facts: LoraFacts, steps: int | None, guidance: float | None) -> tuple[int, float]:
    """Denoising steps and guidance: as asked for, else as the LoRA's own training made its pictures."""
    return (
        facts.num_inference_steps if steps is None else steps,
        facts.guidance_scale if guidance is None else guidance,
    )


def takes_off(facts: LoraFacts, category: Category) -> bool:
    """Whether the LoRA was trained for try-offs of a category."""
    return bool(facts.try_off_prompt) and category not in facts.base_categories


def check_takes_off(facts: LoraFacts, category: Category) -> None:
    """Raises ValueError where the LoRA was not trained for try-offs of a category."""
    if not facts.try_off_prompt:
        raise ValueError("this LoRA has not learnt to take garments off: give one trained with --try_off_share")
    if category in facts.base_categories:
        raise ValueError(
            f"this LoRA has not learnt to take {category}-body garments off, as it was trained with --base_categories "
            f"{','.join(facts.base_categories)}: give one that was not"
        )


def prompt_category(facts: LoraFacts, asked: Category | None) -> Category:
    """The category whose prompt is used. Raises ValueError where the LoRA has one each and none was asked for."""
    if asked is None and facts.prompt == "category":
        raise ValueError("this LoRA has one prompt per garment category: say --category upper, lower or full")
    return asked or "upper"
