"""FLUX's blocks as LoRA training runs them: diffusers' own layers, parameters and numbers, in another order.

Query, key, value (and the MLP's first layer in a single block) read one input: one matrix product serves the A of all
their LoRAs, and another one their frozen weights, where these are plain and stored one after the other. A LoRA's scale
is a factor of its A: no gradient as large as an output is multiplied by it, and kept twice even where it is 1. Rotary
embedding is written so that a compiler makes one pass over memory of it and the normalisation before it.

The gradient of attention's output always lies in one piece of memory. In diffusers' blocks it does in the double ones
and does not in the single ones, where it is a slice of a wider tensor; PyTorch 2.11 keeps cuDNN's plan of the backward
pass for either without asking which, and the gradients of the other are then garbage, or the access illegal
(benchmarks/log.md).
"""

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.attention import FeedForward
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers import transformer_flux
from diffusers.models.transformers.transformer_flux import FluxAttention
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn import functional as F

from tryon.config import TrainConfig
from tryon.flux.lora_casts import cast_together


def use_training_blocks(transformer: FluxTransformer2DModel) -> None:
    """Puts a block of this module in the place of each of diffusers', around its own layers: names, and so state
    dictionaries, stay as they are. Its layers must have their LoRA, and be quantised where they are to be."""
    double, single = transformer.transformer_blocks, transformer.single_transformer_blocks
    for blocks, kind in ((double, DoubleBlock), (single, SingleBlock)):
        for index, block in enumerate(blocks):
            blocks[index] = kind(block)


def shares_inputs(config: TrainConfig) -> bool:
    """Whether layers that read one input can be one product. config.quantization must be resolved."""
    return config.quantization == "none" and not config.offload and not config.lora_dropout


def share_inputs(transformer: FluxTransformer2DModel) -> None:
    """Stores the frozen weights of layers that read one input one after the other.

    They must be plain, without dropout in their LoRAs, and lie where they stay.
    """
    for block in (*transformer.transformer_blocks, *transformer.single_transformer_blocks):
        for branch in block.branches():
            branch.join()


def casts_lora(config: TrainConfig) -> bool:
    """Whether the LoRA's weights are cast all at once; with dropout, which makes inputs differ, each layer does it."""
    return config.mixed_precision == "bf16" and not config.lora_dropout


def cast_lora_together(transformer: FluxTransformer2DModel, dtype: torch.dtype) -> None:
    """Gives the blocks, in every forward pass, the LoRA's weights in the dtype, which is autocast's, cast all at once.

    The LoRA must have no dropout, and its weights must be where they stay.
    """
    branches = branches_of(transformer)
    downs, ups = zip(*(branch.lora() for branch in branches), strict=True)
    each_up = [[up] for of_branch in ups for up in of_branch]
    factors = [*(branch.scaling for branch in branches), *(1.0 for _ in each_up)]

    def cast(*_: object) -> None:
        casts = iter(cast_together([*downs, *each_up], factors, dtype))
        for branch in branches:
            branch.down = next(casts)
        for branch in branches:
            branch.ups = [next(casts) for _ in branch.trained]

    transformer.transformer_blocks[0].register_forward_pre_hook(cast)


def branches_of(module: nn.Module) -> list["Branches"]:
    """Those of which a layer has a LoRA."""
    return [each for each in module.modules() if isinstance(each, Branches) and each.trained]


