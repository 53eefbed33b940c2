"""Whether a LoRA's file can be right, and which tool made it: what its keys, its numbers and its header say without a
model. Imports nothing heavy."""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tryon.flux.lora_header import PREFIX

# The formats that diffusers turns into its own, and the keys that it reads of each. It leaves other layers out, some of
# them without an error: kohya's embedders, OneTrainer's feed-forward layers.
TENSOR = r"\.(lora_(down|up)\.weight|alpha)"
EMBEDDERS = r"(x_embedder|context_embedder|time_text_embed_\w+_embedder_linear_[12]|norm_out_linear|proj_out)"
READ = {
    "diffusers": rf"{re.escape(PREFIX)}.+",
    "kohya": rf"lora_unet_(double|single)_blocks_\d+_\w+{TENSOR}",
    "ComfyUI": rf"diffusion_model\.(double|single)_blocks\.\d+\.[\w.]+{TENSOR}",
    "OneTrainer": rf"lora_transformer_((single_)?transformer_blocks_\d+_attn_(to|add)_\w+|{EMBEDDERS}){TENSOR}",
    "XLabs": r"(diffusion_model\.)?(double|single)_blocks\.\d+\.processor\.(qkv|proj)_lora[12]?\.(down|up)\.weight",
    "fal": r"base_model\.model\.(double_blocks|single_blocks|final_layer)\..+\.lora_[AB]\.(weight|bias)",
}
# What marks a format in a key; the first that is found names the file's.
MARKS = {
    r"\.lokr_": "LoKr", r"\.hada_": "LoHa", r"\.oft_": "OFT", r"\.dora_scale": "DoRA", r"\.diff": "weight differences",
    r"^lora_te|^text_encoder": "LoRAs with a text encoder", r"query_norm": "FLUX control LoRAs",
    r"\.processor\.": "XLabs", r"^base_model\.": "fal", r"^lora_transformer_": "OneTrainer", r"^lora_unet_": "kohya",
    r"^diffusion_model\.": "ComfyUI", rf"^{re.escape(PREFIX)}": "diffusers",
}  # fmt: skip
# How the keys of a layer's two matrices end.
DOWN, UP = r"\.(lora_A|lora_down|down)\.weight$", r"\.(lora_B|lora_up|up)\.weight$"


def lora_format(keys: Iterable[str]) -> str:
    """The tool or the kind of LoRA in whose format a file's keys are."""
    keys = list(keys)
    return next((name for mark, name in MARKS.items() if any(re.search(mark, key) for key in keys)), "an unknown tool")


def check_lora(file: Path, adapter: Mapping[str, Any] | None, tensors: Mapping[str, np.ndarray]) -> None:
    """Raises ValueError where the LoRA in a file cannot be right: no weights, a number that is not finite, an A without
    its B or the reverse, an alpha that is no number above 0, a header that says otherwise than the weights, a format
    that diffusers does not read whole.

    adapter: what its header says (see read_adapter). tensors: what it holds, under its own keys.
    """
    if not tensors:
        raise ValueError(f"{file} holds no weights: give another LoRA")
    if bad := [key for key in sorted(tensors) if not np.isfinite(tensors[key]).all()]:
        raise ValueError(
            f"{file} holds numbers that are not finite, in {len(bad)} of its {len(tensors)} tensors ({bad[0]}): give "
            "another LoRA, or an earlier checkpoint"
        )
    name = lora_format(tensors)
    if unread := [key for key in sorted(tensors) if name not in READ or not re.fullmatch(READ[name], key)]:
        raise ValueError(
            f"{file} is in the format of {name}: diffusers does not read {len(unread)} of its {len(tensors)} tensors "
            f"into FLUX's transformer ({unread[0]}): give a LoRA of that alone, in the format of {', '.join(READ)}"
        )
    with_a, with_b = ({re.sub(end, "", key) for key in tensors if re.search(end, key)} for end in (DOWN, UP))
    if halves := sorted(with_a ^ with_b):
        raise ValueError(
            f"{file} is incomplete: {len(halves)} of its layers have an A without its B, or a B without its A "
            f"({halves[0]}): copy or download it again"
        )
    alphas = {key: tensor for key, tensor in tensors.items() if key.endswith(".alpha")}
    if bad := [key for key in sorted(alphas) if alphas[key].size != 1 or alphas[key].item() <= 0]:
        raise ValueError(f"{file} has an alpha that is no number above 0 ({bad[0]}): give another LoRA")
    if adapter is None:
        return
    if alphas:
        raise ValueError(f"{file} says its alphas twice, in its header and as tensors: give a LoRA that says them once")
    ranks = {tensor.shape[1] for key, tensor in tensors.items() if key.endswith(".lora_B.weight") and tensor.ndim == 2}
    _check_header(file, adapter, ranks)


def _check_header(file: Path, adapter: Mapping[str, Any], ranks: set[int]) -> None:
    """Raises ValueError where the header's ranks and alphas are no numbers above 0, or its ranks not the weights'."""

    def said(name: str, pattern: str) -> list[Any]:
        own = [adapter[PREFIX + name]] if PREFIX + name in adapter else []
        return [*own, *(adapter.get(PREFIX + pattern) or {}).values()]

    of_header, alphas = said("r", "rank_pattern"), said("lora_alpha", "alpha_pattern")
    for number in of_header + alphas:
        if not isinstance(number, int | float) or not 0 < number < math.inf:
            raise ValueError(f"{file} has a header with a rank or an alpha of {number}: give another LoRA")
    if of_header and (others := ranks - set(of_header)):
        raise ValueError(
            f"{file} has a header that says rank {of_header[0]} and weights of rank {min(others)}: give another LoRA"
        )
