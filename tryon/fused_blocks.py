"""FLUX's blocks as LoRA training wants them: layers that share an input are one matrix product, and a compiler can fuse
what lies between two products into one pass over memory. Numbers, parameters and their names are diffusers' own.

Query, key, value (and the MLP's first layer in a single block) read one input. Their frozen weights are stored one after
the other, so that one product serves them all, and so do the A of their LoRAs. Rotary embedding is written so that it
reads only what the normalisation before it reads.
"""

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_flux import (
    FluxAttention,
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from torch import Tensor, nn
from torch.nn import functional as F


def fuse_blocks(transformer: FluxTransformer2DModel) -> None:
    """Puts a fused block in the place of each block, around its own layers: state dictionaries stay as they are.

    Frozen weights must be plain and lie where they stay; a LoRA without dropout must be there.
    """
    for blocks, fused in (
        (transformer.transformer_blocks, FusedDoubleBlock),
        (transformer.single_transformer_blocks, FusedSingleBlock),
    ):
        for index, block in enumerate(blocks):
            blocks[index] = fused(block)


class SharedInput(nn.Module):
    """LoRA layers that read one input, x [..., in] -> the output [..., out] of each. Owns no parameters."""

    def __init__(self, layers: list[nn.Module]):
        super().__init__()
        self.layers = [layers]  # in a list of lists: the block registers them already
        weight = torch.cat([layer.base_layer.weight.data for layer in layers])
        bias = torch.cat([layer.base_layer.bias.data for layer in layers])
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("bias", bias, persistent=False)
        self.sizes = [layer.base_layer.out_features for layer in layers]
        for layer, part, numbers in zip(layers, weight.split(self.sizes), bias.split(self.sizes), strict=True):
            layer.base_layer.weight.data, layer.base_layer.bias.data = part, numbers

    def forward(self, x: Tensor) -> list[Tensor]:
        (layers,) = self.layers
        down = torch.cat([layer.lora_A["default"].weight for layer in layers])
        outs = F.linear(x, self.weight, self.bias).split(self.sizes, dim=-1)
        inner = F.linear(x, down).chunk(len(layers), dim=-1)
        return [
            out + layer.scaling["default"] * F.linear(each, layer.lora_B["default"].weight)
            for out, each, layer in zip(outs, inner, layers, strict=True)
        ]


class FusedSingleBlock(FluxSingleTransformerBlock):
    def __init__(self, block: FluxSingleTransformerBlock):
        nn.Module.__init__(self)
        for name, child in block.named_children():
            self.add_module(name, child)
        attn = self.attn
        self.shared = SharedInput([attn.to_q, attn.to_k, attn.to_v, self.proj_mlp])

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor],
        joint_attention_kwargs: None = None,
    ) -> tuple[Tensor, Tensor]:
        """As FluxSingleTransformerBlock: image [B, L, D] and text [B, T, D] -> text and image."""
        text, attn = encoder_hidden_states.shape[1], self.attn
        joint = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        normed, gate = self.norm(joint, emb=temb)
        query, key, value, mlp = self.shared(normed)
        query = rotated(heads(query, attn), attn.norm_q, *image_rotary_emb)
        key = rotated(heads(key, attn), attn.norm_k, *image_rotary_emb)
        out = attention(attn, query, key, heads(value, attn))
        out = self.proj_out(torch.cat([out, self.act_mlp(mlp)], dim=2))
        joint = joint + gate[:, None] * out
        return joint[:, :text], joint[:, text:]


class FusedDoubleBlock(FluxTransformerBlock):
    def __init__(self, block: FluxTransformerBlock):
        nn.Module.__init__(self)
        for name, child in block.named_children():
            self.add_module(name, child)
        attn = self.attn
        self.shared = SharedInput([attn.to_q, attn.to_k, attn.to_v])
        self.shared_context = SharedInput([attn.add_q_proj, attn.add_k_proj, attn.add_v_proj])

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: tuple[Tensor, Tensor],
        joint_attention_kwargs: None = None,
    ) -> tuple[Tensor, Tensor]:
        """As FluxTransformerBlock: image [B, L, D] and text [B, T, D] -> text and image."""
        image, text, attn = hidden_states, encoder_hidden_states, self.attn
        length = text.shape[1]
        normed, gate, shift_mlp, scale_mlp, gate_mlp = self.norm1(image, emb=temb)
        normed_text, text_gate, text_shift, text_scale, text_gate_mlp = self.norm1_context(text, emb=temb)

        query, key, value = (heads(each, attn) for each in self.shared(normed))
        text_query, text_key, text_value = (heads(each, attn) for each in self.shared_context(normed_text))
        text_angles, angles = zip(*((each[:length], each[length:]) for each in image_rotary_emb), strict=True)
        query = torch.cat(
            [rotated(text_query, attn.norm_added_q, *text_angles), rotated(query, attn.norm_q, *angles)], dim=1
        )
        key = torch.cat([rotated(text_key, attn.norm_added_k, *text_angles), rotated(key, attn.norm_k, *angles)], dim=1)
        out = attention(attn, query, key, torch.cat([text_value, value], dim=1))

        image = image + gate[:, None] * attn.to_out[0](out[:, length:])
        text = text + text_gate[:, None] * attn.to_add_out(out[:, :length])
        image = image + gate_mlp[:, None] * self.ff(self.norm2(image) * (1 + scale_mlp[:, None]) + shift_mlp[:, None])
        normed_text = self.norm2_context(text) * (1 + text_scale[:, None]) + text_shift[:, None]
        text = text + text_gate_mlp[:, None] * self.ff_context(normed_text)
        return text, image


def heads(x: Tensor, attn: FluxAttention) -> Tensor:
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
    """The identity, whose gradient lies in one piece of memory: cuDNN's attention reads beyond a gradient that is a
    slice of a wider tensor."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad.contiguous()
