"""What `--check` compares: blocks with random weights, each way to run them; and what it says and keeps."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from tryon.config import TrainConfig
from tryon.data.sample import FillBatch
from tryon.flux.attention_kernels import machine
from tryon.flux.load import FILL_CONFIG
from tryon.training import check, check_blocks, check_cost, check_numerics
from tryon.training.check import CHECKS_FILE, remember_check
from tryon.training.check_blocks import DEPTH, Row, random_batch, random_transformer
from tryon.training.check_cost import Estimate, Passes, disk_speed, solve
from tryon.training.check_numerics import attention_rows, block_rows, difference, is_the_runs, lora_row
from tryon.training.speed import kind_of_step

CPU = torch.device("cpu")
NARROW = {
    **FILL_CONFIG, "num_layers": DEPTH[0], "num_single_layers": DEPTH[1], "num_attention_heads": 1,
    "attention_head_dim": 32, "axes_dims_rope": [8, 12, 12], "joint_attention_dim": 16, "pooled_projection_dim": 16,
}  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        height=32, width=32, max_sequence_length=4, lora_rank=2, lora_alpha=2, mixed_precision="no",
        quantization="none", gradient_checkpointing="none", compile=False, max_train_steps=7200,
        data_cache_dir=str(tmp_path),
    )  # fmt: skip


@pytest.fixture(scope="module")
def base() -> FluxTransformer2DModel:
    return random_transformer(NARROW, torch.float32, CPU)


@pytest.fixture
def batch(config: TrainConfig) -> FillBatch:
    return random_batch(config, NARROW, torch.float32, CPU)


def test_random_weights_are_the_same_every_time_and_no_two_layers_alike(base: FluxTransformer2DModel) -> None:
    torch.manual_seed(5)
    again = random_transformer(NARROW, torch.float32, CPU).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in base.state_dict().items())
    first, second = (block.attn.to_q.weight for block in base.transformer_blocks)
    assert not torch.equal(first, second)
    assert not any(parameter.requires_grad for parameter in base.parameters())
    assert first.std().item() == pytest.approx(32**-0.5, rel=0.1)  # the size of the input stays


def test_numbers_are_used_again_where_they_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_blocks, "RANDOM_NUMBERS", 101)
    weight = random_transformer(NARROW, torch.float32, CPU).single_transformer_blocks[2].proj_out.weight.view(-1)
    assert torch.equal(weight[:101], weight[101:202]) and len(weight[:101].unique()) > 95
    assert weight.isfinite().all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_infinitely_far_away(value: float) -> None:
    loss, gradients = torch.tensor(2.0), [torch.ones(3), torch.zeros(2)]
    assert difference((loss, gradients), (loss, gradients)) == (0.0, 0.0)
    assert difference((torch.tensor(2.1), [torch.full((3,), 1.05), torch.zeros(2)]), (loss, gradients)) == (
        pytest.approx((0.05, 0.05), rel=1e-5)
    )
    spoilt = [torch.tensor([1.0, value, 1.0]), torch.zeros(2)]
    bad = torch.tensor(value)
    assert difference((bad, spoilt), (loss, gradients)) == (torch.inf, torch.inf)
    assert difference((bad, spoilt), (bad, spoilt)) == (torch.inf, torch.inf)


def test_seconds_of_parts_are_solved_for() -> None:
    """1 s for the rest, 2 s for a double and 3 s for a single block."""

    def passes(double: int, single: int) -> Passes:
        return Passes(training=1 + 2 * double + 3 * single, forward=0, optimiser=0, trained=1)

    timed = [passes(2, 3), passes(1, 3), passes(2, 2)]
    assert solve(timed, lambda each: each.training) == (1, 2, 3)
    faster_with_more = [passes(2, 3), passes(4, 3), passes(2, 2)]
    assert solve(faster_with_more, lambda each: each.training) == (5, 0, 3)


def test_all_kernels_and_the_choice_have_rows(config: TrainConfig) -> None:
    rows = list(attention_rows(config, NARROW, torch.float32, CPU))
    assert [row.what for row in rows] == ["attention _native_math", "attention native", "attention, chosen"]
    assert all(row.right for row in rows) and rows[-1].found == "native"


@pytest.mark.parametrize("changes", [{}, {"quantization": "int8", "offload": True}], ids=str)
def test_a_gradient_that_is_5_percent_off_is_found_and_told_whether_the_run_needs_it(
    changes: dict, config: TrainConfig, base: FluxTransformer2DModel, batch: FillBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = check_numerics.prepared

    def prepared(
        base: FluxTransformer2DModel, config: TrainConfig, device: torch.device
    ) -> tuple[FluxTransformer2DModel, list[nn.Parameter]]:
        transformer, parameters = right(base, config, device)
        if config.offload and config.quantization == "int8":
            for parameter in parameters:
                parameter.register_hook(lambda gradient: 1.05 * gradient)
        return transformer, parameters

    monkeypatch.setattr(check_numerics, "prepared", prepared)
    monkeypatch.setattr(check_numerics, "KINDS", ("int8",))
    rows = {row.what: row for row in block_rows(base, replace(config, **changes), batch)}
    ways = ["nothing recomputed", "every block recomputed", "every 2nd block recomputed", "offloaded"]
    assert list(rows) == [f"blocks {kind}, {way}" for kind in ("float32", "int8") for way in ways]
    assert [what for what, row in rows.items() if not row.right] == ["blocks int8, offloaded"]
    assert "gradients 5.0e-02 off, repeated 0.0e+00" in rows["blocks int8, offloaded"].found

    kind, offload = changes.get("quantization", "float32"), changes.get("offload", False)
    needed = [f"blocks {kind}, {way}" for way in (ways[3:] if offload else ways[:1])]  # it recomputes nothing
    assert [what for what, row in rows.items() if row.needed] == needed


def test_gradients_that_differ_the_second_time_are_wrong(
    config: TrainConfig, base: FluxTransformer2DModel, batch: FillBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    right, passes = check_numerics.loss_and_gradients, 0

    def changing(*arguments: object) -> tuple[Tensor, list[Tensor]]:
        nonlocal passes
        loss, gradients = right(*arguments)
        passes += 1
        return loss, [1.001 * each for each in gradients] if passes == 3 else gradients  # the first is what is expected

    monkeypatch.setattr(check_numerics, "loss_and_gradients", changing)
    monkeypatch.setattr(check_numerics, "KINDS", ())
    first, *others = block_rows(base, config, batch)
    assert first.right is False and first.found.endswith("repeated 1.0e-03")
    assert all(row.right for row in others)


def test_a_lora_that_is_not_loaded_is_seen(
    config: TrainConfig, base: FluxTransformer2DModel, batch: FillBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lora_row(base, config, batch).right
    monkeypatch.setattr(check_numerics, "load_lora", lambda transformer, file: None)
    assert lora_row(base, config, batch).right is False


def test_the_disk_is_timed_and_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_cost, "DISK_TRIAL", 2**22)
    assert disk_speed(tmp_path / "runs") > 0
    assert [path.name for path in tmp_path.rglob("*")] == ["runs"]


def test_the_verdict_is_kept_by_machine_and_kind_of_step(config: TrainConfig, tmp_path: Path) -> None:
    other = replace(config, lora_rank=8)
    remember_check(config, CPU, Estimate(step=9.0, picture=9.0, checkpoint=9.0), ["blocks"])
    remember_check(other, CPU, Estimate(step=4.0, picture=5.0, checkpoint=6.0), ["attention"])
    remember_check(config, CPU, Estimate(step=1.0, picture=2.0, checkpoint=3.0), [])
    known = json.loads((tmp_path / CHECKS_FILE).read_text())
    assert list(known) == [machine(CPU)]
    assert list(known[machine(CPU)]) == [kind_of_step(config, CPU), kind_of_step(other, CPU)]
    found, others = known[machine(CPU)].values()
    assert {"step": 1.0, "picture": 2.0, "checkpoint": 3.0, "failed": []}.items() <= found.items()
    assert others["step"] == 4.0 and others["failed"] == ["attention"]


FINE = Row("what is needed", "fine", right=True)


@pytest.mark.parametrize(
    ("found", "fit", "shown"),
    [
        ([FINE], True, "right\n"),
        ([FINE, Row("what is told", "9")], True, "what is told"),
        ([FINE, Row("another way", "off", right=False, needed=False)], True, "wrong, not used\n"),
        ([FINE, Row("this way", "off", right=False)], False, "WRONG\n"),
    ],
)
def test_only_what_the_run_needs_makes_it_unfit(
    found: list[Row],
    fit: bool,
    shown: str,
    config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.setattr(check, "check_machine", lambda *_: iter([*found, Estimate(2.0, 1.0, 1.0)]))
    assert check.check(config, NARROW, CPU, tmp_path, price_per_hour=2.5) == fit
    out = capsys.readouterr().out
    assert shown in out
    assert "7,200 steps: about 4.0 h, 10.00 at 2.5 an hour, validation and checkpoints aside\n" in out
    verdict = "fit for this run: everything it depends on is right" if fit else "NOT FIT for this run: this way"
    assert out.splitlines()[-1] == verdict
    (kept,) = json.loads((tmp_path / CHECKS_FILE).read_text())[machine(CPU)].values()
    assert kept["failed"] == ([] if fit else ["this way"])


def test_a_gpu_that_gives_up_is_a_verdict(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def gives_up(*_: object) -> Iterator[Row]:
        yield FINE
        raise torch.AcceleratorError("an illegal memory access was encountered\nmore of it")

    monkeypatch.setattr(check, "check_machine", gives_up)
    assert not check.check(config, NARROW, CPU, tmp_path, None)
    assert capsys.readouterr().out.endswith("\nNOT FIT for this run: an illegal memory access was encountered\n")


@pytest.mark.parametrize(
    ("settings", "runs"),
    [
        ({}, {"none", "full", "2"}),
        ({"gradient_checkpointing": "none"}, {"none"}),
        ({"gradient_checkpointing": "full"}, {"full"}),
        ({"gradient_checkpointing": "4"}, {"none", "full", "2"}),
        ({"offload": True}, {"offload"}),
    ],
)
def test_a_run_depends_on_the_blocks_that_it_may_have(
    config: TrainConfig, settings: dict[str, object], runs: set[str]
) -> None:
    config = replace(config, **{"gradient_checkpointing": "auto", **settings})
    ways = {each: {"gradient_checkpointing": each} for each in ("none", "full", "2")}
    ways["offload"] = {"gradient_checkpointing": "full", "offload": True}
    assert {name for name, way in ways.items() if is_the_runs(config, "none", way)} == runs
    assert not any(is_the_runs(config, "nf4", way) for way in ways.values())
