"""The LoRA: changes nothing when fresh, trains alone, overfits, and loads in plain diffusers with difference 0."""

import json
import logging
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxFillPipeline, FluxTransformer2DModel
from diffusers.training_utils import _collate_lora_metadata
from peft import LoraConfig, get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from test_flow_matching import random_batch
from tryon.flux.flow_matching import UNIFORM, draw_sigma_and_noise, fill_loss, interpolate
from tryon.flux.load import load_transformer
from tryon.flux.lora import TARGET_MODULES, add_lora, attach_lora, fold_lora, load_lora, save_lora
from tryon.flux.lora_header import LoraFacts, read_facts
from tryon.flux.prompts import TRY_OFF_PROMPT
from tryon.inference.pipeline import build_pipeline
from tryon.runs import LORA_FILE, find_lora
from tryon.share import export_lora
from tryon.toy.model import ToyFolders, scheduler

FACTS = LoraFacts("base", "transformer", "fixed", 512, 768, 576, "rectangle", "full", 3)
LATER_FACTS = {"mask_offsets", "mask_parser", "num_inference_steps", "guidance_scale"}


def predict(transformer: FluxTransformer2DModel, vae) -> torch.Tensor:
    """The loss per sample: any change of the prediction shows in it."""
    batch = random_batch(transformer, vae)
    sigma, noise = draw_sigma_and_noise(batch.x0.shape[1:], UNIFORM, [(0, 0), (0, 1)])
    x_t, velocity = interpolate(batch.x0, noise, sigma)
    with torch.no_grad():
        return fill_loss(transformer, batch, x_t, velocity, sigma, 1.0)


