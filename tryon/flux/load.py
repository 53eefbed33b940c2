"""Loads the parts of the model from the hub, from folders or from a file; every failure in plain words.

FLUX.1-dev gives tokenizers, text encoders, VAE and scheduler, each in a subfolder of its own. The transformer comes
from another place: CatVTON-Flux has nothing but a transformer, at its repository's root; other Fill models keep it in
`transformer/`. Only safetensors are read.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxFillPipeline, FluxTransformer2DModel
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from tryon.config import TrainConfig
from tryon.files import read_json, save_json
from tryon.flux.memory import check_training_fits
from tryon.hub import check_room, download_size, hub_or_folder

# The full-size FLUX-Fill transformer: CatVTON-Flux's and FLUX.1-Fill-dev's config.json.
FILL_CONFIG = {
    "_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": 384, "out_channels": 64, "num_layers": 19,
    "num_single_layers": 38, "attention_head_dim": 128, "num_attention_heads": 24, "joint_attention_dim": 4096,
    "pooled_projection_dim": 768, "guidance_embeds": True, "axes_dims_rope": [16, 56, 56],
}  # fmt: skip
FILL_IN_CHANNELS = FILL_CONFIG["in_channels"]
CONFIG_PLACES = ("config.json", "transformer/config.json")
TEXT_PARTS = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2")
BASE_PARTS = (*TEXT_PARTS, "vae", "scheduler")


@dataclass(frozen=True)
class ModelFiles:
    """Where the parts lie on this machine. base: a folder laid out as FLUX.1-dev. transformer: a folder with its
    config.json and weights, or a .safetensors file."""

    base: Path
    transformer: Path


def fetch_training_models(config: TrainConfig, device: torch.device) -> ModelFiles:
    """All models of a training run on this machine's disk, downloaded where they are not.

    Raises ValueError where one cannot be had, and, before anything large is downloaded, where the transformer is no
    FLUX-Fill transformer or training it does not fit on the device.
    """
    name = config.pretrained_inpaint_model_name_or_path
    check_training_fits(config, read_transformer_config(name, config.cache_dir), device)
    return fetch_models(config.pretrained_model_name_or_path, name, config.cache_dir)


def fetch_models(base: str, transformer: str, cache_dir: str | None) -> ModelFiles:
    """The base's parts and the transformer, whose other folders stay on the hub: FLUX.1-dev's own transformer too.

    transformer: see read_transformer_config. Raises ValueError where a part cannot be had.
    """
    read_transformer_config(transformer, cache_dir)  # refused before the base is downloaded
    parts = [f"{part}/*" for part in BASE_PARTS]
    file, size = Path(transformer).expanduser(), download_size(base, parts, cache_dir)
    if not file.is_file():
        place = _config_place(hub_or_folder(transformer, list(CONFIG_PLACES), cache_dir), transformer).parent
        weights = [str(place / kind) for kind in ("config.json", "*.safetensors", "*.safetensors.index.json")]
        others = [str(place / "*/*")]
        size += download_size(transformer, weights, cache_dir, others)
    check_room(f"{base} with {transformer}", size, cache_dir)  # before the first is downloaded
    folder = hub_or_folder(base, parts, cache_dir)
    missing = [part for part in BASE_PARTS if not (folder / part).is_dir()]
    if missing:
        raise ValueError(f"{base} has no {', '.join(missing)}: give a repository or folder laid out as FLUX.1-dev is")
    if file.is_file():
        return ModelFiles(folder, file.absolute())
    return ModelFiles(folder, hub_or_folder(transformer, weights, cache_dir, others) / place)


def read_transformer_config(name: str, cache_dir: str | None) -> dict[str, Any]:
    """The transformer's config.json, which is all that is downloaded.

    name: a hub repository or a local folder that has it at its root or in `transformer/`; or a .safetensors file, whose
    config.json lies beside it or is the full-size model's. Raises ValueError where it is not a FLUX-Fill transformer.
    """
    file = Path(name).expanduser()
    if file.is_file():
        config = _config_of_file(file)
    else:
        folder = hub_or_folder(name, list(CONFIG_PLACES), cache_dir)
        config = read_json(folder / _config_place(folder, name))
    channels = config.get("in_channels")
    if channels != FILL_IN_CHANNELS:
        raise ValueError(
            f"{name} has {channels} input channels, a FLUX-Fill transformer has {FILL_IN_CHANNELS}: "
            "give one that was made for inpainting, such as xiaozaa/catvton-flux-alpha"
        )
    return config


def _config_of_file(file: Path) -> dict[str, Any]:
    beside = file.with_name("config.json")
    return read_json(beside) if beside.is_file() else FILL_CONFIG


def _config_place(folder: Path, name: str) -> Path:
    place = next((each for each in CONFIG_PLACES if (folder / each).is_file()), None)
    if place is None:
        raise ValueError(
            f"{name} has no config.json, neither at its root nor in transformer/: name the transformer's repository, "
            "folder or .safetensors file"
        )
    return Path(place)


def load_text_encoders(base: Path, dtype: torch.dtype) -> FluxFillPipeline:
    """The text half of FLUX: a pipeline with both tokenizers and text encoders and nothing else."""
    return FluxFillPipeline(
        scheduler=None, vae=None, transformer=None,
        tokenizer=CLIPTokenizer.from_pretrained(base / "tokenizer"),
        tokenizer_2=T5Tokenizer.from_pretrained(base / "tokenizer_2"),
        text_encoder=_load(CLIPTextModel, base / "text_encoder", dtype=dtype),
        text_encoder_2=_load(T5EncoderModel, base / "text_encoder_2", dtype=dtype),
    )  # fmt: skip


def load_vae(base: Path, dtype: torch.dtype, device: torch.device) -> AutoencoderKL:
    """FLUX.1-dev's VAE, frozen, on the device."""
    vae = _load(AutoencoderKL, base / "vae", torch_dtype=dtype).requires_grad_(False).eval().to(device)
    # On a CPU its convolutions are half as fast again with channels last; on CUDA its normalisation undoes that.
    return vae.to(memory_format=torch.channels_last) if device.type == "cpu" else vae


