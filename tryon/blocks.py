"""The transformer's blocks with less memory: activations computed again in the backward pass, and frozen weights that
lie in the host's memory and visit the device for as long as their block runs."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

ALIGNMENT = 256  # bytes: what kernels may expect of a tensor that has been allocated by itself


def blocks_of(transformer: FluxTransformer2DModel) -> list[nn.Module]:
    """All blocks in the order in which they run: double, then single."""
    return [*transformer.transformer_blocks, *transformer.single_transformer_blocks]


def checkpoint_blocks(transformer: FluxTransformer2DModel, every: int) -> None:
    """Keeps no activations of every `every`-th block, 1 for all, from the first on: the backward pass runs it again.

    Gradients are the same. Where no gradients are wanted nothing changes. Blocks may be compiled before or after.
    Raises ValueError where `every` is less than 1.
    """
    if every < 1:
        raise ValueError(f"every {every}-th block cannot be checkpointed: give 1 or more")
    chosen = set(blocks_of(transformer)[::every])

    def run(block: nn.Module, *args: Any) -> tuple[Tensor, Tensor]:
        return checkpoint(block, *args, use_reentrant=False) if block in chosen else block(*args)

    transformer.enable_gradient_checkpointing(run)


def offload_blocks(transformer: FluxTransformer2DModel, device: torch.device) -> None:
    """Puts all tensors of the blocks, the LoRA aside, into the host's memory, and everything else onto the device.

    A block's tensors are there while it runs, in training as without gradients. In training every block is
    checkpointed, whence the backward pass fetches them again; `checkpoint_blocks` must not have been called. On CUDA
    those of the next block are copied meanwhile. The device holds two places of the largest block's size.

    What is offloaded cannot be saved, cast or compiled any more. LoRAs of layers that had one may come and go, and
    `transformer.to` leaves the host's memory alone, for in the modules only tensors of size 0 remain.
    """
    assert not transformer.is_gradient_checkpointing, "offloaded blocks are checkpointed already"
    blocks = blocks_of(transformer)
    packed = [_pack(block, pin=device.type == "cuda") for block in blocks]
    largest = max(len(block.memory) for block in packed)
    slots = [torch.empty(largest, dtype=torch.uint8, device=device) for _ in range(2)]
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    if stream:
        for slot in slots:
            slot.record_stream(stream)  # not given away before the last copy is done
    store = Store(packed, slots, stream)
    for index, block in enumerate(blocks):
        block.forward = partial(_forward, store, index, Body(block))
    transformer.to(device)


@dataclass(frozen=True)
class Place:
    """Where in its block's memory a tensor begins, in bytes, and what it is."""

    name: str
    start: int
    dtype: torch.dtype
    shape: torch.Size


@dataclass(frozen=True)
class Packed:
    """Tensors of a block, one after the other in one piece of the host's memory: uint8 [bytes]."""

    memory: Tensor
    places: list[Place]

    def tensors(self, memory: Tensor) -> dict[str, Tensor]:
        """The tensors as views of a copy of the memory; the copy may be longer."""
        return {
            place.name: memory[place.start : place.start + place.shape.numel() * place.dtype.itemsize]
            .view(place.dtype)
            .view(place.shape)
            for place in self.places
        }


@dataclass
class Store:
    """All blocks on the host, and the two slots on the device in which they take turns.

    Only one block is at work at a time: by the time that one is fetched, all that used another one has been queued.
    In the backward pass too, as autograd runs what was recorded last first: nothing of a block that ran earlier
    in the forward pass before all that is left of a later one.
    """

    blocks: list[Packed]
    slots: list[Tensor]  # uint8 [bytes of the largest block] each
    stream: torch.cuda.Stream | None  # of the copies; None on the CPU, where they are made at once
    held: list[int | None] = field(default_factory=lambda: [None, None])  # which block lies in which slot
    last: int | None = None  # block that was fetched

    def fetch(self, index: int) -> dict[str, Tensor]:
        """The block's tensors by name on the device, valid until another block is fetched; the next one's copy begins.

        On CUDA they may be used in the stream that is current, which has to be the same every time.
        """
        if index not in self.held:
            self._copy(index, 0)
        slot = self.held.index(index)
        if self.stream:
            torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)
        following = next_block(index, self.last, len(self.blocks))
        if following is not None and following not in self.held:
            self._copy(following, 1 - slot)
        self.last = index
        return self.blocks[index].tensors(self.slots[slot])

    def _copy(self, index: int, slot: int) -> None:
        source = self.blocks[index].memory
        target = self.slots[slot][: len(source)]
        self.held[slot] = index
        if self.stream is None:
            target.copy_(source)
            return
        # Not before the slot's last user is done, which is queued already; while what comes now computes.
        self.stream.wait_stream(torch.cuda.current_stream(self.stream.device))
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)


def next_block(index: int, last: int | None, count: int) -> int | None:
    """Which of `count` blocks will be wanted after `index`, given the one before it; None where that is unknown.

    A wrong answer would cost time, nothing else. The forward pass begins at the first block and the backward pass at
    the last, which the forward pass has just left.
    """
    turned = last is None or abs(index - last) != 1
    step = (1 if index == 0 else -1) if turned else index - last
    return index + step if 0 <= index + step < count else None


class Body(nn.Module):
    """A block as its class runs it, whatever `forward` the block itself has been given: what functional_call calls."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return type(self.block).forward(self.block, *args, **kwargs)


def _forward(store: Store, index: int, body: Body, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    def run(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return functional_call(body, store.fetch(index), args, kwargs, tie_weights=False)

    # Without the checkpoint autograd would keep weights whose slot has long been given to another block.
    return checkpoint(run, *args, use_reentrant=False, **kwargs) if torch.is_grad_enabled() else run(*args, **kwargs)


def _pack(block: nn.Module, pin: bool) -> Packed:
    """Moves the block's tensors, its LoRA's aside, into one piece of the host's memory; empty ones take their place."""
    named = [*block.named_parameters(), *block.named_buffers()]
    frozen = {name: tensor for name, tensor in named if "lora_" not in name}
    places, size = [], 0
    for name, tensor in frozen.items():
        assert not tensor.requires_grad, f"{name} is trained and cannot be offloaded"
        places.append(Place(f"block.{name}", size, tensor.dtype, tensor.shape))
        size += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    packed = Packed(torch.empty(size, dtype=torch.uint8, pin_memory=pin), places)
    for target, tensor in zip(packed.tensors(packed.memory).values(), frozen.values(), strict=True):
        target.copy_(tensor)
        tensor.data = tensor.new_empty(0)
    return packed
