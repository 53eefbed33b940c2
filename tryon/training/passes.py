"""Forward and backward passes of micro-batches; on a large GPU repeated from a recording, a CUDA graph.

Where nothing is recomputed, an H100 or H200 computes a compiled block about as fast as one thread can queue its kernels
(benchmarks/h200_2026-11-28.md). A recording is queued as one, and the device does not wait for the host any more.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from tryon.config import TrainConfig, first_line
from tryon.data.sample import FillBatch
from tryon.training.clock import Clock

logger = logging.getLogger(__name__)

FIRST_PASSES = 2  # not recorded: they compile, and libraries prepare themselves
ALLOWED = 1e-2  # relative difference of a recorded pass from an ordinary one, in bf16: repeated, those differ by 1e-3

Loss = Callable[[FillBatch, Tensor, Tensor], Tensor]  # of a batch, its noise levels [B] and noise [B, L, 64]: a scalar


def can_record(config: TrainConfig, transformer: FluxTransformer2DModel, accelerator: Accelerator) -> bool:
    """Whether it is worth recording passes, and possible: compiled ones that wait for the host, on a card with room,
    whose gradients nobody else waits for, and of which the host decides nothing. config must be resolved."""
    roomy = config.quantization == "none" and not config.offload and not transformer.is_gradient_checkpointing
    alone = accelerator.device.type == "cuda" and accelerator.num_processes == 1
    return alone and roomy and config.compile and not config.lora_dropout and not config.teacher_weight


@dataclass(frozen=True)
class Recording:
    """graph: a pass that reads `inputs`, adds to `gradients`, one of each parameter, and writes `loss`."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    gradients: list[Tensor]
    loss: Tensor


class Passes:
    """Computes losses and adds their gradients to the parameters'.

    compute: the loss. backward: as accelerate's. records: whether passes are recorded after the first ones; all batches
    are of one shape then. A recording is compared with an ordinary pass before it is used, and not used where it
    differs or cannot be made, which is said.
    """

    def __init__(
        self, compute: Loss, backward: Callable[[Tensor], None], parameters: Sequence[nn.Parameter], records: bool
    ):
        self.compute, self.backward, self.parameters, self.records = compute, backward, parameters, records
        # The first passes run on the stream that is recorded: autograd adds to a gradient on the stream where the
        # parameter was first used, and a recording cannot wait for the default one.
        self.stream = torch.cuda.Stream() if records and torch.cuda.is_available() else None
        self.forget()

    def forget(self) -> None:
        """Gives back the recording and its memory, as much as a pass takes; it is made anew after the next passes. For
        when the model computes otherwise from here on, or something else needs the memory."""
        self.recording: Recording | None = None
        self.done = 0

    def __call__(self, batch: FillBatch, sigma: Tensor, noise: Tensor, clock: Clock) -> Tensor:
        """The loss of a micro-batch on the device, a scalar without a graph, which the next call may overwrite."""
        is_first = self.parameters[0].grad is None  # of an optimiser step
        if self.recording:
            with clock.part("forward and backward"):
                return self.replay(self.recording, batch, sigma, noise, is_first)
        if self.records and is_first and self.done >= FIRST_PASSES:
            return self.first_recorded(batch, sigma, noise, clock)
        return self.ordinary(batch, sigma, noise, clock)

    def ordinary(self, batch: FillBatch, sigma: Tensor, noise: Tensor, clock: Clock) -> Tensor:
        if self.stream:
            self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            with clock.part("forward"):
                loss = self.compute(batch, sigma, noise)
            with clock.part("backward"):
                self.backward(loss)
        if self.stream:
            torch.cuda.current_stream().wait_stream(self.stream)
        self.done += 1
        return loss.detach()

    def first_recorded(self, batch: FillBatch, sigma: Tensor, noise: Tensor, clock: Clock) -> Tensor:
        """The step's first pass, by a recording of it where that gives what an ordinary pass does."""
        expected = self.result(self.ordinary(batch, sigma, noise, clock))
        try:
            recording = self.record(batch, sigma, noise)
            with clock.part("forward and backward"):
                loss = self.replay(recording, batch, sigma, noise, is_first=True)
            found = self.result(loss)
        except RuntimeError as error:  # what CUDA refuses, too little memory included
            problem = first_line(error)
        else:
            apart = max(((x - y).norm() / y.norm()).item() for x, y in zip(found, expected, strict=True))
            if apart <= ALLOWED:
                self.recording = recording
                return loss
            problem = f"a recorded pass differs by {apart:.1e}"
        logger.warning("passes are not recorded as a CUDA graph, which is slower: %s", problem)
        self.records = False
        for parameter in self.parameters:
            parameter.grad = None
        return self.ordinary(batch, sigma, noise, clock)

    def result(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """What passes are compared by: the loss, and the norm of each parameter's gradient."""
        return loss.clone(), torch.stack(torch._foreach_norm([parameter.grad for parameter in self.parameters]))

    def record(self, batch: FillBatch, sigma: Tensor, noise: Tensor) -> Recording:
        """Records a pass that adds to the gradients that are there; nothing is computed."""
        inputs = [tensor.clone() for tensor in tensors_of(batch, sigma, noise)]
        gradients = [parameter.grad for parameter in self.parameters]
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on meanwhile: one pins the next batch's memory, another one writes a checkpoint.
        recording = torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local")
        with torch.cuda.stream(self.stream), recording:  # the latter alone stays on its stream where it fails
            loss = self.compute(*with_tensors(batch, inputs))
            self.backward(loss)
        return Recording(graph, inputs, gradients, loss.detach())

    def replay(self, recording: Recording, batch: FillBatch, sigma: Tensor, noise: Tensor, is_first: bool) -> Tensor:
        torch._foreach_copy_(recording.inputs, tensors_of(batch, sigma, noise))
        if is_first:
            torch._foreach_zero_(recording.gradients)
            for parameter, gradient in zip(self.parameters, recording.gradients, strict=True):
                parameter.grad = gradient
        recording.graph.replay()
        return recording.loss


def tensors_of(batch: FillBatch, sigma: Tensor, noise: Tensor) -> list[Tensor]:
    """All that differs from one micro-batch to the next on the device."""
    return [*(getattr(batch, name) for name in FillBatch.TENSORS), sigma, noise]


def with_tensors(batch: FillBatch, tensors: Sequence[Tensor]) -> tuple[FillBatch, Tensor, Tensor]:
    """The reverse: the batch with other tensors, and the last two of them."""
    *of_batch, sigma, noise = tensors
    return replace(batch, **dict(zip(FillBatch.TENSORS, of_batch, strict=True))), sigma, noise
