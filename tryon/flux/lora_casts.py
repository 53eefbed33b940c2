"""A LoRA's weights in the dtype that blocks compute in: all cast at once, and their gradients cast back at once.

At full size 760 weights are trained in float32 and used in bfloat16. Cast one by one, where they are used, they are 760
launches of a kernel in the forward pass and as many in the backward pass, for which the device waits
(benchmarks/h200_2026-11-27.md).
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def cast_together(groups: Sequence[Sequence[Tensor]], factors: Sequence[float], dtype: torch.dtype) -> list[Tensor]:
    """Each group's tensors [rows, columns], times the group's factor, one below the other in one tensor of that dtype.

    All tensors have one dtype. The factor is applied in it, before the cast.
    """
    tensors = [tensor for group in groups for tensor in group]
    return list(_CastTogether.apply(dtype, [len(group) for group in groups], factors, *tensors))


class _CastTogether(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, dtype: torch.dtype, lengths: list[int], factors: Sequence[float],
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        ctx.shapes, ctx.lengths, ctx.factors, ctx.dtype = [x.shape for x in tensors], lengths, factors, tensors[0].dtype
        places, joined = _room(ctx.shapes, lengths, dtype, tensors[0].device)
        torch._foreach_copy_(places, _scaled(tensors, lengths, factors))
        return tuple(joined)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> tuple[Tensor | None, ...]:
        places, joined = _room(ctx.shapes, ctx.lengths, ctx.dtype, grads[0].device)
        torch._foreach_copy_(joined, grads)
        return None, None, None, *_scaled(places, ctx.lengths, ctx.factors)


def _room(
    shapes: Sequence[torch.Size], lengths: Sequence[int], dtype: torch.dtype, device: torch.device
) -> tuple[list[Tensor], list[Tensor]]:
    """One piece of memory for all, as views: one for each shape, and one for each group of so many of them."""
    memory = torch.empty(sum(shape.numel() for shape in shapes), dtype=dtype, device=device)
    places = [part.view(shape) for part, shape in zip(memory.split([s.numel() for s in shapes]), shapes, strict=True)]
    joined, start = [], 0
    for length in lengths:
        columns, rows = shapes[start][1], sum(shape[0] for shape in shapes[start : start + length])
        joined.append(memory.as_strided((rows, columns), (columns, 1), places[start].storage_offset()))
        start += length
    return places, joined


def _scaled(tensors: Sequence[Tensor], lengths: Sequence[int], factors: Sequence[float]) -> list[Tensor]:
    """The tensors times their group's factors."""
    each = [factor for length, factor in zip(lengths, factors, strict=True) for _ in range(length)]
    return list(tensors) if set(each) == {1.0} else torch._foreach_mul(list(tensors), each)
