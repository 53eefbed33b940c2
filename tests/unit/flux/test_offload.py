"""Blocks that are checkpointed or offloaded: the same numbers to the last bit, with less in memory."""

import weakref
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from test_lora import FACTS, disturb, predict
from test_quantize import CPU, loss_and_gradients
from tryon.flux.load import load_transformer
from tryon.flux.lora import add_lora, attach_lora, load_lora, save_lora
from tryon.flux.offload import Host, blocks_of, checkpoint_blocks, next_block, offload_blocks
from tryon.flux.quantize import Kind, quantize_blocks
from tryon.runs import LORA_FILE
from tryon.toy.model import ToyFolders


def adapted(toy: ToyFolders, kind: Kind | None = None, dropout: float = 0.0) -> FluxTransformer2DModel:
    """The toy's transformer with a LoRA that does something, on weights that may be quantised."""
    transformer = load_transformer(toy.transformer, torch.float32)
    disturb(add_lora(transformer, 4, 4, seed=0, dropout=dropout))
    if kind:
        quantize_blocks(transformer, kind, CPU)
    return transformer.train()


def run(transformer: FluxTransformer2DModel, vae) -> tuple[Tensor, list[Tensor]]:
    torch.manual_seed(0)  # of the dropout
    return loss_and_gradients(transformer, vae)


def count_runs(transformer: FluxTransformer2DModel) -> list[int]:
    """A list that counts the runs of each block from now on."""
    runs = [0] * len(blocks_of(transformer))

    def counting(index: int):
        def count(*_) -> None:
            runs[index] += 1

        return count

    for index, block in enumerate(blocks_of(transformer)):
        block.attn.to_q.register_forward_pre_hook(counting(index))
    return runs


def assert_same(result: tuple[Tensor, list[Tensor]], expected: tuple[Tensor, list[Tensor]]) -> None:
    assert torch.equal(result[0], expected[0])
    assert all(torch.equal(gradient, other) for gradient, other in zip(result[1], expected[1], strict=True))


@pytest.mark.parametrize(("every", "rerun"), [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4]), (5, [0, 5])])
def test_checkpointed_blocks_run_twice_with_the_same_gradients(
    every: int, rerun: list[int], toy: ToyFolders, vae
) -> None:
    transformer = adapted(toy, dropout=0.2)
    expected = run(transformer, vae)
    checkpoint_blocks(transformer, every)
    runs = count_runs(transformer)
    assert_same(run(transformer, vae), expected)
    assert runs == [2 if index in rerun else 1 for index in range(6)]


def test_without_gradients_no_block_runs_twice(toy: ToyFolders, vae) -> None:
    transformer = adapted(toy)
    expected = predict(transformer, vae)
    checkpoint_blocks(transformer, 1)
    runs = count_runs(transformer)
    assert torch.equal(predict(transformer, vae), expected)
    assert runs == [1] * 6


def test_no_block_at_all_cannot_be_asked_for(transformer: FluxTransformer2DModel) -> None:
    with pytest.raises(ValueError, match="every 0-th block cannot be checkpointed: give 1 or more"):
        checkpoint_blocks(transformer, 0)


@pytest.mark.parametrize("kind", [None, "int8", "fp8", "nf4"])
def test_offloaded_blocks_train_to_the_last_bit(kind: Kind | None, toy: ToyFolders, vae) -> None:
    transformer = adapted(toy, kind, dropout=0.2)
    checkpoint_blocks(transformer, 1)
    expected = run(transformer, vae)

    transformer = adapted(toy, kind, dropout=0.2)
    offload_blocks(transformer, CPU)
    runs = count_runs(transformer)
    for _ in range(2):  # the second time the memory is what the first left
        assert_same(run(transformer, vae), expected)
    assert runs == [4] * 6
    transformer.eval()
    assert torch.equal(predict(transformer, vae), predict(adapted(toy, kind).eval(), vae))


