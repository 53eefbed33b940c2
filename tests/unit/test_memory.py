"""The full-size model on the meta device, and what is said where it does not fit."""

import re

import pytest
import torch

from conftest import PROJECT
from tryon.config import TrainConfig
from tryon.entry import run_script
from tryon.lora import TARGET_MODULES, add_lora
from tryon.memory import check_training_fits, count_parameters, training_bytes
from tryon.models import FILL_CONFIG


def test_the_full_size_transformer_is_what_the_papers_say() -> None:
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(FILL_CONFIG)
        assert (transformer.x_embedder.in_features, transformer.proj_out.out_features) == (384, 64)
        add_lora(transformer.requires_grad_(False), 16, 16, seed=0)
    adapted = [name for name, module in transformer.named_modules() if hasattr(module, "lora_A")]
    assert len(adapted) == 380 == 19 * 12 + 38 * 4
    assert {next(end for end in TARGET_MODULES if name.endswith(end)) for name in adapted} == set(TARGET_MODULES)


@pytest.mark.parametrize(("rank", "million"), [(16, 54.2), (64, 216.7), (128, 433.3)])
def test_parameters_and_sizes_are_those_of_the_readme(rank: int, million: float) -> None:
    frozen, trained = count_parameters(FILL_CONFIG, rank)
    assert round(frozen / 1e9, 1) == 11.9
    assert round(trained / 1e6, 1) == million
    megabytes, gigabytes = trained * 4 / 1e6, training_bytes(frozen, trained, "bf16", "adamw") / 1e9
    readme = (PROJECT / "README.md").read_text()
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) M \| ([\d,]+) MB \| ([\d.]+) GB", readme, re.MULTILINE)
    stated = {int(row[0]): row[1:] for row in rows}[rank]
    assert stated == (f"{million}", f"{megabytes:,.0f}", f"{gigabytes:.1f}")


def test_the_bound_follows_precision_and_optimizer() -> None:
    assert training_bytes(100, 10, "bf16", "adamw") == 200 + 160
    assert training_bytes(100, 10, "no", "adamw8bit") == 400 + 100


def test_a_gpu_that_is_too_small_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the driver answers is made up."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (23_600_000_000, 24_000_000_000))
    words = r"rank 128 with adamw needs at least 30.7GB of GPU memory and this GPU has 23.6GB free: use a GPU with more"
    with pytest.raises(ValueError, match=words):
        check_training_fits(TrainConfig(lora_rank=128), FILL_CONFIG, torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80_000_000_000, 80_000_000_000))
    check_training_fits(TrainConfig(lora_rank=128), FILL_CONFIG, torch.device("cuda", 0))
    check_training_fits(TrainConfig(lora_rank=128), FILL_CONFIG, torch.device("cpu"))


def test_a_full_gpu_is_one_sentence(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(argv: list[str]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")

    monkeypatch.delenv("TRAIN_STATUS_DIR", raising=False)
    with pytest.raises(SystemExit, match="1"):
        run_script(fill)
    shown = capsys.readouterr().err
    assert shown.startswith("error: the GPU's memory is full (CUDA out of memory): give smaller panels")
    assert shown.count("\n") == 1
