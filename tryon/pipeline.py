"""One way to infer, used by validation, command line, app and evaluation: stock FluxFillPipeline on our diptych."""

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxFillPipeline, FluxTransformer2DModel
from PIL import Image

from tryon.cache import cache_prompts
from tryon.config import CATVTON_TRANSFORMER, FLUX_BASE
from tryon.encode import decode_latents
from tryon.geometry import pack_latents, unpack_latents
from tryon.lora import LoraFacts, attach_lora, read_facts
from tryon.models import hub_or_folder, load_scheduler, load_transformer, load_vae
from tryon.runs import LORA_FILE, find_lora
from tryon.sample import (
    CATEGORIES,
    Category,
    PromptEmbedding,
    TryOnSample,
    make_diptych,
    prompt_for,
    split_diptych,
    to_picture,
)

logger = logging.getLogger(__name__)


def build_pipeline(
    transformer: FluxTransformer2DModel, vae: AutoencoderKL, scheduler: FlowMatchEulerDiscreteScheduler
) -> FluxFillPipeline:
    """The diffusers pipeline around loaded parts, without text encoders: prompts come as embeddings."""
    pipeline = FluxFillPipeline(
        scheduler=scheduler,
        vae=vae,
        transformer=transformer,
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@dataclass(frozen=True)
class TryOnModel:
    """Everything that inference needs, loaded: the pipeline with its LoRA, and the prompt of each category."""

    pipeline: FluxFillPipeline
    prompts: dict[Category, PromptEmbedding]


def trained_size(facts: LoraFacts | None) -> tuple[int, int]:
    """Height and width of the panel that the LoRA was trained at; CatVTON-Flux's own for one that does not say."""
    return (facts.height, facts.width) if facts else (768, 576)


def prompt_category(facts: LoraFacts | None, asked: Category | None) -> Category:
    """The category whose prompt is used. Raises ValueError where the LoRA has one each and none was asked for."""
    if asked is None and facts and facts.prompt == "category":
        raise ValueError("this LoRA has one prompt per garment category: say --category upper, lower or full")
    return asked or "upper"


def load_try_on(
    lora: Path,
    *,
    base: str | None,
    transformer: str | None,
    lora_scale: float,
    hub_cache: str | None,
    data_cache: str,
) -> TryOnModel:
    """Loads a LoRA and the models that it was trained for: its header names them where base or transformer do not.

    lora: its file (see lora_on_disk). On a CUDA device in bf16, else in float32 on the CPU. Raises ValueError, in one
    sentence, where a part cannot be loaded or not every key of the LoRA is used.
    """
    facts = read_facts(lora)
    for given, trained in ((base, facts and facts.base), (transformer, facts and facts.transformer)):
        if given and trained and given != trained:
            logger.warning("this LoRA was trained for %s and is used with %s: the result may suffer", trained, given)
    base = base or (facts.base if facts else FLUX_BASE)
    transformer = transformer or (facts.transformer if facts else CATVTON_TRANSFORMER)
    kind, length = (facts.prompt, facts.max_sequence_length) if facts else ("fixed", 512)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    texts = {category: prompt_for(kind, category) for category in CATEGORIES}
    embeddings = cache_prompts(
        sorted(set(texts.values())), base, length, dtype, device, hub_cache=hub_cache, data_cache=data_cache
    )
    model = load_transformer(transformer, hub_cache, dtype)
    attach_lora(model, lora, lora_scale)
    vae, scheduler = load_vae(base, hub_cache, dtype), load_scheduler(base, hub_cache)
    model.to(device, dtype)  # the LoRA too: one precision throughout
    pipeline = build_pipeline(model.eval(), vae.to(device), scheduler)
    return TryOnModel(pipeline, {category: embeddings[text] for category, text in texts.items()})


def lora_on_disk(name: str, hub_cache: str | None) -> Path:
    """The LoRA file that a path or a hub name means. Raises ValueError where there is none."""
    if Path(name).expanduser().exists():
        return find_lora(name)
    folder = hub_or_folder(name, ["*.safetensors"], hub_cache)
    files = [folder / LORA_FILE, folder / "transformer" / LORA_FILE, *sorted(folder.glob("*.safetensors"))]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise ValueError(f"{name} holds no .safetensors file: name a LoRA")
    return found


@torch.no_grad()
def try_on(
    pipeline: FluxFillPipeline,
    sample: TryOnSample,
    prompt: PromptEmbedding,
    *,
    steps: int,
    guidance: float,
    seed: int,
) -> Image.Image:
    """The person of the sample wearing its garment: an RGB picture of the panel's size.

    Pixels outside the mask are exactly the person's. The noise comes from a CPU generator, so that every device starts
    from the same.
    """
    image, _, mask = make_diptych(sample)
    height, width = image.shape[-2:]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, pipeline.vae.config.latent_channels, height // 8, width // 8, generator=generator)
    device, dtype = pipeline.transformer.device, pipeline.transformer.dtype
    latents = pipeline(
        # In [0, 1], which the pipeline normalises as fit_picture did: rounded to 256 levels it comes out the same to
        # the last bit. A tensor in [-1, 1] would be normalised again if it happened to have no negative values.
        image=((image[None] + 1) * 127.5).round() / 255,
        mask_image=mask[None],
        height=height,
        width=width,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=generator,
        latents=pack_latents(noise),
        prompt_embeds=prompt.embeds[None].to(device, dtype),
        pooled_prompt_embeds=prompt.pooled[None].to(device, dtype),
        output_type="latent",
    ).images
    decoded = decode_latents(pipeline.vae, unpack_latents(latents, height // 8, width // 8))[0]
    _, generated = split_diptych(decoded)
    return to_picture(torch.where(sample.mask.bool(), generated, sample.person))
