"""torch.compile: whether it works on a device, and the transformer's blocks compiled."""

import logging

import torch
from diffusers import FluxTransformer2DModel

from tryon.config import first_line
from tryon.flux.offload import blocks_of

logger = logging.getLogger(__name__)


def compile_blocks(transformer: FluxTransformer2DModel) -> None:
    """Compiles what the blocks compute, each kind once. Not the call of a block's module: First-Block-Cache stands in
    between, and decides on the host."""
    # A kind of block is compiled for each batch, size and LoRA on or off, beyond torch's 8 times; more is an error.
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.optimize_ddp = False  # it would cut blocks into pieces, which are graphs of their own already
    for block in blocks_of(transformer):
        block.forward = torch.compile(block.forward, fullgraph=True)


def can_compile(device: torch.device) -> bool:
    """Whether blocks can be compiled for the device; where they cannot, it is said that they stay as they are."""
    if problem := no_compiler(device):
        logger.warning("nothing is compiled, which is slower, as it cannot be done here: %s", problem)
    return problem is None


def no_compiler(device: torch.device) -> str | None:
    """Why nothing can be compiled for the device, in a line; None where it can."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.ones(8, device=device))
    except Exception as error:  # whatever a missing or broken toolchain raises
        return first_line(error)
    return None
