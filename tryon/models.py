"""Loads the parts of the model from the hub or from folders; every failure in plain words.

FLUX.1-dev gives tokenizers, text encoders, VAE and scheduler, each in a subfolder of its own. The transformer comes
from another place: CatVTON-Flux has nothing but a transformer, at its repository's root; other Fill models keep it in
`transformer/`. Only safetensors are read.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxFillPipeline, FluxTransformer2DModel
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

FILL_IN_CHANNELS = 384
TEXT_PARTS = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2")
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


def hub_or_folder(name: str, patterns: list[str], cache_dir: str | None) -> Path:
    """A local folder as it is, or the hub repository's files that match, downloaded where they are not there yet.

    Raises ValueError where neither can be had, with what to do about it.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    with _hub_errors_in_words(name):
        return Path(snapshot_download(name, allow_patterns=patterns, cache_dir=cache_dir))


@contextmanager
def _hub_errors_in_words(name: str) -> Iterator[None]:
    try:
        yield
    except GatedRepoError as error:
        raise ValueError(
            f"{name} needs its licence accepted: accept it on the model's page on the hub, then run `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ValueError(f"{name} is neither a folder here nor a repository on the hub: check the name") from error
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"{name} is not downloaded yet and the hub cannot be reached: connect to the network or give a folder"
        ) from error
    except EntryNotFoundError as error:
        raise ValueError(
            f"{name} has no config.json, neither at its root nor in transformer/: check the name"
        ) from error
    except HfHubHTTPError as error:
        raise ValueError(f"the hub refused {name} ({error.__class__.__name__}): try again later") from error


def load_text_encoders(base: str, cache_dir: str | None, dtype: torch.dtype) -> FluxFillPipeline:
    """The text half of FLUX: a pipeline with both tokenizers and text encoders and nothing else."""
    folder = hub_or_folder(base, [f"{part}/*" for part in TEXT_PARTS], cache_dir)
    _expect(folder, *TEXT_PARTS)
    return FluxFillPipeline(
        scheduler=None,
        vae=None,
        transformer=None,
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        tokenizer_2=T5Tokenizer.from_pretrained(folder / "tokenizer_2"),
        text_encoder=_load(CLIPTextModel, folder / "text_encoder", dtype=dtype),
        text_encoder_2=_load(T5EncoderModel, folder / "text_encoder_2", dtype=dtype),
    )


def load_vae(base: str, cache_dir: str | None, dtype: torch.dtype) -> AutoencoderKL:
    """FLUX.1-dev's VAE, frozen."""
    folder = hub_or_folder(base, ["vae/*"], cache_dir)
    _expect(folder, "vae/config.json")
    vae = _load(AutoencoderKL, folder / "vae", torch_dtype=dtype)
    return vae.requires_grad_(False).eval()


def load_scheduler(base: str, cache_dir: str | None) -> FlowMatchEulerDiscreteScheduler:
    """The scheduler that inference steps with."""
    folder = hub_or_folder(base, ["scheduler/*"], cache_dir)
    _expect(folder, "scheduler/scheduler_config.json")
    return FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")


def load_transformer(name: str, cache_dir: str | None, dtype: torch.dtype) -> FluxTransformer2DModel:
    """The FLUX-Fill transformer, frozen. Raises ValueError for a transformer that is not a Fill transformer."""
    folder = transformer_folder(name, cache_dir)
    channels = json.loads((folder / "config.json").read_text()).get("in_channels")
    if channels != FILL_IN_CHANNELS:
        raise ValueError(
            f"{name} has {channels} input channels, a FLUX-Fill transformer has {FILL_IN_CHANNELS}: "
            "give one that was made for inpainting, such as xiaozaa/catvton-flux-alpha"
        )
    transformer = _load(FluxTransformer2DModel, folder, torch_dtype=dtype)
    return transformer.requires_grad_(False)


def transformer_folder(name: str, cache_dir: str | None) -> Path:
    """Where the transformer's config.json and weights lie: at the root of `name`, or in its `transformer/`."""
    if Path(name).expanduser().is_dir():
        folder = Path(name).expanduser().resolve()
        candidates = [folder, folder / "transformer"]
        found = next((each for each in candidates if (each / "config.json").is_file()), None)
        if found is None:
            raise ValueError(
                f"{name} has no config.json, neither at its root nor in transformer/: name the transformer's folder"
            )
        return found
    with _hub_errors_in_words(name):
        try:
            hf_hub_download(name, "config.json", cache_dir=cache_dir)
        except EntryNotFoundError:  # not at the root, or offline and not at the root of what is cached
            hf_hub_download(name, "transformer/config.json", cache_dir=cache_dir)
            return Path(snapshot_download(name, allow_patterns=["transformer/*"], cache_dir=cache_dir)) / "transformer"
        return Path(snapshot_download(name, allow_patterns=["config.json", *WEIGHTS], cache_dir=cache_dir))


def _load(kind: type, folder: Path, **dtype: torch.dtype) -> Any:
    """A model with every one of its weights. Where the files lack some, the libraries only warn and invent them."""
    model, report = kind.from_pretrained(folder, use_safetensors=True, output_loading_info=True, **dtype)
    # T5's input embedding is stored once, under either of its two names.
    lacking = [key for key in report["missing_keys"] if not key.endswith("embed_tokens.weight")]
    lacking += [key if isinstance(key, str) else key[0] for key in report["mismatched_keys"]]
    if lacking:
        raise ValueError(
            f"the weights in {folder} are incomplete: {len(lacking)} are missing or of another shape "
            f"({sorted(lacking)[0]}): download or copy them again"
        )
    return model


def _expect(folder: Path, *names: str) -> None:
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise ValueError(f"{folder} has no {', '.join(missing)}: give a folder laid out as FLUX.1-dev is")


def files_fingerprint(folder: Path) -> str:
    """A hash that changes when the folder's files do: of their names, sizes and times, not of gigabytes of content."""
    parts = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        stat = path.stat()
        parts.append(f"{path.relative_to(folder)} {stat.st_size} {stat.st_mtime_ns}")
    assert parts, f"{folder} holds no files"
    return sha256("\n".join(parts).encode()).hexdigest()