def test_a_block_leaves_the_device_before_the_next_but_one_comes(
    toy: ToyFolders, vae, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU no block is fetched ahead: at most the one that ran last is there when another one comes."""
    transformer = adapted(toy)
    offload_blocks(transformer, CPU)
    room, copies, alive = Host._room, [], []

    def watched(host: Host, index: int) -> Tensor:
        alive.append(sum(copy() is not None for copy in copies))
        memory = room(host, index)
        copies.append(weakref.ref(memory.untyped_storage()))
        return memory

    monkeypatch.setattr(Host, "_room", watched)
    run(transformer, vae)
    assert len(alive) == 12  # six blocks, forward and backward
    assert max(alive) <= 1
    assert not any(copy() for copy in copies)


@pytest.mark.parametrize("kind", [None, "nf4"])
def test_nothing_of_an_offloaded_block_but_its_lora_stays(kind: Kind | None, toy: ToyFolders, vae) -> None:
    transformer = adapted(toy, kind)
    offload_blocks(transformer, CPU)
    run(transformer, vae)
    for block in blocks_of(transformer):
        for name, tensor in [*block.named_parameters(), *block.named_buffers()]:
            assert tensor.requires_grad == ("lora_" in name) == (tensor.numel() > 0), name
    assert transformer.device == CPU
    assert transformer.dtype == torch.float32


def test_offloaded_blocks_find_all_they_need_on_the_device(toy: ToyFolders) -> None:
    """The meta device stands for a GPU: it has no numbers, but refuses what lies elsewhere."""
    meta = torch.device("meta")
    transformer = adapted(toy)
    offload_blocks(transformer, meta)
    assert {parameter.device for parameter in transformer.parameters()} == {meta}
    assert transformer.device == meta
    out = transformer(
        hidden_states=torch.empty(1, 4, 384, device=meta),
        timestep=torch.empty(1, device=meta),
        guidance=torch.empty(1, device=meta),
        pooled_projections=torch.empty(1, transformer.config.pooled_projection_dim, device=meta),
        encoder_hidden_states=torch.empty(1, 2, transformer.config.joint_attention_dim, device=meta),
        img_ids=torch.empty(4, 3, device=meta),
        txt_ids=torch.empty(2, 3, device=meta),
        return_dict=False,
    )[0]
    out.sum().backward()
    assert all(parameter.grad.device == meta for parameter in transformer.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("kind", [None, "nf4"])
def test_loras_of_offloaded_blocks_come_and_go(kind: Kind | None, toy: ToyFolders, vae, tmp_path: Path) -> None:
    transformer = adapted(toy, kind)
    expected = predict(transformer, vae)
    offload_blocks(transformer, CPU)
    save_lora(tmp_path, transformer, FACTS)

    with torch.no_grad():
        for parameter in transformer.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    assert not torch.equal(predict(transformer, vae), expected)
    load_lora(transformer, tmp_path / LORA_FILE)
    assert torch.equal(predict(transformer, vae), expected)

    transformer.delete_adapters("default")
    assert not torch.equal(predict(transformer, vae), expected)
    attach_lora(transformer, tmp_path / LORA_FILE, 1.0)
    assert torch.equal(predict(transformer, vae), expected)


def test_a_lora_learns_on_offloaded_blocks_as_on_others(toy: ToyFolders, vae) -> None:
    def losses(transformer: FluxTransformer2DModel) -> list[float]:
        parameters = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
        optimizer, losses = torch.optim.AdamW(parameters, lr=1e-2), []
        for _ in range(3):
            loss, gradients = run(transformer, vae)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            losses += [loss.item(), predict(transformer, vae).sum().item()]  # as a validation between steps
        return losses

    offloaded = adapted(toy, "int8")
    offload_blocks(offloaded, CPU)
    assert losses(offloaded) == losses(adapted(toy, "int8"))


def test_the_next_block_is_foreseen() -> None:
    """Two accumulated forward and backward passes, then a validation of two forward passes."""
    forward, backward = [0, 1, 2, 3], [3, 2, 1, 0]
    order = [*forward, *backward, *forward, *backward, *forward, *forward]
    foreseen = [next_block(index, last, 4) for last, index in zip([None, *order], order, strict=False)]
    for following, said in zip(order[1:], foreseen, strict=False):
        assert said in (following, None)
    assert foreseen[:8] == [1, 2, 3, None, 2, 1, 0, None]
