"""LoRAs in the formats of other tools: read as plain diffusers reads them, or refused by the format's name."""

from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import save_file
from torch import Tensor

from test_lora import disturb, predict
from tryon.flux.load import load_transformer
from tryon.flux.lora import add_lora, attach_lora, lora_weights, read_lora
from tryon.inference.pipeline import build_pipeline
from tryon.toy.model import ToyFolders, scheduler

RANK = 4
# Layers of a double block that have a key of their own in kohya's names, and in diffusers'.
KOHYA = {
    "img_attn_proj": "attn.to_out.0", "img_mlp_0": "ff.net.0.proj", "img_mlp_2": "ff.net.2",
    "txt_attn_proj": "attn.to_add_out", "txt_mlp_0": "ff_context.net.0.proj", "txt_mlp_2": "ff_context.net.2",
}  # fmt: skip
QKV = {
    "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
ATTENTION = ("to_out.0", "to_add_out", *(name.removeprefix("attn.") for names in QKV.values() for name in names))


@pytest.fixture
def state(transformer: FluxTransformer2DModel) -> dict[str, Tensor]:
    """A LoRA's weights under diffusers' keys."""
    disturb(add_lora(transformer, RANK, RANK, seed=0))
    return lora_weights(transformer)


def kohya(state: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The double blocks under the names of kohya's scripts, whose q, k and v are one layer."""
    found = {}

    def add(name: str, down: Tensor, up: Tensor) -> None:
        found[f"{name}.lora_down.weight"], found[f"{name}.lora_up.weight"] = down.contiguous(), up.contiguous()
        found[f"{name}.alpha"] = torch.tensor(alpha)

    for block in range(2):
        ours, theirs = f"transformer.transformer_blocks.{block}", f"lora_unet_double_blocks_{block}"
        for name, layer in KOHYA.items():
            add(f"{theirs}_{name}", *(state[f"{ours}.{layer}.lora_{side}.weight"] for side in "AB"))
        for name, layers in QKV.items():
            a, b = ([state[f"{ours}.{layer}.lora_{side}.weight"] for layer in layers] for side in "AB")
            add(f"{theirs}_{name}", torch.cat(a), torch.block_diag(*b))
        width = a[0].shape[1]
        add(f"lora_unet_single_blocks_{block}_linear2", torch.full((2, 5 * width), 0.1), torch.full((width, 2), 0.1))
    return found


def comfyui(state: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The model's own names, as ComfyUI has them."""
    found = {}
    for key, tensor in kohya(state, alpha).items():
        layer, _, end = key.partition(".")
        for kind in ("double_blocks", "single_blocks"):
            for old, new in ((f"lora_unet_{kind}_", f"diffusion_model.{kind}."), ("_img_", ".img_"), ("_txt_", ".txt_"),
                             ("_attn_", "_attn."), ("_mlp_", "_mlp."), ("_linear", ".linear")):  # fmt: skip
                layer = layer.replace(old, new)
        found[f"{layer}.{end}"] = tensor
    return found


def onetrainer(state: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """diffusers' names with underscores: the attention layers, and an x_embedder of a FLUX without Fill's channels."""
    found = {"lora_transformer_x_embedder.lora_down.weight": torch.full((2, 64), 0.1),
             "lora_transformer_x_embedder.lora_up.weight": torch.full((224, 2), 0.1),
             "lora_transformer_x_embedder.alpha": torch.tensor(2 * alpha)}  # fmt: skip
    for key, tensor in state.items():
        layer, side = key.removeprefix("transformer.").removesuffix(".weight").split(".lora_")
        if layer.split(".attn.")[-1] in ATTENTION:
            name = f"lora_transformer_{layer.replace('.', '_')}"
            found[f"{name}.lora_{'down' if side == 'A' else 'up'}.weight"] = tensor
            found[f"{name}.alpha"] = torch.tensor(alpha)
    return found


def xlabs(state: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Attention layers alone, without alphas; q, k and v share what goes down."""
    found = {}
    for block in range(2):
        ours, theirs = f"transformer.transformer_blocks.{block}", f"double_blocks.{block}.processor"
        for number, (proj, (q, *_)) in enumerate(
            zip(("attn.to_out.0", "attn.to_add_out"), QKV.values(), strict=True), 1
        ):
            for side, end in zip("AB", ("down", "up"), strict=True):
                found[f"{theirs}.proj_lora{number}.{end}.weight"] = state[f"{ours}.{proj}.lora_{side}.weight"]
                one = state[f"{ours}.{q}.lora_{side}.weight"]
                found[f"{theirs}.qkv_lora{number}.{end}.weight"] = (
                    one if side == "A" else torch.cat([one, -one, 2 * one])
                )
    return found


def diffusers(state: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """With alphas as tensors, two of them others than the rest."""
    layers = sorted({key.split(".lora_")[0] for key in state})
    alphas = {f"{layer}.alpha": torch.tensor(alpha + (number < 2)) for number, layer in enumerate(layers)}
    return state | alphas


def downs_and_ups(state: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    return {key.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): each for key, each in state.items()}


@pytest.mark.parametrize("layout", [kohya, comfyui, onetrainer, xlabs, diffusers, downs_and_ups])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_plain_diffusers_loads_is_loaded_to_the_bit(
    layout, dtype: torch.dtype, toy: ToyFolders, vae, state: dict[str, Tensor], tmp_path: Path
) -> None:
    file = tmp_path / "other.safetensors"
    save_file({key: tensor.to(dtype) for key, tensor in layout(state, 7.0).items()}, file)
    plain, ours = (load_transformer(toy.transformer, torch.float32) for _ in range(2))
    without = predict(ours, vae)
    build_pipeline(plain, vae, scheduler()).load_lora_weights(tmp_path, weight_name=file.name)
    attach_lora(ours, file, 1.0)
    assert torch.equal(predict(ours, vae), predict(plain, vae))
    assert not torch.equal(predict(ours, vae), without)


@pytest.mark.parametrize("layout", [kohya, comfyui, onetrainer])
def test_an_alpha_is_a_strength(layout, toy: ToyFolders, vae, state: dict[str, Tensor], tmp_path: Path) -> None:
    for alpha in (2.0, 4.0):
        save_file(layout(state, alpha), tmp_path / f"{alpha:g}.safetensors")
    weak, strong = (load_transformer(toy.transformer, torch.float32) for _ in range(2))
    attach_lora(weak, tmp_path / "4.safetensors", 0.5)
    attach_lora(strong, tmp_path / "2.safetensors", 1.0)
    torch.testing.assert_close(predict(weak, vae), predict(strong, vae))


def test_alphas_that_diffusers_overlooks_are_refused(
    transformer: FluxTransformer2DModel, state: dict[str, Tensor], tmp_path: Path
) -> None:
    transformer.unload_lora()
    save_file(downs_and_ups(diffusers(state, 7.0), 7.0), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"40 of its 120 keys are not used \(transformer\.\S+\.alpha\)"):
        attach_lora(transformer, tmp_path / "other.safetensors", 1.0)


LAYER, DOWN_UP = "lora_unet_double_blocks_0_img_mlp_0", ("lora_down.weight", "lora_up.weight")


@pytest.mark.parametrize(
    ("layer", "ends", "refusal"),
    [
        (LAYER, ("lokr_w1", "alpha"), "the format of LoKr: diffusers does not read 2 of its 2 tensors"),
        (LAYER, ("hada_w1_a",), "the format of LoHa"),
        (LAYER, (*DOWN_UP, "dora_scale"), "the format of DoRA"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", DOWN_UP, "the format of LoRAs with a text encoder"),
        ("text_encoder.text_model.mlp.fc1", ("lora_A.weight",), "the format of LoRAs with a text encoder"),
        ("double_blocks.0.img_attn.norm.query_norm", ("scale",), "the format of FLUX control LoRAs"),
        ("lora_unet_img_in", DOWN_UP, "the format of kohya: diffusers does not read 2 of its 2 tensors"),
        ("lora_unet_down_blocks_0_conv", DOWN_UP, "the format of kohya: diffusers does not read"),
        (
            "lora_transformer_transformer_blocks_0_ff_net_2",
            DOWN_UP,
            "the format of OneTrainer: diffusers does not read",
        ),
        ("diffusion_model.double_blocks.0.img_mlp.0", ("lora_A.weight",), "the format of ComfyUI: diffusers does not"),
        ("blocks.0", ("weight",), "the format of an unknown tool"),
        ("lora_unet_single_blocks_0_linear1", DOWN_UP, "the format of kohya, and diffusers cannot convert it"),
        ("lora_unet_double_blocks_0_ff", DOWN_UP, "the format of kohya, and diffusers cannot convert it"),
        ("base_model.model.double_blocks.0.img_mlp.0", ("lora_A.weight", "lora_B.weight"), "of fal, and diffusers"),
    ],
)
def test_what_diffusers_does_not_load_whole_is_refused_by_name(
    layer: str, ends: tuple[str, ...], refusal: str, tmp_path: Path
) -> None:
    save_file({f"{layer}.{end}": torch.ones(4, 4) for end in ends}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=refusal):
        read_lora(tmp_path / "other.safetensors")


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("layout", [kohya, diffusers])
def test_an_alpha_that_is_no_number_above_0_is_refused(
    alpha: float, layout, state: dict[str, Tensor], tmp_path: Path
) -> None:
    odd = layout(state, 1.0)
    odd[max(key for key in odd if key.endswith(".alpha"))].fill_(alpha)
    save_file(odd, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match="not finite|has an alpha that is no number above 0"):
        read_lora(tmp_path / "odd.safetensors")