class Branches(nn.Module):
    """Layers that read one input, x [..., in] -> the output [..., out] of each; all, some or none have a LoRA. They are
    the block's: this module has no parameters of its own."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.layers = layers  # a tuple, which registers nothing
        self.trained = tuple(index for index, layer in enumerate(layers) if isinstance(layer, LoraLayer))
        self.down: Tensor | None = None  # the A of all LoRAs, scaled, and the B of each, where they have been cast
        self.ups: list[Tensor] | None = None

    def lora(self) -> tuple[list[Tensor], list[Tensor]]:
        """A [rank, in] and B [out, rank] of each layer that has them."""
        downs = [self.layers[index].lora_A["default"].weight for index in self.trained]
        return downs, [self.layers[index].lora_B["default"].weight for index in self.trained]

    @property
    def scaling(self) -> float:
        """The factor of the LoRAs, alpha / rank."""
        return self.layers[self.trained[0]].scaling["default"]

    def join(self) -> None:
        """Stores the layers' frozen weights one after the other; each layer keeps its part as a view."""
        bases = [base_of(layer) for layer in self.layers]
        self.sizes = [base.out_features for base in bases]
        self.register_buffer("weight", torch.cat([base.weight.data for base in bases]), persistent=False)
        self.register_buffer("bias", torch.cat([base.bias.data for base in bases]), persistent=False)
        for base, weight, bias in zip(bases, self.weight.split(self.sizes), self.bias.split(self.sizes), strict=True):
            base.weight.data, base.bias.data = weight, bias

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.layers[self.trained[0]] if self.trained else None
        if first is not None and not isinstance(first.lora_dropout["default"], nn.Identity):
            # Each leaves out others of its inputs.
            return [layer(x) for layer in self.layers]
        if hasattr(self, "weight"):
            outs = list(F.linear(x, self.weight, self.bias).split(self.sizes, dim=-1))
        else:
            outs = [base_of(layer)(x) for layer in self.layers]
        if first is None or first.disable_adapters:
            return outs
        down, ups = self.down, self.ups
        if down is None or ups is None:
            downs, ups = self.lora()
            down = self.scaling * torch.cat(downs)
        inner = F.linear(x, down).chunk(len(ups), dim=-1)
        for index, each, up in zip(self.trained, inner, ups, strict=True):
            outs[index] = outs[index] + F.linear(each, up)
        return outs


def base_of(layer: nn.Module) -> nn.Module:
    """The frozen layer, without its LoRA where it has one."""
    return layer.base_layer if isinstance(layer, LoraLayer) else layer


class SingleBlock(transformer_flux.FluxSingleTransformerBlock):
    """As diffusers' block, around whose layers it is made: image [B, L, D] and text [B, T, D] -> text and image."""

    def __init__(self, block: transformer_flux.FluxSingleTransformerBlock):
        adopt(self, block)
        self.shared = Branches(self.attn.to_q, self.attn.to_k, self.attn.to_v, self.proj_mlp)

    def branches(self) -> list[Branches]:
        return [self.shared]

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor], joint_attention_kwargs: None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        length, attn = encoder_hidden_states.shape[1], self.attn
        joint = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        normed, gate = self.norm(joint, emb=temb)
        query, key, value, mlp = self.shared(normed)
        query = rotated(split_heads(query, attn), attn.norm_q, *image_rotary_emb)
        key = rotated(split_heads(key, attn), attn.norm_k, *image_rotary_emb)
        out = attention(attn, query, key, split_heads(value, attn))
        joint = joint + gate[:, None] * self.proj_out(torch.cat([out, self.act_mlp(mlp)], dim=2))
        return joint[:, :length], joint[:, length:]


