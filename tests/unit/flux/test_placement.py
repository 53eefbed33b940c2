"""The transformer as training gets it: what it keeps, recomputes, compiles."""

import logging
from dataclasses import replace

import pytest
import torch
from peft import get_peft_model_state_dict
from torch._inductor import config as inductor
from torch._inductor.utils import fresh_cache

from tryon.config import TrainConfig
from tryon.flux.compiler import no_compiler
from tryon.flux.load import load_transformer
from tryon.flux.memory import resolved
from tryon.flux.placement import prepare_transformer
from tryon.flux.quantize import QuantizedLinear
from tryon.profiles import full, on_toy
from tryon.toy.model import ToyFolders

CPU = torch.device("cpu")


def prepared(toy: ToyFolders, **changes: object) -> tuple[torch.nn.Module, TrainConfig]:
    config = replace(on_toy(full()), lora_rank=2, lora_alpha=2, quantization="none", **changes)
    transformer = load_transformer(toy.transformer, torch.float32)
    parameters = prepare_transformer(transformer, config, CPU, None)
    assert all(each.requires_grad and each.dtype == torch.float32 for each in parameters)
    return transformer, config


def test_auto_says_what_it_chose(
    toy: ToyFolders, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO):
        transformer, _ = prepared(toy, gradient_checkpointing="auto")
    assert not transformer.is_gradient_checkpointing
    assert "no block recomputes its activations: planned" in caplog.text
    monkeypatch.setattr("tryon.flux.placement.free_before_training", lambda *of: 0)
    with caplog.at_level(logging.INFO):
        transformer, _ = prepared(toy, gradient_checkpointing="auto")
    assert transformer.is_gradient_checkpointing and "every block recomputes its activations" in caplog.text


def test_quantised_and_offloaded_blocks_keep_the_loras_keys(toy: ToyFolders) -> None:
    plain, _ = prepared(toy)
    transformer, _ = prepared(toy, offload=True)
    assert get_peft_model_state_dict(transformer).keys() == get_peft_model_state_dict(plain).keys()
    config = replace(on_toy(full()), lora_rank=2, lora_alpha=2, quantization="int8", offload=True)
    transformer = load_transformer(toy.transformer, torch.float32)
    prepare_transformer(transformer, config, CPU, None)
    assert any(isinstance(module, QuantizedLinear) for module in transformer.modules())
    assert get_peft_model_state_dict(transformer).keys() == get_peft_model_state_dict(plain).keys()


def test_where_no_compiler_is_found_it_is_said_and_training_goes_on(
    toy: ToyFolders, caplog: pytest.LogCaptureFixture
) -> None:
    torch.compiler.reset()
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}), fresh_cache():
        assert "no-such-compiler" in (no_compiler(CPU) or "")
        config = resolved(replace(on_toy(full()), lora_rank=2, lora_alpha=2, compile=True), CPU)
    assert not config.compile
    transformer = load_transformer(toy.transformer, torch.float32)
    prepare_transformer(transformer, config, CPU, None)
    assert "nothing is compiled, which is slower, as it cannot be done here: " in caplog.text
    assert "forward" not in vars(transformer.transformer_blocks[0])
