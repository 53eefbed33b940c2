"""One way to infer, used by validation, command line, app and evaluation: stock FluxFillPipeline on our diptych."""

from contextlib import AbstractContextManager

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxFillPipeline, FluxTransformer2DModel
from PIL import Image

from tryon.geometry import pack_latents
from tryon.sample import PromptEmbedding, TryOnSample, make_diptych, split_diptych, to_picture


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


def model_precision(device: torch.device, dtype: torch.dtype) -> AbstractContextManager:
    """Autocast to the frozen weights' dtype, so that float32 LoRA weights run beside bf16 ones as in training."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


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
    with model_precision(device, dtype):
        decoded = pipeline(
            # In [0, 1], which the pipeline normalises as fit_picture did; rounded to 256 levels it comes out the same
            # to the last bit. A tensor in [-1, 1] would be normalised again if it happened to have no negative values.
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
            output_type="pt",
        ).images[0]
    _, generated = split_diptych(decoded.float().cpu() * 2 - 1)
    return to_picture(torch.where(sample.mask.bool(), generated, sample.person))
