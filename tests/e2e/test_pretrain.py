"""The toy's pretraining, a few steps of it: all stages, going on after an interruption, and the models that result."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb
from safetensors.torch import load_file

from pretrain_toy import main, read_settings
from tryon.data.human_parser import load_parser
from tryon.flux.load import load_transformer, load_vae
from tryon.flux.packing import image_ids
from tryon.toy.examples import DrawnData
from tryon.toy.model import new_transformer, toy_model, toy_parser
from tryon.toy.pretrain.mimetic_init import mimetic_init
from tryon.toy.pretrain.vae import vae_loss

pytestmark = pytest.mark.e2e

SMALL = ("--drawings", "3", "--held_out", "1", "--vae_batch_size", "2", "--transformer_batch_size", "2", "--vae_steps",
         "7", "--transformer_steps", "2", "--parser_steps", "2", "--parser_batch_size", "2")  # fmt: skip
STEPS = {"vae": 7, "transformer": 2, "parser": 2}  # few with Muon, which takes seconds for each in bf16 on a CPU
# Where earlier versions kept a stage's state; and where they put it while a newer one took its place.
EARLIER = {"vae": "vae", "parser": ".parser.old"}


@pytest.mark.slow
def test_all_stages_and_interruptions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """In one go, drawn by other processes; and stopped by an error and by the clock: the weights are the same."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    main(["--stage", "all", "--output_dir", str(whole), *SMALL, "--drawing_processes", "2"])

    # By the clock, which is over before each stage's first step: that one is made. The transformer waits for the VAE.
    every, vae_alone = (["--stage", stage, "--output_dir", str(stopped), *SMALL] for stage in ("all", "vae"))
    assert ended_by_the_clock(every) == 124
    assert "vae: stopped at step 1 of 7, where the same command goes on" in capsys.readouterr().out
    assert written_steps(stopped) == {"vae": 1, "parser": 1}
    with pytest.raises(ValueError, match="has 6 steps left: run --stage vae to its end first"):
        read_settings(["--stage", "transformer", "--output_dir", str(stopped)])

    # The VAE by an error after a state was written.
    with monkeypatch.context() as patched, pytest.raises(InterruptedError):
        patched.setattr("tryon.toy.pretrain.vae.vae_loss", failing_after(3, vae_loss))
        main([*vae_alone, "--save_every", "3"])
    assert written_steps(stopped) == {"vae": 3, "parser": 1}
    as_earlier_versions_kept_it(stopped, "vae", 3)
    as_earlier_versions_kept_it(stopped, "parser", 1)
    main(vae_alone)
    assert gone_on_from(capsys) == {"vae": [1, 3]}

    assert ended_by_the_clock(every) == 124
    assert written_steps(stopped) == {"vae": 7, "transformer": 1, "parser": 2}
    encoded = {file: file.stat().st_mtime_ns for file in (stopped / "latents").iterdir()}
    main(every)
    assert encoded == {file: file.stat().st_mtime_ns for file in (stopped / "latents").iterdir()}
    assert gone_on_from(capsys) == {"transformer": [0, 1], "parser": [1]}
    main(every)
    assert [line.split()[1:] for line in capsys.readouterr().out.splitlines()] == [
        [f"{stage}:", "finished"] for stage in STEPS
    ]

    for stage, steps in STEPS.items():
        for folder in (whole, stopped):
            assert [path.name for path in (folder / stage).iterdir()] == [f"step-{steps}"]
        expected, found = (load_file(folder / "weights" / f"{stage}.safetensors") for folder in (whole, stopped))
        assert all(torch.equal(expected[name], found[name]) for name in expected)

    toy = toy_model(tmp_path / "cache", whole / "weights")
    loaded = {
        "vae": load_vae(toy.base, torch.float32, torch.device("cpu")),
        "transformer": load_transformer(toy.transformer, torch.float32),
        "parser": load_parser(str(toy_parser(tmp_path / "cache", whole / "weights")), None, torch.device("cpu")).model,
    }
    for stage, model in loaded.items():
        weights = load_file(whole / "weights" / f"{stage}.safetensors")
        assert all(torch.equal(tensor, weights[name].float()) for name, tensor in model.state_dict().items())
    manifest = json.loads((whole / "weights" / "manifest.json").read_text())
    assert manifest["vae.safetensors"]["measured"].keys() >= {"psnr", "psnr_inside"}
    assert manifest["transformer.safetensors"]["command"].startswith("python pretrain_toy.py --stage all")

    with pytest.raises(ValueError, match="was begun with seed 0, not 1: give what it was begun with"):
        main(["--stage", "vae", "--output_dir", str(stopped), *SMALL, "--seed", "1"])
    with (whole / "weights" / "vae.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="vae.safetensors is not what its manifest says"):
        toy_model(tmp_path / "another cache", whole / "weights")


def ended_by_the_clock(flags: list[str]) -> int:
    """The exit code."""
    with pytest.raises(SystemExit) as ended:
        main([*flags, "--max_time", "0:00"])
    return ended.value.code


def gone_on_from(capsys: pytest.CaptureFixture) -> dict[str, list[int]]:
    """The steps at which each stage began, as it was said."""
    began: dict[str, list[int]] = {}
    for stage, step in re.findall(r"(\w+): \S+ M parameters, step (\d+) of", capsys.readouterr().out):
        began.setdefault(stage, []).append(int(step))
    return began


def as_earlier_versions_kept_it(folder: Path, stage: str, step: int) -> None:
    (folder / stage / f"step-{step}").rename(folder / "state")
    (folder / stage).rmdir()
    (folder / "state").rename(folder / EARLIER[stage])


def written_steps(folder: Path) -> dict[str, int]:
    """After how many steps the weights of each stage were written."""
    manifest = json.loads((folder / "weights" / "manifest.json").read_text())
    return {name.removesuffix(".safetensors"): facts["steps"] for name, facts in manifest.items()}


def failing_after(calls: int, function: Callable[..., Any]) -> Callable[..., Any]:
    left = [calls]

    def call(*arguments, **named):
        if left[0] == 0:
            raise InterruptedError
        left[0] -= 1
        return function(*arguments, **named)

    return call


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--vae_steps 0 is too small"):
        read_settings(["--vae_steps", "0"])
    with pytest.raises(ValueError, match="--max_time 9 is not hh:mm"):
        read_settings(["--max_time", "9"])
    with pytest.raises(ValueError, match="has no weights/vae.safetensors: run --stage vae first"):
        main(["--stage", "transformer", "--output_dir", str(tmp_path), *SMALL])


def test_a_loss_that_is_not_finite_ends_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the loss is (nan|inf) at step \d: give a lower --vae_learning_rate"):
        main(["--output_dir", str(tmp_path), *SMALL, "--vae_learning_rate", "1e9"])
    assert not (tmp_path / "weights").exists()


def test_heads_look_at_the_same_place_of_the_other_panel_first() -> None:
    """What a head's query and keys make of their biases alone: attention from a token in the right panel's middle."""
    rows, columns = 12, 18
    transformer = new_transformer()
    mimetic_init(transformer, columns // 2)
    places = image_ids(2 * rows, 2 * columns)
    rotary = transformer.pos_embed(places)
    block = transformer.transformer_blocks[0].attn
    query, keys = (
        apply_rotary_emb(layer.bias.detach().expand(1, len(places), -1).unflatten(-1, (-1, 32)), rotary, sequence_dim=1)
        for layer in (block.to_q, block.to_k)
    )
    row, column = 6, 13
    token = row * columns + column
    found = torch.einsum("hd,khd->hk", query[0, token], keys[0]).argmax(-1)
    expected = [(0, -9), (0, -9), (0, 0), (0, 1), (-1, 0)]
    assert [divmod(int(at), columns) for at in found[:5]] == [(row + down, column + right) for down, right in expected]


def test_drawn_pairs_are_the_same_whenever_they_are_drawn() -> None:
    data = DrawnData(6, 0, ("upper", "lower", "full"), 96, 80)
    for index in range(6):
        first, again = data[index], data[index]
        assert first.category == data.categories[index % 3]
        assert torch.equal(first.person, again.person) and torch.equal(first.garment, again.garment)
        assert torch.equal(first.mask, again.mask) and 0.02 < first.mask.mean() < 0.9
    assert len({data.key(index) for index in range(6)} | {DrawnData(6, 1, data.categories, 96, 80).key(0)}) == 7
