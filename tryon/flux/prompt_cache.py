"""Prompt embeddings on disk, each in a file named after everything that shaped it."""

import logging
from pathlib import Path

import torch
from diffusers import FluxFillPipeline
from diffusers.training_utils import free_memory

from tryon.data.sample import PromptEmbedding
from tryon.files import files_fingerprint
from tryon.flux.encode import encode_prompt
from tryon.flux.load import TEXT_PARTS, load_text_encoders
from tryon.flux.memory import free_memory as bytes_free
from tryon.tensor_files import content_key, drop_damaged, read_whole, write_whole
from tryon.units import GB, gigabytes

logger = logging.getLogger(__name__)


def cache_prompts(
    prompts: list[str], base: Path, length: int, dtype: torch.dtype, device: torch.device, data_cache: Path
) -> dict[str, PromptEmbedding]:
    """The prompts' embeddings, padded to `length` tokens, by the text encoders of `base`.

    The text encoders are loaded only where an embedding is not in the data cache, and freed before the return.
    """
    parts = files_fingerprint(*(base / part for part in TEXT_PARTS))
    paths = {
        prompt: data_cache / "prompts" / f"{content_key(prompt, length, str(dtype), parts)}.safetensors"
        for prompt in prompts
    }
    drop_damaged(list(paths.values()), "prompts")
    missing = [prompt for prompt, path in paths.items() if not path.exists()]
    if missing:
        text_encoders = load_text_encoders(base, dtype)
        text_encoders.to(_device_for(text_encoders, device))
        for prompt in missing:
            embedding = encode_prompt(text_encoders, prompt, length)
            write_whole(paths[prompt], vars(embedding), {"prompt": prompt})
        del text_encoders
        free_memory()
    return {prompt: PromptEmbedding(**read_whole(path)[0]) for prompt, path in paths.items()}


def _device_for(text_encoders: FluxFillPipeline, device: torch.device) -> torch.device:
    """The device, or the CPU where a GPU lacks the room, 10 GB at full size: a prompt is encoded once."""
    both = (text_encoders.text_encoder, text_encoders.text_encoder_2)
    need = sum(each.numel() * each.element_size() for part in both for each in part.parameters()) + GB
    if device.type == "cpu" or (free := bytes_free(device)) >= need:
        return device
    words = "the text encoders run on the CPU: they need %s and the GPU has %s free"
    logger.info(words, gigabytes(need), gigabytes(free))
    return torch.device("cpu")
