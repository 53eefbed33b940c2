"""A run's checkpoints averaged into one LoRA."""

import json
import shlex
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from peft import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from tryon import merge
from tryon.files import write_manifest
from tryon.flux.lora_header import PREFIX, read_facts, read_header
from tryon.inference.pipeline import build_pipeline
from tryon.runs import LORA_FILE, checkpoints, find_lora, lora_file, lora_name, run_of
from tryon.toy.model import scheduler


@pytest.fixture
def trained(run: Path, tmp_path: Path) -> Path:
    """A run with checkpoints of steps 1, 2 and 3, whose weights are 1, 2 and 6 times those of the first."""
    file, copy = lora_file(run / "checkpoint-1"), tmp_path / "a run"
    for step, factor in ((1, 1), (2, 2), (3, 6)):
        checkpoint = shutil.copytree(run / "checkpoint-1", copy / f"checkpoint-{step}")
        header = {**read_header(file), "tryon_lora": json.dumps(asdict(replace(read_facts(file), step=step)))}
        save_file({key: factor * tensor for key, tensor in load_file(file).items()}, lora_file(checkpoint), header)
        write_manifest(checkpoint)
    return copy


def test_the_mean_of_checkpoints_loads_in_plain_diffusers_and_is_no_checkpoint(
    trained: Path, transformer: FluxTransformer2DModel, vae: AutoencoderKL, capsys: pytest.CaptureFixture
) -> None:
    merge.main([str(trained)])
    merged = trained / "merged-1-3"
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"the mean of checkpoint-1, checkpoint-2, checkpoint-3: {lora_file(merged)}"
    scored = [str(trained / f"checkpoint-{step}") for step in (1, 2, 3)]
    command = shlex.split(said[1].removeprefix("score it beside them: "))
    assert command == ["python", "evaluate_lora.py", "--lora", *scored, str(merged)]
    assert merged not in checkpoints(trained) and find_lora(str(trained)) == lora_file(trained / "checkpoint-3")
    assert find_lora(str(merged)) == lora_file(merged) and run_of(lora_file(merged)) == trained
    assert lora_name(lora_file(merged)) == "a run, merged-1-3"
    assert read_header(lora_file(merged)) == read_header(lora_file(trained / "checkpoint-3"))

    first = load_file(lora_file(trained / "checkpoint-1"))
    build_pipeline(transformer, vae, scheduler()).load_lora_weights(merged / "transformer", weight_name=LORA_FILE)
    loaded = get_peft_model_state_dict(transformer, adapter_name="default_0")
    assert {f"{PREFIX}{key}" for key in loaded} == first.keys()
    for key, tensor in loaded.items():
        torch.testing.assert_close(tensor, 3 * first[f"{PREFIX}{key}"])


def test_the_newest_are_averaged_where_so_many_are_whole(trained: Path, run: Path) -> None:
    merge.main([str(trained), "--last", "2"])
    first, mean = load_file(lora_file(trained / "checkpoint-1")), load_file(lora_file(trained / "merged-2-3"))
    for key, tensor in mean.items():
        torch.testing.assert_close(tensor, 4 * first[key])
    with pytest.raises(ValueError, match="has 3 checkpoints of the 4 to average: name another run"):
        merge.main([str(trained), "--last", "4"])
    with pytest.raises(ValueError, match="has 1 checkpoint of the 2 to average"):
        merge.main([str(run)])
    lora_file(trained / "checkpoint-2").write_bytes(lora_file(trained / "checkpoint-1").read_bytes())
    with pytest.raises(ValueError, match=r"checkpoint-2/.* is damaged: take another checkpoint"):
        merge.main([str(trained)])
