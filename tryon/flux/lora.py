"""The LoRA: added to the transformer, saved so that plain diffusers loads it, loaded with every key accounted for."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxFillPipeline, FluxTransformer2DModel
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import pad

from tryon.config import LoraBlocks, LoraTargets
from tryon.flux.lora_check import check_lora, lora_format
from tryon.flux.lora_header import ADAPTER_KEY, FACTS_KEY, PREFIX, LoraFacts, facts_entry, read_adapter
from tryon.runs import LORA_FILE
from tryon.units import plural

# Attention and feed-forward layers of both kinds of block: 380 modules of the full-size model. x_embedder is left out:
# a LoRA on its 384 channels silently widens a 64-channel FLUX in diffusers and fails elsewhere.
ATTENTION = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0")
CONTEXT = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out")  # of the text's tokens
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp")
TARGET_MODULES = {
    "all": (*ATTENTION, *CONTEXT, *FEED_FORWARD),
    "attention": ATTENTION,
    "attention_and_context": (*ATTENTION, *CONTEXT),
}
BLOCKS = {"double": "transformer_blocks.", "single": "single_transformer_blocks."}  # how the names of layers begin

A, B = ".lora_A.weight", ".lora_B.weight"  # how the keys of a layer's two matrices end


def add_lora(
    transformer: FluxTransformer2DModel, rank: int, alpha: int, seed: int, dropout: float = 0.0,
    targets: LoraTargets = "all", blocks: LoraBlocks = "both",
) -> list[torch.nn.Parameter]:  # fmt: skip
    """Adds a fresh LoRA, which changes nothing yet, and returns its parameters: float32, the only trainable ones.

    dropout: share of the inputs of the LoRA's layers that training leaves out at random, from torch's own generator.
    targets, blocks: which layers get one. In bf16 an update of 1e-4 would mostly be rounded away.
    """
    modules = list(TARGET_MODULES[targets])
    if blocks != "both":  # by their whole names
        modules = [name for name, _ in transformer.named_modules()
                   if name.startswith(BLOCKS[blocks]) and name.endswith(TARGET_MODULES[targets])]  # fmt: skip
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=modules,
                        init_lora_weights="gaussian")  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformer.add_adapter(config)
    cast_training_params(transformer, dtype=torch.float32)
    return [parameter for parameter in transformer.parameters() if parameter.requires_grad]


def save_lora(folder: Path, transformer: FluxTransformer2DModel, facts: LoraFacts) -> None:
    """Writes folder/pytorch_lora_weights.safetensors with diffusers' keys, adapter metadata and our facts."""
    write_lora(folder, lora_weights(transformer), lora_header(transformer, facts))


def lora_weights(transformer: FluxTransformer2DModel) -> dict[str, Tensor]:
    """Copies of the LoRA's weights on the host, under diffusers' keys."""
    state = get_peft_model_state_dict(transformer)
    return {f"{PREFIX}{key}": tensor.to("cpu", copy=True).contiguous() for key, tensor in state.items()}


def lora_header(transformer: FluxTransformer2DModel, facts: LoraFacts) -> dict[str, str]:
    """The metadata of the LoRA's file.

    Only three of peft's fields are written: without rank and alpha the file reloads wrong where they differ, and with
    all of peft's fields an older peft refuses it.
    """
    config = transformer.peft_config["default"]
    adapter = {
        f"{PREFIX}r": config.r,
        f"{PREFIX}lora_alpha": config.lora_alpha,
        f"{PREFIX}target_modules": sorted(config.target_modules),
    }
    return {"format": "pt", ADAPTER_KEY: json.dumps(adapter), FACTS_KEY: facts_entry(facts)}


