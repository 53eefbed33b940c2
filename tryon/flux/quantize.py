"""Frozen weights of the transformer's blocks in one byte or half a byte each, dequantised whenever they are used.

fp8 and int8 have a scale per row, weight = value * scale, so that the row's largest magnitude is the largest value
there is: 448 in e4m3 (https://arxiv.org/abs/2209.05433), 127 in int8. nf4 is QLoRA's (https://arxiv.org/abs/2305.14314):
4-bit values in blocks of 64, whose scales are themselves kept in 8 bits, 256 of them to a float32.
"""

from functools import cache
from typing import Literal

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from tryon.console import is_first_process, progress_bar

Kind = Literal["fp8", "int8", "nf4"]

FLUX_WIDTH = 3072
NF4_BLOCK = 64
NF4_BLOCKS_PER_SCALE = 256


def quantize_blocks(
    transformer: FluxTransformer2DModel, kind: Kind, device: torch.device, home: torch.device | None = None
) -> None:
    """Replaces every linear layer of the blocks, a LoRA's own aside, by a QuantizedLinear, and moves all else.

    device: where weights are quantised, layer by layer, so that it never has to hold the unquantised model.
    home: where they and everything else live afterwards, `device` if not given; the host's memory where
    `tryon.flux.offload.offload_blocks` follows.

    A LoRA is added before: peft adapts plain linear layers only. It stays as it is, and so do its keys.
    """
    home = home or device
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    with progress_bar(len(blocks), f"quantising to {kind}", is_first_process()) as bar:
        for block in blocks:
            for name, layer in list(block.named_modules()):
                if isinstance(layer, nn.Linear) and "lora_" not in name:
                    block.set_submodule(name, QuantizedLinear(layer, kind, device).to(home))
            bar.update()
    transformer.to(home)


def weight_bytes(kind: Kind) -> float:
    """Bytes that a quantised weight takes, its share of the scales included. Rows are taken to have FLUX's 3072
    weights; the longer ones need up to 0.1 % less."""
    if kind == "nf4":
        return 1 / 2 + 1 / NF4_BLOCK + 4 / (NF4_BLOCK * NF4_BLOCKS_PER_SCALE)
    return 1 + 4 / FLUX_WIDTH


class QuantizedLinear(nn.Module):
    """A frozen linear layer, x [..., in_features] -> [..., out_features], that holds its weight quantised.

    It computes in autocast's dtype where that is on, as nn.Linear does, and else in the one that the weight had.
    Weight and scales are buffers of integers, as `.to(dtype)` and peft cast whatever is floating point. peft asks the
    weight, which it knows as `qweight`, where a LoRA has to live.
    """

    def __init__(self, layer: nn.Linear, kind: Kind, device: torch.device):
        """layer: frozen, of any width; it stays as it is."""
        assert not layer.weight.requires_grad, "only what is not trained can be quantised"
        super().__init__()
        self.in_features, self.out_features, self.kind = layer.in_features, layer.out_features, kind
        self.dtype = layer.weight.dtype
        qweight, scales, block_scales = quantize(layer.weight.detach().to(device), kind)
        self.register_buffer("qweight", qweight)
        self.register_buffer("scales", scales)
        self.register_buffer("block_scales", block_scales)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().to(device, copy=True))

    def forward(self, x: Tensor) -> Tensor:
        autocast = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if autocast else self.dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        weight = self.qweight, self.scales, self.block_scales
        return _linear(x.to(dtype), *weight, bias, self.kind, self.out_features, self.in_features)


def quantize(weight: Tensor, kind: Kind) -> tuple[Tensor, Tensor, Tensor | None]:
    """weight [out, in] -> values, scales and, of nf4, the scales of its blocks.

    values: int8 [out, in], the bytes of float8_e4m3fn [out, in], or two 4-bit values in a byte.
    scales: the bits of float32 as int32, [out, 1]; of nf4 those of its scales, the last one being their offset.
    """
    if kind == "nf4":
        return _quantize_nf4(weight)
    largest = torch.finfo(torch.float8_e4m3fn).max if kind == "fp8" else torch.iinfo(torch.int8).max
    weight = weight.float()
    scales = weight.abs().amax(dim=1, keepdim=True) / largest
    scales[scales == 0] = 1  # a row of zeros
    values = weight / scales
    values = values.to(torch.float8_e4m3fn).view(torch.uint8) if kind == "fp8" else values.round().to(torch.int8)
    return values, scales.view(torch.int32), None


