"""Pictures through the VAE and prompts through the text encoders, exactly as FluxFillPipeline encodes them."""

import torch
from diffusers import AutoencoderKL, FluxFillPipeline
from torch import Tensor

from tryon.data.sample import FillBatch, LatentSample, PromptEmbedding, TryOnSample, make_diptych
from tryon.flux.packing import image_ids, pack_latents, pack_mask, text_ids
from tryon.flux.prompts import prompt_key


@torch.no_grad()
def encode_pictures(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """[B, 3, H, W] in [-1, 1] -> [B, 16, h, w]: the posterior's mode, shifted and scaled as the transformer wants it.

    The mode, not a sample: the same picture always gives the same latents, so they can be cached.
    """
    modes = [vae.encode(some).latent_dist.mode() for some in at_once(images.to(vae.device, vae.dtype))]
    return (torch.cat(modes) - vae.config.shift_factor) * vae.config.scaling_factor


def at_once(batch: Tensor) -> tuple[Tensor, ...]:
    """The parts of a batch that the VAE takes at once: all, but on a CPU one by one, which is faster there."""
    return batch.split(1) if batch.device.type == "cpu" else (batch,)


@torch.no_grad()
def decode_latents(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """[B, 16, h, w] shifted and scaled latents -> [B, 3, H, W] float32 pictures in about [-1, 1], on the CPU.

    Raises ValueError where they are not finite: saved, they would be black.
    """
    latents = latents.to(vae.device, vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
    pictures = torch.cat([vae.decode(some).sample for some in at_once(latents)]).float().cpu()
    if not pictures.isfinite().all():
        raise ValueError(
            "the picture came out with numbers that are not finite: give another LoRA, an earlier checkpoint or a "
            "smaller --lora_scale, or look at the machine with train_deepfashion_lora.sh --check"
        )
    return pictures


def encode_sample(vae: AutoencoderKL, sample: TryOnSample) -> LatentSample:
    """The diptych and the masked diptych as latents on the CPU, in the VAE's dtype.

    Both at once, and never those of other samples with them: rounding differs with the batch, and what is cached must
    not depend on what was encoded beside it.
    """
    image, masked, mask = make_diptych(sample.to(vae.device))
    target, masked_target = encode_pictures(vae, torch.stack([image, masked])).cpu()
    return LatentSample(sample.key, target, masked_target, mask.bool().cpu(), sample.category, sample.try_off)


@torch.no_grad()
def encode_prompt(text_encoders: FluxFillPipeline, prompt: str, max_sequence_length: int) -> PromptEmbedding:
    """T5's and CLIP's embedding of the prompt on the CPU. T5 has no attention mask: the padded length matters."""
    embeds, pooled, _ = text_encoders.encode_prompt(prompt, max_sequence_length=max_sequence_length)
    return PromptEmbedding(embeds=embeds[0].cpu(), pooled=pooled[0].cpu())


def collate(samples: list[LatentSample], prompts: dict[str, PromptEmbedding]) -> FillBatch:
    """Latent samples of one size -> the packed batch that the transformer takes. prompts: by prompt_key."""
    target = torch.stack([sample.target for sample in samples])
    masked = torch.stack([sample.masked for sample in samples])
    mask = torch.stack([sample.mask for sample in samples]).to(masked.dtype)
    chosen = [prompts[prompt_key(sample.category, sample.try_off)] for sample in samples]
    embeds = torch.stack([prompt.embeds for prompt in chosen])
    return FillBatch(
        x0=pack_latents(target),
        cond=torch.cat([pack_latents(masked), pack_mask(mask)], dim=2),
        prompt=embeds,
        pooled=torch.stack([prompt.pooled for prompt in chosen]),
        img_ids=image_ids(*target.shape[-2:]),
        txt_ids=text_ids(embeds.shape[1]),
        categories=tuple(sample.category for sample in samples),
        try_off=tuple(sample.try_off for sample in samples),
    )
