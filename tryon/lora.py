"""The LoRA: added to the transformer, saved so that plain diffusers loads it, loaded with every key accounted for."""

import json
import os
import re
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tryon.runs import LORA_FILE

PREFIX = "transformer."
# Keys of the file's header: rank and alpha, as diffusers reads them, and our own facts, which it leaves alone.
ADAPTER_KEY = "lora_adapter_metadata"
FACTS_KEY = "tryon_lora"

# Attention and feed-forward layers of both kinds of block: 380 modules of the full-size model. x_embedder is left out:
# a LoRA on its 384 channels silently widens a 64-channel FLUX in diffusers and fails elsewhere.
TARGET_MODULES = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_v",
    "attn.to_out.0",
    "attn.add_q_proj",
    "attn.add_k_proj",
    "attn.add_v_proj",
    "attn.to_add_out",
    "ff.net.0.proj",
    "ff.net.2",
    "ff_context.net.0.proj",
    "ff_context.net.2",
    "proj_mlp",
)


@dataclass(frozen=True)
class LoraFacts:
    """What a LoRA was trained for: stored in its header, the defaults of whoever uses it. height, width: one panel."""

    base: str
    transformer: str
    prompt: str
    max_sequence_length: int
    height: int
    width: int
    mask_rule: str  # of tryon.masks, or "given" where the data has masks of its own
    profile: str
    step: int
    mask_offsets: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)  # of the rule: top, bottom, left, right
    mask_parser: str | None = None  # that told the rule the person's parts
    num_inference_steps: int = 30  # of its validation pictures, as is the guidance
    guidance_scale: float = 30.0


