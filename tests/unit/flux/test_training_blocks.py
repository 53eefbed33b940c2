"""The blocks that training runs: diffusers' numbers, names and weights, and gradients in one piece of memory."""

import copy

import pytest
import torch
from diffusers import FluxTransformer2DModel

from test_lora import disturb, predict
from test_offload import adapted
from test_quantize import loss_and_gradients
from tryon.flux import training_blocks
from tryon.flux.load import load_transformer
from tryon.flux.lora import add_lora
from tryon.flux.offload import blocks_of, checkpoint_blocks
from tryon.flux.training_blocks import (
    ContiguousGradient,
    branches_of,
    cast_lora_together,
    share_inputs,
    use_training_blocks,
)
from tryon.toy.model import ToyFolders


def trained(transformer: FluxTransformer2DModel, share: bool) -> FluxTransformer2DModel:
    transformer = copy.deepcopy(transformer)
    use_training_blocks(transformer)
    if share:
        share_inputs(transformer)
    return transformer


@pytest.mark.parametrize(
    ("share", "where"),
    [(False, ("all", "both")), (True, ("all", "both")), (True, ("attention", "both")), (True, ("all", "single")),
     (False, ("attention_and_context", "double"))],
)  # fmt: skip
def test_loss_and_gradients_are_those_of_diffusers_blocks(
    share: bool, where: tuple[str, str], toy: ToyFolders, vae
) -> None:
    """where: the LoRA's targets and blocks."""
    transformer = load_transformer(toy.transformer, torch.float32)
    targets, blocks = where
    disturb(add_lora(transformer, 4, 4, seed=0, targets=targets, blocks=blocks))
    loss, gradients = loss_and_gradients(transformer, vae)
    found, others = loss_and_gradients(trained(transformer, share), vae)
    assert found.item() == pytest.approx(loss.item(), rel=1e-6)
    for one, other in zip(others, gradients, strict=True):
        assert (one - other).norm() <= 1e-5 * other.norm()


@pytest.mark.parametrize("share", [False, True])
def test_a_lora_that_is_switched_off_changes_nothing(share: bool, toy: ToyFolders, vae) -> None:
    transformer = adapted(toy)
    ours = trained(transformer, share)
    for each in (transformer, ours):
        each.disable_adapters()
    torch.testing.assert_close(predict(ours, vae), predict(transformer, vae), rtol=1e-4, atol=1e-5)


def test_names_and_weights_stay_and_shared_ones_are_stored_once(toy: ToyFolders) -> None:
    transformer = adapted(toy)
    ours = trained(transformer, share=True)
    before, after = transformer.state_dict(), ours.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[name], after[name]) for name in before)
    for block in blocks_of(ours):
        for branch in block.branches():
            assert {layer.base_layer.weight.untyped_storage().data_ptr() for layer in branch.layers} == {
                branch.weight.untyped_storage().data_ptr()
            }


def test_attention_gets_a_gradient_in_one_piece(toy: ToyFolders, vae, monkeypatch: pytest.MonkeyPatch) -> None:
    """In diffusers' single blocks it is a slice of a wider tensor, in the double ones it is not."""
    layouts: list[bool] = []

    def watched(query: torch.Tensor, *rest: torch.Tensor, backend: str | None) -> torch.Tensor:
        out = torch.nn.functional.scaled_dot_product_attention(*(each.transpose(1, 2) for each in (query, *rest)))
        out = out.transpose(1, 2)
        out.register_hook(lambda gradient: layouts.append(gradient.is_contiguous()))
        return out

    monkeypatch.setattr(training_blocks, "dispatch_attention_fn", watched)
    loss_and_gradients(trained(adapted(toy), share=True), vae)
    assert layouts == [True] * 6


def test_the_gradient_of_a_slice_is_made_contiguous() -> None:
    wide = torch.randn(2, 6, requires_grad=True)
    seen: list[bool] = []
    x = wide * 1
    x.register_hook(lambda gradient: seen.append(gradient.is_contiguous()))
    torch.cat([ContiguousGradient.apply(x), wide], dim=1).square().sum().backward()
    assert seen == [True]


@pytest.mark.parametrize("alpha", [4, 6])
@pytest.mark.parametrize("recomputes", [False, True])
def test_a_lora_cast_at_once_has_the_gradients_of_one_cast_where_it_is_used(
    recomputes: bool, alpha: int, toy: ToyFolders, vae
) -> None:
    found = []
    for together in (False, True):
        transformer = load_transformer(toy.transformer, torch.bfloat16)
        disturb(add_lora(transformer, 4, alpha, seed=0))
        use_training_blocks(transformer)
        if together:
            cast_lora_together(transformer, torch.bfloat16)
        if recomputes:
            checkpoint_blocks(transformer, 1)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(loss_and_gradients(transformer, vae))
    (loss, gradients), (other, others) = found
    assert loss.item() == other.item()
    assert all(one.dtype == torch.float32 and torch.equal(one, two) for one, two in zip(gradients, others, strict=True))


def test_casts_follow_the_weights_and_lie_in_one_piece(toy: ToyFolders, vae) -> None:
    transformer = adapted(toy)
    use_training_blocks(transformer)
    cast_lora_together(transformer, torch.float32)
    before = predict(transformer, vae)
    with torch.no_grad():
        for weight in (each for each in transformer.parameters() if each.requires_grad):
            weight.mul_(2)
    assert not torch.equal(predict(transformer, vae), before)
    branches = branches_of(transformer)
    assert len({branch.down.untyped_storage().data_ptr() for branch in branches}) == 1
    assert all(torch.equal(branch.down, torch.cat(branch.lora()[0])) for branch in branches)
    assert all(
        torch.equal(cast, up) for branch in branches for cast, up in zip(branch.ups, branch.lora()[1], strict=True)
    )
