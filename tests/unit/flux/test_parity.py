"""Training and inference see the same thing: our conditioning is FluxFillPipeline's, with difference 0."""

from dataclasses import replace

import pytest
import torch
from diffusers import FluxFillPipeline, FluxTransformer2DModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from conftest import make_sample
from tryon.flux.encode import collate, encode_prompt, encode_sample
from tryon.flux.load import load_text_encoders
from tryon.flux.packing import image_ids, pack_latents, text_ids, unpack_latents
from tryon.flux.prompts import TRY_OFF_PROMPT, prompt_key, prompts_of
from tryon.inference.pipeline import build_pipeline, try_on_batch
from tryon.toy.model import ToyFolders, scheduler


@pytest.fixture(scope="module")
def prompts(toy: ToyFolders):
    text_encoders = load_text_encoders(toy.base, torch.float32)
    texts = prompts_of("category", TRY_OFF_PROMPT)
    return {key: encode_prompt(text_encoders, text, 16) for key, text in texts.items()}


@pytest.mark.parametrize(("seed", "try_off"), [(0, False), (1, False), (2, False), (0, True)])
def test_conditioning_of_training_is_that_of_inference(
    seed: int, try_off: bool, transformer: FluxTransformer2DModel, vae, prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the transformer gets from `try_on_batch`, caught at its door, against the batch that training builds.

    The pipeline samples the posterior where training takes its mode; here it takes the mode too.
    """
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    sample = replace(make_sample(seed), try_off=try_off)
    prompt = prompts[prompt_key(sample.category, try_off)]
    caught: list[dict] = []
    transformer.register_forward_pre_hook(lambda module, args, kwargs: caught.append(kwargs), with_kwargs=True)
    pipeline = build_pipeline(transformer, vae, scheduler())
    given = replace(sample, garment=torch.zeros_like(sample.garment)) if try_off else sample  # it is not known there
    try_on_batch(pipeline, [given], [prompt], steps=1, guidance=30, seeds=[0])

    batch = collate([encode_sample(vae, sample)], prompts)
    at_inference = caught[0]
    assert torch.equal(at_inference["hidden_states"][:, :, 64:], batch.cond)
    assert torch.equal(at_inference["encoder_hidden_states"], batch.prompt)
    assert torch.equal(at_inference["pooled_projections"], batch.pooled)
    assert torch.equal(at_inference["img_ids"], batch.img_ids)
    assert torch.equal(at_inference["txt_ids"], batch.txt_ids)


def test_a_picture_without_dark_pixels_is_not_normalised_twice(
    transformer: FluxTransformer2DModel, vae, prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    bright = make_sample(0, least=128)
    caught: list[torch.Tensor] = []
    transformer.register_forward_pre_hook(
        lambda module, args, kwargs: caught.append(kwargs["hidden_states"]), with_kwargs=True
    )
    pipeline = build_pipeline(transformer, vae, scheduler())
    try_on_batch(pipeline, [bright], [prompts["upper"]], steps=1, guidance=30, seeds=[0])
    assert torch.equal(caught[0][:, :, 64:], collate([encode_sample(vae, bright)], prompts).cond)


def test_packing_is_the_pipelines() -> None:
    x = torch.randn(2, 16, 12, 8)
    assert torch.equal(pack_latents(x), FluxFillPipeline._pack_latents(x, 2, 16, 12, 8))
    assert torch.equal(unpack_latents(pack_latents(x), 12, 8), x)
    ids = FluxFillPipeline._prepare_latent_image_ids(1, 6, 4, torch.device("cpu"), torch.float32)
    assert torch.equal(image_ids(12, 8), ids)
    assert torch.equal(text_ids(5), torch.zeros(5, 3))


def test_try_on_leaves_the_rest_of_the_person_alone(transformer: FluxTransformer2DModel, vae, prompts) -> None:
    sample = make_sample(1)
    pipeline = build_pipeline(transformer, vae, scheduler())

    def dressed(*seeds: int) -> torch.Tensor:
        samples, of_category = [sample] * len(seeds), [prompts["lower"]] * len(seeds)
        return try_on_batch(pipeline, samples, of_category, steps=2, guidance=30, seeds=seeds)

    result, other = dressed(5, 6)
    changed = (result != sample.person).any(0, keepdim=True)
    assert not changed[sample.mask == 0].any()
    assert changed[sample.mask == 1].float().mean() > 0.9
    assert torch.equal(dressed(5)[0], dressed(5)[0]) and not torch.equal(result, other)
    torch.testing.assert_close(dressed(5)[0], result, rtol=0, atol=1e-4)  # a batch of seeds changes but rounding