def write_lora(folder: Path, weights: dict[str, Tensor], header: dict[str, str]) -> None:
    """Writes what `lora_weights` and `lora_header` returned."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / LORA_FILE, header)


@dataclass(frozen=True)
class LoraFile:
    """What a LoRA's file says, whichever tool made it."""

    weights: dict[str, Tensor]  # under diffusers' keys, in the host's memory
    alphas: dict[str, Tensor]  # by diffusers' keys too; empty where they are in the header or in the weights
    adapter: dict[str, Any] | None  # see read_adapter


def read_lora(file: Path) -> LoraFile:
    """Reads a LoRA's file; other tools' formats are converted by diffusers.

    Raises ValueError where it cannot be right (see check_lora), or cannot be converted.
    """
    adapter, state = read_adapter(file), load_file(file)
    check_lora(file, adapter, {key: tensor.float().numpy() for key, tensor in state.items()})
    try:
        weights, alphas, _ = FluxFillPipeline.lora_state_dict(
            dict(state), return_alphas=True, return_lora_metadata=True
        )
    except (AssertionError, AttributeError, KeyError, RuntimeError, ValueError) as error:  # as the converters trip
        raise ValueError(
            f"{file} is in the format of {lora_format(state)}, and diffusers cannot convert it: it is incomplete or "
            "for another model: give a LoRA of the same base"
        ) from error
    return LoraFile(weights, alphas or {}, adapter)


def load_lora(transformer: FluxTransformer2DModel, file: Path) -> None:
    """Puts the file's weights into the LoRA that `add_lora` added.

    Raises ValueError where the file's rank, alpha or layers are not those of the transformer's LoRA, and as read_lora.
    """
    config, lora = transformer.peft_config["default"], read_lora(file)
    rank, alpha = one_rank_and_alpha(lora, file)
    if (rank, alpha) != (config.r, config.lora_alpha):
        raise ValueError(
            f"{file} has rank {rank} and alpha {alpha:g}, this run {config.r} and {config.lora_alpha}: "
            f"give --lora_rank {rank} --lora_alpha {alpha:g}"
        )
    state = {key.removeprefix(PREFIX): tensor for key, tensor in lora.weights.items()}
    own = get_peft_model_state_dict(transformer)
    if state.keys() != own.keys():
        only_file, only_own = sorted(state.keys() - own.keys()), sorted(own.keys() - state.keys())
        raise ValueError(
            f"{file} does not fit this transformer: {len(only_file)} of its keys are unknown "
            f"and {len(only_own)} are missing ({(only_file + only_own)[0]}): give a LoRA of the same base, and the "
            "--lora_targets and --lora_blocks that it was trained with"
        )
    if bad := [key for key in sorted(own) if state[key].shape != own[key].shape]:
        raise ValueError(
            f"{file} does not fit this transformer: {bad[0]} has the shape {list(state[bad[0]].shape)} instead of "
            f"{list(own[bad[0]].shape)}: give a LoRA of the same base"
        )
    set_peft_model_state_dict(transformer, state)