def add_lora(
    transformer: FluxTransformer2DModel, rank: int, alpha: int, seed: int, dropout: float = 0.0
) -> list[torch.nn.Parameter]:
    """Adds a fresh LoRA, which changes nothing yet, and returns its parameters: float32, the only trainable ones.

    dropout: share of the inputs of the LoRA's layers that training leaves out at random, from torch's own generator.
    In bf16 an update of 1e-4 would mostly be rounded away.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=list(TARGET_MODULES),
        init_lora_weights="gaussian",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer.add_adapter(config)
    cast_training_params(transformer, dtype=torch.float32)
    return [parameter for parameter in transformer.parameters() if parameter.requires_grad]


def save_lora(folder: Path, transformer: FluxTransformer2DModel, facts: LoraFacts) -> None:
    """Writes folder/pytorch_lora_weights.safetensors with diffusers' keys, adapter metadata and our facts.

    Only three of peft's fields are written: without rank and alpha the file reloads wrong where they differ, and with
    all of peft's fields an older peft refuses it.
    """
    config = transformer.peft_config["default"]
    adapter = {
        f"{PREFIX}r": config.r,
        f"{PREFIX}lora_alpha": config.lora_alpha,
        f"{PREFIX}target_modules": sorted(config.target_modules),
    }
    metadata = {
        "format": "pt",
        ADAPTER_KEY: json.dumps(adapter),
        FACTS_KEY: json.dumps(asdict(facts)),
    }
    state = {f"{PREFIX}{key}": tensor.contiguous().cpu() for key, tensor in _state(transformer).items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / LORA_FILE, metadata)


def load_lora(transformer: FluxTransformer2DModel, file: Path) -> None:
    """Puts the file's weights into the LoRA that `add_lora` added.

    Raises ValueError where the file's rank, alpha or layers are not those of the transformer's LoRA.
    """
    config = transformer.peft_config["default"]
    header = _header(file)
    if ADAPTER_KEY not in header:
        raise ValueError(f"{file} does not say its rank and alpha: give a LoRA that diffusers or this project saved")
    adapter = json.loads(header[ADAPTER_KEY])
    rank, alpha = adapter.get(f"{PREFIX}r"), adapter.get(f"{PREFIX}lora_alpha")
    if (rank, alpha) != (config.r, config.lora_alpha):
        raise ValueError(
            f"{file} has rank {rank} and alpha {alpha}, this run {config.r} and {config.lora_alpha}: "
            f"give --lora_rank {rank} --lora_alpha {alpha}"
        )
    state = {key.removeprefix(PREFIX): tensor for key, tensor in load_file(file).items()}
    own = _state(transformer)
    if state.keys() != own.keys():
        only_file, only_own = sorted(state.keys() - own.keys()), sorted(own.keys() - state.keys())
        raise ValueError(
            f"{file} does not fit this transformer: {len(only_file)} of its keys are unknown "
            f"and {len(only_own)} are missing ({(only_file + only_own)[0]}): give a LoRA of the same base"
        )
    if any(state[key].shape != own[key].shape for key in own):
        raise ValueError(f"{file} does not fit this transformer, whose layers are wider or narrower: give another LoRA")
    set_peft_model_state_dict(transformer, state)


def attach_lora(transformer: FluxTransformer2DModel, file: Path, scale: float) -> None:
    """Adds a trained LoRA to a transformer that has none, at a strength of `scale`; any file in diffusers' key layout.

    Raises ValueError where not every key of the file is used.
    """
    adapter = json.loads(_header(file).get(ADAPTER_KEY, "null"))
    state = load_file(file)
    unknown = [key for key in state if not key.startswith(PREFIX)]
    if not unknown:
        try:
            transformer.load_lora_adapter(state, prefix="transformer", adapter_name="default", metadata=adapter)
        except (RuntimeError, KeyError, ValueError) as error:  # of other widths, or for layers that take none
            raise ValueError(f"{file} does not fit this transformer: give a LoRA of the same base") from error
        used = {f"{PREFIX}{key}" for key in _state(transformer)}
        unknown = sorted(state.keys() - used)
    if unknown or not state:
        raise ValueError(
            f"{file} does not fit this transformer: {len(unknown)} of its {len(state)} keys are not used "
            f"({unknown[0] if unknown else 'it is empty'}): give a LoRA of the same base"
        )
    transformer.set_adapters("default", scale)


@torch.no_grad()
def fold_lora(transformer: FluxTransformer2DModel, originals: dict[nn.Parameter, Tensor]) -> None:
    """Adds the attached LoRA to the weights of its layers, in place of the one that was folded before, and detaches it:
    the transformer computes what it did with the LoRA, within rounding, and as fast as without.

    originals: the weights without any LoRA, in the host's memory, by the parameter that they belong to; empty before
    the first LoRA. Those of layers that no LoRA had before are added. The sums are formed in float32 and rounded once.
    The layers must lie on the device as they are: neither quantised nor offloaded.
    """
    # Subtracting the LoRA would not do: what bf16 rounded away when it was added does not come back.
    for parameter, original in originals.items():
        parameter.copy_(original)
    for layer in transformer.modules():
        if isinstance(layer, LoraLayer):
            base = layer.get_base_layer()
            for parameter in base.parameters():
                if parameter not in originals:
                    originals[parameter] = parameter.detach().to("cpu", copy=True)
            for name, parameter in layer.named_parameters():
                if "lora_" in name:
                    parameter.data = parameter.to(base.weight.device, torch.float32)
    transformer.fuse_lora()
    transformer.unload_lora()


def export_lora(file: Path, target: Path) -> None:
    """Writes `target`: a LoRA of this project as every program reads it. The very same file where it is so already.

    ComfyUI reads no header and takes alpha for the rank; so alpha / rank, the factor of peft's B A x, goes into B. Of
    paths in the header only the last part stays: what lies where on this machine is of no use elsewhere.
    """
    header, facts = _header(file), read_facts(file)
    assert facts is not None, "another project's LoRA is not ours to share"
    adapter = json.loads(header[ADAPTER_KEY])
    rank, alpha = adapter[f"{PREFIX}r"], adapter[f"{PREFIX}lora_alpha"]
    named = replace(
        facts, base=_public_name(facts.base), transformer=_public_name(facts.transformer),
        mask_parser=facts.mask_parser and _public_name(facts.mask_parser),
    )  # fmt: skip
    target.unlink(missing_ok=True)
    if alpha == rank and named == facts:
        try:
            os.link(file, target)
        except OSError:  # another disk, or one without links
            shutil.copyfile(file, target)
        return
    state = load_file(file)
    for key, tensor in state.items():
        if key.endswith(".lora_B.weight"):
            tensor *= alpha / rank
    metadata = {
        **header,
        ADAPTER_KEY: json.dumps({**adapter, f"{PREFIX}lora_alpha": rank}),
        FACTS_KEY: json.dumps(asdict(named)),
    }
    save_file(state, target, metadata)


def _public_name(name: str) -> str:
    """The name on the hub of what was downloaded from there; of another folder, the last part of its path."""
    if in_hub_cache := re.search(r"/models--([\w.-]+?)--([\w.-]+)/snapshots/", name):
        return "/".join(in_hub_cache.groups())
    return Path(name).name if Path(name).is_absolute() else name


def read_facts(file: Path) -> LoraFacts | None:
    """What the LoRA was trained for; None for one of another project. Raises ValueError where it cannot be read."""
    entry = _header(file).get(FACTS_KEY)
    if entry is None:
        return None
    try:
        facts = LoraFacts(**json.loads(entry))
    except (json.JSONDecodeError, TypeError) as error:
        raise ValueError(
            f"{file} says in a way that is not known here what it was trained for ({error}): use the version of this "
            "project that made it, or a newer one"
        ) from error
    return replace(facts, mask_offsets=tuple(facts.mask_offsets))  # JSON knows lists only


def _state(transformer: FluxTransformer2DModel) -> dict[str, torch.Tensor]:
    return get_peft_model_state_dict(transformer)


def _header(file: Path) -> dict[str, str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read as safetensors ({error}): give a LoRA's .safetensors file") from error