class DoubleBlock(transformer_flux.FluxTransformerBlock):
    """As diffusers' block, around whose layers it is made: image [B, L, D] and text [B, T, D] -> text and image."""

    def __init__(self, block: transformer_flux.FluxTransformerBlock):
        adopt(self, block)
        self.shared = Branches(self.attn.to_q, self.attn.to_k, self.attn.to_v)
        self.shared_context = Branches(self.attn.add_q_proj, self.attn.add_k_proj, self.attn.add_v_proj)
        self.out, self.out_context = Branches(self.attn.to_out[0]), Branches(self.attn.to_add_out)
        self.mlp, self.mlp_context = Mlp(self.ff), Mlp(self.ff_context)

    def branches(self) -> list[Branches]:
        return [self.shared, self.shared_context]

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, temb: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor], joint_attention_kwargs: None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        image, text, attn = hidden_states, encoder_hidden_states, self.attn
        length = text.shape[1]
        normed, gate, shift_mlp, scale_mlp, gate_mlp = self.norm1(image, emb=temb)
        normed_text, text_gate, text_shift, text_scale, text_gate_mlp = self.norm1_context(text, emb=temb)

        query, key, value = (split_heads(each, attn) for each in self.shared(normed))
        text_query, text_key, text_value = (split_heads(each, attn) for each in self.shared_context(normed_text))
        text_angles, angles = zip(*((each[:length], each[length:]) for each in image_rotary_emb), strict=True)
        text_query = rotated(text_query, attn.norm_added_q, *text_angles)
        text_key = rotated(text_key, attn.norm_added_k, *text_angles)
        query = torch.cat([text_query, rotated(query, attn.norm_q, *angles)], dim=1)
        key = torch.cat([text_key, rotated(key, attn.norm_k, *angles)], dim=1)
        out = attention(attn, query, key, torch.cat([text_value, value], dim=1))

        (image_out,), (text_out,) = self.out(out[:, length:]), self.out_context(out[:, :length])
        image = image + gate[:, None] * image_out
        text = text + text_gate[:, None] * text_out
        normed = self.norm2(image) * (1 + scale_mlp[:, None]) + shift_mlp[:, None]
        image = image + gate_mlp[:, None] * self.mlp(normed)
        normed_text = self.norm2_context(text) * (1 + text_scale[:, None]) + text_shift[:, None]
        text = text + text_gate_mlp[:, None] * self.mlp_context(normed_text)
        return text, image


class Mlp(nn.Module):
    """A double block's MLP, x [..., D] -> [..., D]. Its layers are the block's."""

    def __init__(self, layers: FeedForward):
        super().__init__()
        gelu, _, last = layers.net  # between them a dropout of nothing
        self.first, self.last, self.approximate = Branches(gelu.proj), Branches(last), gelu.approximate

    def forward(self, x: Tensor) -> Tensor:
        (hidden,) = self.first(x)
        (out,) = self.last(F.gelu(hidden, approximate=self.approximate))
        return out


def adopt(new: nn.Module, block: nn.Module) -> None:
    """Makes the block's children those of a module whose own constructor would make others."""
    nn.Module.__init__(new)
    new.train(block.training)
    for name, child in block.named_children():
        new.add_module(name, child)


def split_heads(x: Tensor, attn: FluxAttention) -> Tensor:
    """[B, N, D] -> [B, N, heads, head_dim]"""
    return x.unflatten(-1, (-1, attn.head_dim))


def rotated(x: Tensor, norm: nn.RMSNorm, cos: Tensor, sin: Tensor) -> Tensor:
    """RMS-normalised in float32 and turned by rotary embedding: x [B, N, heads, head_dim], cos and sin [N, head_dim].

    Neighbours (a, b) become (a cos - b sin, b cos + a sin). In x's dtype, or autocast's, as attention wants it.
    """
    dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
    numbers = x.float()
    scale = torch.rsqrt(numbers.square().mean(dim=-1, keepdim=True) + norm.eps)
    numbers = numbers * scale * norm.weight.float()
    pairs = numbers.unflatten(-1, (-1, 2))
    turned = torch.stack([-pairs[..., 1], pairs[..., 0]], dim=-1).flatten(-2)
    return (numbers * cos[:, None] + turned * sin[:, None]).to(dtype)


def attention(attn: FluxAttention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """[B, N, heads, head_dim] each -> [B, N, D], by the kernel that was chosen for the transformer."""
    out = dispatch_attention_fn(query, key, value, backend=attn.processor._attention_backend)
    return ContiguousGradient.apply(out).flatten(2, 3)


class ContiguousGradient(torch.autograd.Function):
    """The identity, whose gradient lies in one piece of memory."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad.contiguous()