def one_rank_and_alpha(lora: LoraFile, file: Path) -> tuple[int, float]:
    """Rank and alpha of all layers. Raises ValueError where layers differ."""
    ranks = {tensor.shape[1] for key, tensor in lora.weights.items() if key.endswith(B) and tensor.ndim == 2}
    if adapter := lora.adapter:
        alphas = {adapter.get(f"{PREFIX}lora_alpha", 8)}  # peft's default
    else:
        alphas, adapter = {tensor.item() for tensor in lora.alphas.values()} or ranks, {}  # diffusers' default
    some = len(lora.alphas) not in (0, len(lora.weights) // 2)
    patterns = any(adapter.get(f"{PREFIX}{name}") for name in ("rank_pattern", "alpha_pattern", "use_rslora"))
    if len(ranks) != 1 or len(alphas) != 1 or some or patterns:
        raise ValueError(f"{file} has layers of different rank or alpha: start from a LoRA that has one of each")
    return max(ranks), max(alphas)


def attach_lora(transformer: FluxTransformer2DModel, file: Path, scale: float) -> None:
    """Adds a trained LoRA to a transformer that has none, at a strength of `scale`; any file that read_lora reads.

    Raises ValueError where not every key of the file is used, where it lacks layers that its header names, and as
    read_lora. A file without a header may have any layers.
    """
    lora = read_lora(file)
    state, adapter = lora.weights, lora.adapter
    if adapter is not None:
        check_complete(transformer, state, adapter, file)
    fill_input_channels(transformer, state)
    check_shapes(transformer, state, file)
    try:
        transformer.load_lora_adapter(
            state, prefix="transformer", adapter_name="default", network_alphas=lora.alphas, metadata=adapter
        )
    except (RuntimeError, KeyError, ValueError, TypeError) as error:  # such as a header whose patterns do not fit
        raise ValueError(
            f"{file} does not fit this transformer, or its own header: give a LoRA of the same base"
        ) from error
    if unused := sorted(state.keys() - {f"{PREFIX}{key}" for key in get_peft_model_state_dict(transformer)}):
        raise ValueError(
            f"{file} does not fit this transformer: {len(unused)} of its {len(state)} keys are not used "
            f"({unused[0]}): give a LoRA of the same base"
        )
    transformer.set_adapters("default", scale)


def check_complete(
    transformer: FluxTransformer2DModel, state: dict[str, Tensor], adapter: dict[str, Any], file: Path
) -> None:
    """Raises ValueError where layers of the transformer that a LoRA's header names, by peft's own rule, are not in its
    state, or where peft does not understand the header."""
    # What had a LoRA before is a module with the layer and the LoRA in it.
    layers = {re.split(r"\.base_layer|\.lora_", name)[0] for name, _ in transformer.named_modules() if name}
    try:
        fields = {key.removeprefix(PREFIX): value for key, value in adapter.items() if key.startswith(PREFIX)}
        config = LoraConfig(**fields)
        named = {layer for layer in layers if check_target_module_exists(config, layer)}
    except (TypeError, ValueError, re.error) as error:
        raise ValueError(
            f"{file} has a header that peft does not understand ({error}): install a newer peft, or save the LoRA again"
        ) from error
    if missing := sorted(named - {key.removeprefix(PREFIX).split(".lora_")[0] for key in state}):
        raise ValueError(
            f"{file} is incomplete: it lacks {plural(len(missing), 'layer')} that its header names ({missing[0]}): "
            "copy or download it again, or name the transformer that it was trained on with --transformer"
        )


def fill_input_channels(transformer: FluxTransformer2DModel, state: dict[str, Tensor]) -> None:
    """Gives a LoRA of a FLUX with fewer input channels, such as FLUX.1-dev with 64, zeros for the others, in place, as
    diffusers does: what FLUX-Fill adds comes after them."""
    if (a := state.get(key := f"{PREFIX}x_embedder{A}")) is not None and a.ndim == 2:
        state[key] = pad(a, (0, max(0, transformer.x_embedder.in_features - a.shape[1])))


def check_shapes(transformer: FluxTransformer2DModel, state: dict[str, Tensor], file: Path) -> None:
    """Raises ValueError where an A is not [rank, inputs], or a B not [outputs, rank], of the layer that it is for."""
    layers = dict(transformer.named_modules())
    for name in sorted(key.removesuffix(A) for key in state if key.endswith(A)):
        if (layer := layers.get(name.removeprefix(PREFIX))) is None:
            continue
        a, b = state[f"{name}{A}"], state[f"{name}{B}"]
        inputs, outputs = (getattr(layer, side, None) for side in ("in_features", "out_features"))
        if [*a.shape, *b.shape] != [*a.shape[:1], inputs, outputs, *a.shape[:1]]:
            raise ValueError(
                f"{file} does not fit this transformer: {name} has an A of {list(a.shape)} and a B of {list(b.shape)} "
                f"for a layer of {inputs} inputs and {outputs} outputs: give a LoRA of the same base"
            )


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
