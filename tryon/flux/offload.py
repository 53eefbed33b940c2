"""The transformer's blocks with less memory: activations computed again in the backward pass, and frozen weights that
lie in the host's memory and visit the device for as long as their block runs."""

import weakref
from dataclasses import dataclass
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
    """Lets every `every`-th block, from the first on, recompute its activations in the backward pass; 1: all blocks.

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

    A block's tensors are copied to the device when it runs, in training and without gradients, and live there as long
    as something refers to them. In training every block is checkpointed, so that the backward pass fetches them again;
    `checkpoint_blocks` must not have been called. On CUDA the next block is copied while this one computes, so that the
    device holds two blocks, in the backward pass at most three.

    What is offloaded cannot be saved, cast or compiled any more. LoRAs of layers that had one may come and go, and
    `transformer.to` leaves the host's memory alone, for in the modules only tensors of size 0 remain.
    """
    assert not transformer.is_gradient_checkpointing, "offloaded blocks are checkpointed already"
    blocks = blocks_of(transformer)
    host = Host([_pack(block, pin=device.type == "cuda") for block in blocks], device)
    for index, block in enumerate(blocks):
        block.forward = partial(_forward, host, index, Body(block))
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
        """The tensors as views of a copy of the memory."""
        return {
            place.name: memory[place.start : place.start + place.shape.numel() * place.dtype.itemsize]
            .view(place.dtype)
            .view(place.shape)
            for place in self.places
        }


class Host:
    """All blocks in the host's memory, and copies of them on the device.

    The device's memory is only ever taken from the stream that computes, and the side stream that copies waits for
    that stream before it writes, as that stream waits for the copy before it reads or gives the memory back. So a
    block's copy needs no slot and no reference counting of its own: what the last reader leaves, the next copy takes,
    in the order of one stream. (With `record_stream` the allocator gives memory back only once the host has seen the
    device pass by; a host that runs ahead then holds the whole model on the device.)
    """

    def __init__(self, blocks: list[Packed], device: torch.device):
        self.blocks = blocks
        self.device = device
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.ahead: tuple[int, Tensor] | None = None  # a block whose copy was begun before it was asked for
        self.last: int | None = None  # block that was fetched

    def fetch(self, index: int) -> dict[str, Tensor]:
        """The block's tensors by name on the device; the copy of the block that should come next begins."""
        ahead, self.ahead = self.ahead, None
        if self.side:
            torch.cuda.current_stream(self.device).wait_stream(self.side)  # also where the copy is of no use
        if ahead and ahead[0] == index:
            memory = ahead[1]
        else:
            memory = self._room(index).copy_(self.blocks[index].memory, non_blocking=True)
        following = next_block(index, self.last, len(self.blocks))
        if self.side and following is not None:
            room = self._room(following)
            self.side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(self.side):
                self.ahead = following, room.copy_(self.blocks[following].memory, non_blocking=True)
        self.last = index
        return self.blocks[index].tensors(memory)

    def _room(self, index: int) -> Tensor:
        return torch.empty(len(self.blocks[index].memory), dtype=torch.uint8, device=self.device)


def next_block(index: int, last: int | None, count: int) -> int | None:
    """Which of `count` blocks will be needed after `index`, given the one before it; None where that is unknown.

    A wrong answer costs time, nothing else. The forward pass begins at the first block and the backward pass at
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


def _forward(host: Host, index: int, body: Body, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    def run(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return functional_call(body, host.fetch(index), args, kwargs, tie_weights=False)

    # Without the checkpoint autograd would keep the weights of every block on the device.
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
    packed = Packed(_host_memory(size, pin), places)
    for target, tensor in zip(packed.tensors(packed.memory).values(), frozen.values(), strict=True):
        target.copy_(tensor)
        tensor.data = tensor.new_empty(0)
    return packed


def _host_memory(size: int, pin: bool) -> Tensor:
    """uint8 [size] in the host's memory. pin: locked in place, which copies that run beside the computation need, and
    no more of it than asked for: torch's own allocator takes the next power of two.

    Raises ValueError where the system allows no more of it.
    """
    memory = torch.empty(size, dtype=torch.uint8)
    if pin:
        cuda = torch.cuda.cudart()
        if (error := cuda.cudaHostRegister(memory.data_ptr(), size, 0)) != cuda.cudaError.success:
            raise ValueError(
                f"{size / 1e9:.1f} GB more of the host's memory cannot be locked for --offload ({error}): free some, "
                "raise the system's limit (ulimit -l, .wslconfig), or give --quantization nf4 without --offload"
            )
        weakref.finalize(memory, cuda.cudaHostUnregister, memory.data_ptr()).atexit = False
    return memory