def load_scheduler(base: Path) -> FlowMatchEulerDiscreteScheduler:
    """The scheduler that inference steps with."""
    return FlowMatchEulerDiscreteScheduler.from_pretrained(base / "scheduler")


def load_transformer(where: Path, dtype: torch.dtype) -> FluxTransformer2DModel:
    """The FLUX-Fill transformer of a folder or a .safetensors file, frozen."""
    if where.is_dir():
        return _load(FluxTransformer2DModel, where, torch_dtype=dtype).requires_grad_(False)
    with tempfile.TemporaryDirectory() as name:  # the same in a folder of its own
        folder = Path(name)
        save_json(folder / "config.json", _config_of_file(where))
        (folder / SAFETENSORS_WEIGHTS_NAME).symlink_to(where.resolve())
        return _load(FluxTransformer2DModel, folder, where, torch_dtype=dtype).requires_grad_(False)


def _load(kind: type, folder: Path, where: Path | None = None, **dtype: torch.dtype) -> Any:
    """A model with every one of its weights. Where the files lack some, the libraries only warn and invent them.

    where: what an error names, if not the folder.
    """
    try:
        model, report = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **dtype)
    except (ValueError, OSError, SafetensorError) as error:
        words = str(error).split(". ")[0]
        raise ValueError(
            f"the weights in {where or folder} cannot be loaded ({words}): download or copy them again"
        ) from error
    # T5's input embedding is stored once, under either of its two names.
    lacking = [key for key in report["missing_keys"] if not key.endswith("embed_tokens.weight")]
    lacking += [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    if lacking:
        raise ValueError(
            f"the weights in {where or folder} are incomplete: {len(lacking)} are missing or of another shape "
            f"({sorted(lacking)[0]}): download or copy them again"
        )
    return model
