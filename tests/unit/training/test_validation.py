"""What a validation says of each sample."""

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL

from conftest import make_sample
from tryon.data.sample import PromptEmbedding
from tryon.flux.encode import collate, encode_sample
from tryon.training.validation import sample_losses

REGIONS = {f"validation_region/{name}" for name in ("repainted", "kept", "garment")}


@pytest.mark.parametrize(
    ("sigma", "quarter"), [(0.001, "0.00-0.25"), (0.25, "0.00-0.25"), (0.251, "0.25-0.50"), (1.0, "0.75-1.00")]
)
def test_a_sample_has_a_loss_by_region_and_of_its_noise_level(sigma: float, quarter: str, vae: AutoencoderKL) -> None:
    prompts = {"upper": PromptEmbedding(torch.zeros(1, 1), torch.zeros(1))}
    batch = collate([encode_sample(vae, make_sample(0))], prompts)
    error = torch.rand(batch.x0.shape, generator=torch.Generator().manual_seed(0))
    losses = sample_losses(batch, error, torch.tensor([sigma]))
    assert losses.keys() == {"validation/loss", *REGIONS, f"validation_noise/{quarter}"}
    assert losses[f"validation_noise/{quarter}"] == losses["validation/loss"] == error.mean(dim=(1, 2)).item()

    all_hidden = replace(batch, cond=torch.ones_like(batch.cond))
    assert sample_losses(all_hidden, error, torch.tensor([sigma])).keys() & REGIONS == {"validation_region/repainted"}