def disturb(parameters: list[torch.nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def test_a_fresh_lora_changes_nothing_and_trains_alone(transformer: FluxTransformer2DModel, vae) -> None:
    before = predict(transformer, vae)
    parameters = add_lora(transformer, rank=4, alpha=4, seed=0)
    assert torch.equal(predict(transformer, vae), before)

    batch = random_batch(transformer, vae)
    sigma, noise = draw_sigma_and_noise(batch.x0.shape[1:], UNIFORM, [(0, 0), (0, 1)])
    x_t, velocity = interpolate(batch.x0, noise, sigma)
    fill_loss(transformer, batch, x_t, velocity, sigma, 1.0).mean().backward()
    with_gradient = {name for name, p in transformer.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, _ in transformer.named_parameters() if "lora_" in name}
    assert all(p.dtype == torch.float32 for p in parameters)


def test_every_block_is_adapted_and_the_embedders_are_not(transformer: FluxTransformer2DModel) -> None:
    add_lora(transformer, rank=4, alpha=4, seed=0)
    adapted = {name.split(".lora_A")[0] for name, _ in transformer.named_parameters() if "lora_A" in name}
    blocks, single_blocks = transformer.config.num_layers, transformer.config.num_single_layers
    assert len(adapted) == 12 * blocks + 4 * single_blocks
    assert not [name for name in adapted if "embedder" in name or name == "proj_out"]
    assert all(any(name.endswith(target) for name in adapted) for target in TARGET_MODULES["all"])


def test_seed_decides_the_first_weights_without_touching_the_global_state(toy: ToyFolders) -> None:
    def first(seed: int) -> torch.Tensor:
        return add_lora(load_transformer(toy.transformer, torch.float32), 4, 4, seed)[0].detach()

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(first(0), first(0))
    assert torch.equal(torch.rand(1), expected)
    assert not torch.equal(first(0), first(1))


def test_one_batch_can_be_overfitted(transformer: FluxTransformer2DModel, vae) -> None:
    parameters = add_lora(transformer, rank=16, alpha=16, seed=0)
    batch = random_batch(transformer, vae)
    sigma, noise = draw_sigma_and_noise(batch.x0.shape[1:], UNIFORM, [(0, 0), (0, 1)])
    x_t, velocity = interpolate(batch.x0, noise, sigma)
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses = []
    for _ in range(150):
        loss = fill_loss(transformer, batch, x_t, velocity, sigma, 1.0).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if losses[-1] < 0.2 * losses[0]:
            break
    assert losses[-1] < 0.2 * losses[0], losses


@pytest.mark.parametrize(
    ("alpha", "targets", "blocks", "layers"),
    [
        (4, "all", "both", (12, 4)),
        (9, "all", "both", (12, 4)),
        (4, "attention", "both", (4, 3)),
        (4, "attention_and_context", "single", (0, 3)),
        (9, "all", "double", (12, 0)),
    ],
)
def test_a_saved_lora_loads_in_plain_diffusers(
    alpha: int, targets: str, blocks: str, layers: tuple[int, int], toy: ToyFolders,
    transformer: FluxTransformer2DModel, vae, tmp_path: Path,
) -> None:  # fmt: skip
    """layers: how many of a double and of a single block have one."""
    disturb(add_lora(transformer, 4, alpha, seed=0, targets=targets, blocks=blocks))
    adapted = [name for name, _ in transformer.named_parameters() if "lora_A" in name]
    double = sum(name.startswith("transformer_blocks.") for name in adapted)
    numbers = transformer.config.num_layers, transformer.config.num_single_layers
    assert (double, len(adapted) - double) == tuple(each * number for each, number in zip(layers, numbers, strict=True))
    save_lora(tmp_path, transformer, FACTS)
    expected = predict(transformer, vae)

    plain = load_transformer(toy.transformer, torch.float32)
    assert not torch.equal(predict(plain, vae), expected)
    build_pipeline(plain, vae, scheduler()).load_lora_weights(tmp_path, weight_name=LORA_FILE)
    assert torch.equal(predict(plain, vae), expected)
    ours = load_transformer(toy.transformer, torch.float32)
    attach_lora(ours, tmp_path / LORA_FILE, 1.0)
    assert torch.equal(predict(ours, vae), expected)


def test_an_exported_lora_needs_no_alpha(toy: ToyFolders, transformer: FluxTransformer2DModel, vae, tmp_path) -> None:
    """ComfyUI knows alpha from tensors named `<module>.alpha` alone; without them it takes it for the rank."""
    disturb(add_lora(transformer, rank=4, alpha=9, seed=0))
    save_lora(tmp_path, transformer, FACTS)
    expected = predict(transformer, vae)
    export_lora(tmp_path / LORA_FILE, tmp_path / "exported.safetensors")
    assert read_facts(tmp_path / "exported.safetensors") == FACTS

    for metadata in ("kept", "lost"):
        plain, file = load_transformer(toy.transformer, torch.float32), tmp_path / "exported.safetensors"
        if metadata == "lost":
            save_file(load_file(file), file)
        build_pipeline(plain, vae, scheduler()).load_lora_weights(tmp_path, weight_name=file.name)
        torch.testing.assert_close(predict(plain, vae), expected, rtol=1e-5, atol=1e-6)


def test_an_exported_lora_has_its_alphas_as_tensors(toy: ToyFolders, transformer, vae, tmp_path: Path) -> None:
    """For ComfyUI: nothing is rounded, plain diffusers reads them too, and so do we, also to start from."""
    disturb(add_lora(transformer, rank=4, alpha=9, seed=0))
    save_lora(tmp_path, transformer, FACTS)
    expected, file = predict(transformer, vae), tmp_path / "exported.safetensors"
    export_lora(tmp_path / LORA_FILE, file, "comfyui")
    assert read_facts(file) == FACTS
    own, state = load_file(tmp_path / LORA_FILE), load_file(file)
    layers = {key.split(".lora_")[0] for key in own}
    assert state.keys() == own.keys() | {f"{layer}.alpha" for layer in layers}
    assert all(torch.equal(state[key], own[key]) for key in own)
    assert all(state[f"{layer}.alpha"].item() == 9 for layer in layers)

    plain, ours, started = (load_transformer(toy.transformer, torch.float32) for _ in range(3))
    build_pipeline(plain, vae, scheduler()).load_lora_weights(tmp_path, weight_name=file.name)
    attach_lora(ours, file, 1.0)
    add_lora(started, 4, 9, seed=1)
    load_lora(started, file)
    assert all(torch.equal(predict(each, vae), expected) for each in (plain, ours, started))

    add_lora(started := load_transformer(toy.transformer, torch.float32), 4, 4, seed=1)
    with pytest.raises(ValueError, match="has rank 4 and alpha 9, this run 4 and 4: give --lora_rank 4 --lora_alpha 9"):
        load_lora(started, file)
    save_file(state | {f"{min(layers)}.alpha": torch.tensor(2.0)}, file)
    with pytest.raises(ValueError, match="has layers of different rank or alpha"):
        load_lora(started, file)
    save_file(state, file, {"lora_adapter_metadata": json.dumps({"transformer.r": 4})})
    with pytest.raises(ValueError, match="says its alphas twice"):
        attach_lora(ours, file, 1.0)


# ComfyUI's map of FLUX LoRAs in diffusers' names: `transformer.<block>.<number>.<layer>`, where lora_A and lora_B are.
COMFY_LAYERS = {
    "transformer_blocks": {
        "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj",
        "attn.to_add_out", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "norm1.linear",
        "norm1_context.linear",
    },
    "single_transformer_blocks": {"attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out", "norm.linear"},
}  # fmt: skip


def test_every_key_is_one_that_comfyui_knows(run: Path, tmp_path: Path) -> None:
    export_lora(find_lora(str(run)), tmp_path / LORA_FILE)
    state = load_file(tmp_path / LORA_FILE)
    parts = [re.fullmatch(r"transformer\.(\w+)\.\d+\.(.+)\.(lora_[AB])\.weight", key) for key in state]
    assert all(parts), list(state)
    assert all(found[2] in COMFY_LAYERS[found[1]] for found in parts)
    modules = {key.rsplit(".", 2)[0] for key in state}
    assert len(state) == 2 * len(modules), "each with its A and its B"
    assert all(state[f"{module}.lora_B.weight"].shape[1] == 4 for module in modules), "the rank, which alpha is then"


def test_the_header_is_portable(transformer: FluxTransformer2DModel, tmp_path: Path) -> None:
    add_lora(transformer, rank=4, alpha=9, seed=0)
    save_lora(tmp_path, transformer, FACTS)
    with safe_open(tmp_path / LORA_FILE, framework="pt") as file:
        metadata, keys = file.metadata(), list(file.keys())
    adapter = json.loads(metadata["lora_adapter_metadata"])
    assert adapter == {
        "transformer.r": 4,
        "transformer.lora_alpha": 9,
        "transformer.target_modules": sorted(TARGET_MODULES["all"]),
    }
    assert read_facts(tmp_path / LORA_FILE) == FACTS
    assert "try_off_prompt" not in metadata["tryon_lora"], "older versions can read it"
    both_tasks = replace(FACTS, try_off_prompt=TRY_OFF_PROMPT)
    save_lora(tmp_path / "both", transformer, both_tasks)
    assert read_facts(tmp_path / "both" / LORA_FILE) == both_tasks
    old = {name: value for name, value in json.loads(metadata["tryon_lora"]).items() if name not in LATER_FACTS}
    assert "worn_reference_share" not in old, "older versions would not know it"
    worn = replace(FACTS, worn_reference_share=0.25)
    save_lora(tmp_path / "worn", transformer, worn)
    assert read_facts(tmp_path / "worn" / LORA_FILE) == worn
    header = {**metadata, "tryon_lora": json.dumps(old)}
    save_file(load_file(tmp_path / LORA_FILE), tmp_path / "old.safetensors", header)
    assert read_facts(tmp_path / "old.safetensors") == FACTS, "what older versions wrote is still read"
    for entry in (json.dumps({**old, "of_tomorrow": 1}), "{"):
        save_file(load_file(tmp_path / LORA_FILE), tmp_path / "new.safetensors", {**metadata, "tryon_lora": entry})
        with pytest.raises(ValueError, match="says in a way that is not known here what it was trained for"):
            read_facts(tmp_path / "new.safetensors")
    assert all(key.startswith("transformer.") and key.endswith((".lora_A.weight", ".lora_B.weight")) for key in keys)


def test_loading_restores_every_weight(toy: ToyFolders, transformer: FluxTransformer2DModel, vae, tmp_path) -> None:
    disturb(add_lora(transformer, 4, 4, seed=0))
    save_lora(tmp_path, transformer, FACTS)
    other = load_transformer(toy.transformer, torch.float32)
    add_lora(other, 4, 4, seed=1)
    load_lora(other, tmp_path / LORA_FILE)
    assert torch.equal(predict(other, vae), predict(transformer, vae))


def test_a_lora_that_does_not_fit_is_refused(transformer: FluxTransformer2DModel, tmp_path: Path) -> None:
    add_lora(transformer, 4, 4, seed=0)
    save_lora(tmp_path, transformer, FACTS)
    file = tmp_path / LORA_FILE
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    state = load_file(file)

    double = {key: torch.cat([tensor, tensor], int("lora_B" in key)) for key, tensor in state.items()}
    for rank, weights, refusal in (
        (8, double, "has rank 8 and alpha 4, this run 4 and 4: give --lora_rank 8 --lora_alpha 4"),
        (8, state, "has a header that says rank 8 and weights of rank 4"),
        (float("nan"), state, "has a header with a rank or an alpha of nan"),
    ):
        header = json.dumps({**json.loads(metadata["lora_adapter_metadata"]), "transformer.r": rank})
        save_file(weights, tmp_path / "rank.safetensors", {**metadata, "lora_adapter_metadata": header})
        with pytest.raises(ValueError, match=refusal):
            load_lora(transformer, tmp_path / "rank.safetensors")

    one_less = {key: tensor for key, tensor in state.items() if "single_transformer_blocks.0.proj_mlp" not in key}
    save_file(one_less, tmp_path / "missing.safetensors", metadata)
    with pytest.raises(ValueError, match="0 of its keys are unknown and 2 are missing"):
        load_lora(transformer, tmp_path / "missing.safetensors")

    save_file({f"unet.{key}": tensor for key, tensor in state.items()}, tmp_path / "prefix.safetensors", metadata)
    with pytest.raises(ValueError, match="the format of an unknown tool: diffusers does not read 80 of its 80"):
        load_lora(transformer, tmp_path / "prefix.safetensors")

    (tmp_path / "torn.safetensors").write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        load_lora(transformer, tmp_path / "torn.safetensors")

    save_file(double, tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match="has rank 8 and alpha 8"):  # as diffusers takes it
        load_lora(transformer, tmp_path / "bare.safetensors")


def test_a_lora_of_another_width_is_refused_in_one_sentence(
    transformer: FluxTransformer2DModel,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The toy's and the full-size model's first blocks have the same keys."""
    other = FluxTransformer2DModel.from_config(
        {**transformer.config, "attention_head_dim": 64, "axes_dims_rope": (16, 24, 24)}
    )
    add_lora(other, 4, 4, seed=0)
    save_lora(tmp_path, other, FACTS)
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    refusal = r"does not fit this transformer: (\S+) has .*\[\d+, \d+\].*: give a LoRA of the same base$"
    with pytest.raises(ValueError, match=refusal) as refused:
        attach_lora(transformer, tmp_path / LORA_FILE, 1.0)
    assert "single_transformer_blocks.0.attn.to_k has an A" in str(refused.value)
    add_lora(transformer, 4, 4, seed=0)
    with pytest.raises(ValueError, match=refusal):
        load_lora(transformer, tmp_path / LORA_FILE)
    assert not caplog.records, "nor does diffusers list hundreds of layers"


def written(file: Path, name: str, state: dict[str, torch.Tensor], header: bool = True) -> Path:
    """The state beside the file, under its header or none."""
    with safe_open(file, framework="pt") as opened:
        save_file(state, file.with_name(name), opened.metadata() if header else None)
    return file.with_name(name)


@pytest.fixture
def saved(transformer: FluxTransformer2DModel, tmp_path: Path) -> Path:
    """A LoRA's file. The transformer has none any more."""
    disturb(add_lora(transformer, 4, 4, seed=0))
    save_lora(tmp_path, transformer, FACTS)
    transformer.unload_lora()
    return tmp_path / LORA_FILE


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_number_that_is_not_finite_is_refused(
    number: float, dtype: torch.dtype, saved: Path, transformer: FluxTransformer2DModel
) -> None:
    state = {key: tensor.to(dtype) for key, tensor in load_file(saved).items()}
    key = "transformer.single_transformer_blocks.1.proj_mlp.lora_B.weight"
    state[key][3, 2] = number
    file = written(saved, "odd.safetensors", state)
    refusal = rf"{file} holds numbers that are not finite, in 1 of its {len(state)} tensors \({key}\): give another"
    with pytest.raises(ValueError, match=refusal):
        attach_lora(transformer, file, 1.0)
    add_lora(transformer, 4, 4, seed=0)
    with pytest.raises(ValueError, match=refusal):
        load_lora(transformer, file)


@pytest.mark.parametrize("gone", ["single_transformer_blocks.", ".transformer_blocks.1.", "ff_context.net.2"])
def test_a_lora_without_layers_that_its_header_names_is_refused(
    gone: str, saved: Path, transformer: FluxTransformer2DModel
) -> None:
    state = load_file(saved)
    kept = {key: tensor for key, tensor in state.items() if gone not in key}
    first = min(state.keys() - kept.keys()).removeprefix("transformer.").split(".lora_")[0]
    refusal = rf"is incomplete: it lacks {(len(state) - len(kept)) // 2} layers that its header names \({first}\)"
    with pytest.raises(ValueError, match=refusal):
        attach_lora(transformer, written(saved, "half.safetensors", kept), 1.0)
    attach_lora(transformer, written(saved, "bare.safetensors", kept, header=False), 1.0)


@pytest.mark.parametrize(
    ("entry", "refusal"),
    [
        ("{", "a header that cannot be read"),
        ("[]", "a header that cannot be read"),
        ("{}", "a header that peft does not understand"),
        ('{"transformer.target_modules": ["proj_mlp"], "transformer.of_tomorrow": 1}', "understand .*of_tomorrow"),
        ('{"transformer.target_modules": "("}', "a header that peft does not understand"),
    ],
)
def test_a_header_that_is_not_understood_is_refused(
    entry: str, refusal: str, saved: Path, transformer: FluxTransformer2DModel
) -> None:
    save_file(load_file(saved), saved, {"lora_adapter_metadata": entry})
    with pytest.raises(ValueError, match=refusal):
        attach_lora(transformer, saved, 1.0)


@pytest.mark.parametrize("header", [True, False], ids=["header", "bare"])
def test_a_lora_without_weights_is_refused(header: bool, saved: Path, transformer: FluxTransformer2DModel) -> None:
    with pytest.raises(ValueError, match="holds no weights"):
        attach_lora(transformer, written(saved, "empty.safetensors", {}, header), 1.0)


@pytest.mark.parametrize("shapes", [((8, 224), (224, 4)), ((4, 1), (224, 4)), ((4, 224), (1, 4)), ((224,), (224,))])
@pytest.mark.parametrize("header", [True, False], ids=["header", "bare"])
def test_a_layer_of_another_shape_is_named(
    shapes: tuple, header: bool, saved: Path, transformer: FluxTransformer2DModel
) -> None:
    name = "transformer.transformer_blocks.0.attn.to_q"
    odd = {f"{name}.lora_{side}.weight": torch.zeros(shape) for side, shape in zip("AB", shapes, strict=True)}
    with pytest.raises(ValueError, match=f"does not fit this transformer: {name} has an A of .* 224 inputs"):
        attach_lora(transformer, written(saved, "odd.safetensors", load_file(saved) | odd, header), 1.0)


@pytest.mark.parametrize("header", [True, False], ids=["header", "bare"])
@pytest.mark.parametrize("side", ["A", "B"])
def test_an_a_without_its_b_is_refused(
    side: str, header: bool, saved: Path, transformer: FluxTransformer2DModel
) -> None:
    gone = f"transformer_blocks.0.attn.to_q.lora_{side}.weight"
    state = {key: tensor for key, tensor in load_file(saved).items() if not key.startswith(f"transformer.{gone}")}
    file = written(saved, "odd.safetensors", state, header)
    refusal = rf"is incomplete: 1 of its layers .* \(transformer.{gone.split('.lora_')[0]}\): copy or download"
    with pytest.raises(ValueError, match=refusal):
        attach_lora(transformer, file, 1.0)
    state = {key: tensor for key, tensor in load_file(saved).items() if f".lora_{side}." not in key}
    with pytest.raises(ValueError, match=f"is incomplete: {len(state)} of its layers"):
        attach_lora(transformer, written(saved, "odd.safetensors", state, header), 1.0)


ENDINGS = ["to_q", "to_k", "to_out.0"]


@pytest.mark.parametrize(
    "layers",
    [
        {"target_modules": ENDINGS},
        {"target_modules": ENDINGS, "layers_to_transform": [1], "layers_pattern": "single_transformer_blocks"},
        {"target_modules": ENDINGS, "exclude_modules": r"single_transformer_blocks\.[12]\..*"},
        {"target_modules": r".*transformer_blocks\.0\.attn\.to_.*q.*"},
        {"target_modules": [*ENDINGS, "not_in_flux"], "rank_pattern": {"to_k": 2}, "alpha_pattern": {"to_k": 3}},
        {"target_modules": "all-linear"},
    ],
    ids=["endings", "blocks", "excluded", "pattern", "unknown", "all"],
)
@pytest.mark.parametrize("header", [True, False], ids=["header", "bare"])
def test_a_lora_of_other_layers_loads_as_diffusers_saves_it(
    layers: dict, header: bool, toy: ToyFolders, transformer: FluxTransformer2DModel, vae, tmp_path: Path
) -> None:
    transformer.add_adapter(LoraConfig(r=4, lora_alpha=4, **layers))
    disturb([parameter for name, parameter in transformer.named_parameters() if "lora_" in name])
    facts = _collate_lora_metadata({"transformer": transformer}) if header else {}
    FluxFillPipeline.save_lora_weights(tmp_path, get_peft_model_state_dict(transformer), **facts)
    plain, other = (load_transformer(toy.transformer, torch.float32) for _ in range(2))
    build_pipeline(plain, vae, scheduler()).load_lora_weights(tmp_path, weight_name=LORA_FILE)
    attach_lora(other, tmp_path / LORA_FILE, 1.0)
    assert torch.equal(predict(other, vae), predict(plain, vae))


def test_a_folded_lora_leaves_no_trace_in_bf16(transformer: FluxTransformer2DModel) -> None:
    """Where subtracting what was added would leave rounded weights. Layers that no LoRA had before come along."""
    transformer.to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in transformer.state_dict().items()}
    originals: dict[torch.nn.Parameter, torch.Tensor] = {}

    def fold(targets: list[str], scale: float) -> dict[str, torch.Tensor]:
        transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, target_modules=targets, init_lora_weights=False))
        transformer.set_adapters("default", scale)
        fold_lora(transformer, originals)
        return {name: tensor.clone() for name, tensor in transformer.state_dict().items()}

    folded = fold(["attn.to_q"], 1.0)
    changed = {name for name in before if not torch.equal(folded[name], before[name])}
    assert folded.keys() == before.keys()
    assert changed == {name for name in before if name.endswith("attn.to_q.weight")}
    fold(["attn.to_q", "ff.net.2"], 1.0)
    unchanged = fold(["attn.to_k"], 0.0)
    assert all(torch.equal(unchanged[name], before[name]) for name in before)