def dequantize(
    values: Tensor, scales: Tensor, block_scales: Tensor | None, kind: Kind, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    """The weight [out, in] = shape, from what `quantize` returned."""
    if kind == "nf4":
        return _dequantize_nf4(values, scales, block_scales, shape, dtype)
    if kind == "fp8":
        values = values.view(torch.float8_e4m3fn)
    # Both kinds of value are exact in bfloat16, and in place the product with a float32 is rounded only once.
    return values.to(dtype).mul_(scales.view(torch.float32))


def _quantize_nf4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from bitsandbytes.functional import quantize_4bit

    numbers = weight.flatten()
    blocks = nn.functional.pad(numbers, (0, -len(numbers) % NF4_BLOCK)).view(-1, NF4_BLOCK)
    values, state = quantize_4bit(blocks, blocksize=NF4_BLOCK, quant_type="nf4", compress_statistics=True)
    assert state.state2.blocksize == NF4_BLOCKS_PER_SCALE
    scales = torch.cat([state.state2.absmax, state.offset.view(1)])
    return values, scales.view(torch.int32), state.absmax


def _dequantize_nf4(
    values: Tensor, scales: Tensor, block_scales: Tensor, shape: tuple[int, int], dtype: torch.dtype
) -> Tensor:
    from bitsandbytes.functional import QuantState, dequantize_4bit

    scales = scales.view(torch.float32)
    of_scales = QuantState(
        scales[:-1], code=_dynamic_code(values.device), blocksize=NF4_BLOCKS_PER_SCALE, dtype=torch.float32
    )
    state = QuantState(
        block_scales, shape=torch.Size((len(block_scales), NF4_BLOCK)), dtype=dtype, blocksize=NF4_BLOCK,
        quant_type="nf4", offset=scales[-1], state2=of_scales,
    )  # fmt: skip
    return dequantize_4bit(values, state).flatten()[: shape[0] * shape[1]].view(shape)


@cache
def _dynamic_code(device: torch.device) -> Tensor:
    """bitsandbytes' 256 values of a scale, which it would copy to the device at every use."""
    from bitsandbytes.functional import create_dynamic_map

    return create_dynamic_map().to(device)


# Custom operators, which torch.compile does not look into: if it saw the dequantised weight, it might keep it from the
# forward to the backward pass instead of computing it again.
@torch.library.custom_op("tryon::quantized_linear", mutates_args=())
def _linear(
    x: Tensor, values: Tensor, scales: Tensor, block_scales: Tensor | None, bias: Tensor | None,
    kind: str, out_features: int, in_features: int,
) -> Tensor:  # fmt: skip
    weight = dequantize(values, scales, block_scales, kind, (out_features, in_features), x.dtype)
    out = nn.functional.linear(x.reshape(-1, in_features), weight, bias)
    return out.view(*x.shape[:-1], out_features)


@torch.library.custom_op("tryon::quantized_linear_backward", mutates_args=())
def _linear_backward(
    grad: Tensor, values: Tensor, scales: Tensor, block_scales: Tensor | None,
    kind: str, out_features: int, in_features: int,
) -> Tensor:  # fmt: skip
    weight = dequantize(values, scales, block_scales, kind, (out_features, in_features), grad.dtype)
    return (grad.reshape(-1, out_features) @ weight).view(*grad.shape[:-1], in_features)


@_linear.register_fake
def _(x, values, scales, block_scales, bias, kind, out_features, in_features):
    return x.new_empty(*x.shape[:-1], out_features)


@_linear_backward.register_fake
def _(grad, values, scales, block_scales, kind, out_features, in_features):
    return grad.new_empty(*grad.shape[:-1], in_features)


def _save_for_backward(ctx, inputs, output) -> None:
    _, values, scales, block_scales, _, *ctx.layer = inputs
    ctx.save_for_backward(values, scales, block_scales)  # not x: the weight is frozen


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _linear_backward(grad, *ctx.saved_tensors, *ctx.layer), *[None] * 7


_linear.register_autograd(_backward, setup_context=_save_for_backward)
