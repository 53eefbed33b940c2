"""The LoRA: added to the transformer, saved so that plain diffusers loads it, loaded with every key accounted for."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tryon.flux.lora_header import ADAPTER_KEY, FACTS_KEY, PREFIX, LoraFacts, read_header
from tryon.runs import LORA_FILE

# Attention and feed-forward layers of both kinds of block: 380 modules of the full-size model. x_embedder is left out:
# a LoRA on its 384 channels silently widens a 64-channel FLUX in diffusers and fails elsewhere.
TARGET_MODULES = (
    "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0",
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out",
    "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp",
)  # fmt: skip


def add_lora(
    transformer: FluxTransformer2DModel, rank: int, alpha: int, seed: int, dropout: float = 0.0
) -> list[torch.nn.Parameter]:
    """Adds a fresh LoRA, which changes nothing yet, and returns its parameters: float32, the only trainable ones.

    dropout: share of the inputs of the LoRA's layers that training leaves out at random, from torch's own generator.
    In bf16 an update of 1e-4 would mostly be rounded away.
    """
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(TARGET_MODULES),
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
    return {"format": "pt", ADAPTER_KEY: json.dumps(adapter), FACTS_KEY: json.dumps(asdict(facts))}


def write_lora(folder: Path, weights: dict[str, Tensor], header: dict[str, str]) -> None:
    """Writes what `lora_weights` and `lora_header` returned."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / LORA_FILE, header)


def load_lora(transformer: FluxTransformer2DModel, file: Path) -> None:
    """Puts the file's weights into the LoRA that `add_lora` added.

    Raises ValueError where the file's rank, alpha or layers are not those of the transformer's LoRA.
    """
    config = transformer.peft_config["default"]
    header = read_header(file)
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
    own = get_peft_model_state_dict(transformer)
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
    adapter = json.loads(read_header(file).get(ADAPTER_KEY, "null"))
    state = load_file(file)
    unknown = [key for key in state if not key.startswith(PREFIX)]
    if not unknown:
        try:
            transformer.load_lora_adapter(state, prefix="transformer", adapter_name="default", metadata=adapter)
        except (RuntimeError, KeyError, ValueError) as error:  # of other widths, or for layers that take none
            raise ValueError(f"{file} does not fit this transformer: give a LoRA of the same base") from error
        used = {f"{PREFIX}{key}" for key in get_peft_model_state_dict(transformer)}
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
