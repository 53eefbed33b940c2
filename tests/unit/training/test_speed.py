"""The arithmetic of a step, remembered speeds, and the plan made of them."""

import re
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
import torch

from benchmarks import hardware_needs
from tryon.config import TrainConfig
from tryon.flux import memory
from tryon.flux.load import FILL_CONFIG
from tryon.flux.memory import card_memory
from tryon.profiles import PROFILES, full, h100, on_toy, quick_test
from tryon.toy.model import new_transformer
from tryon.training import plan, speed
from tryon.training.plan import plan_lines, seen_often
from tryon.training.speed import estimated_hours, peak_of, peaks_of, remember_speed, remembered_speed, step_flops

CPU = torch.device("cpu")


def test_a_step_is_the_arithmetic_of_the_papers() -> None:
    """768 x 1152: 51.2 TFLOP of linear layers and 11.0 of attention forward; 141 without, 203 with recomputing."""
    plain, recomputing = (step_flops(full(), FILL_CONFIG, every) for every in (None, 1))
    assert plain == pytest.approx(141e12, rel=0.01)
    assert recomputing - plain == pytest.approx(62.2e12, rel=0.01)  # another forward pass
    half = step_flops(full(), FILL_CONFIG, 2)
    assert half - plain == pytest.approx(29 / 57 * (recomputing - plain))


def test_a_speed_is_remembered_for_runs_of_its_kind(tmp_path: Path) -> None:
    config = TrainConfig(data_cache_dir=str(tmp_path), quantization="none")
    assert remembered_speed(config, CPU) is None
    remember_speed(config, CPU, 1.5)
    remember_speed(replace(config, lora_rank=8), CPU, 0.5)
    assert remembered_speed(replace(config, learning_rate=1.0, max_train_steps=3), CPU) == 1.5
    assert remembered_speed(replace(config, lora_rank=8), CPU) == 0.5
    assert remembered_speed(replace(config, train_batch_size=2), CPU) is None
    assert [path.name for path in tmp_path.iterdir()] == ["speeds.json"]


def test_gpus_are_known_by_their_full_names() -> None:
    names = {
        "NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756, "NVIDIA H100 NVL": 835, "NVIDIA A100-SXM4-80GB": 312,
        "NVIDIA GeForce RTX 4090": 165, "NVIDIA GeForce RTX 3090": 71,
    }  # fmt: skip
    assert {name: peak_of(name) for name in names} == {name: 1e12 * peak for name, peak in names.items()}
    for other in ("NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA H200 NVL", "CPU"):
        assert peak_of(other) is None, other
    assert peaks_of(24) == {"RTX 3090": 71e12, "RTX 4090": 165e12}
    assert list(peaks_of(20).values()) == [100e12]


def plan_for(config: TrainConfig, card: float, pairs: int | None = None, price: float | None = None) -> list[str]:
    return plan_lines(config, FILL_CONFIG, pairs, 2, None, card, price)


def test_the_plan_for_another_machine_says_what_it_needs_and_what_would_help() -> None:
    lines = plan_for(replace(full(), compile=False), 24, 40_658)
    shown = "\n".join(lines)
    assert lines[:2] == [
        "planned, GPU memory: 13.8 GB of 24.7 GB usable",
        "  a card sold as 24 GB has 25.8 GB; the plan leaves 4 % to the driver and the screen",
    ]
    assert "frozen weights: nf4; every block recomputes its activations" in shown
    assert "80.9 GB at most: 40,658 pairs, in up to 2 variants" in shown
    both_tasks = "\n".join(plan_for(replace(full(), try_off_share=0.2), 24, 40_658))
    assert "121.4 GB at most: 40,658 pairs, in up to 3 variants" in both_tasks
    assert "it does not fit" not in shown
    tight = "\n".join(plan_for(h100(), 12))
    assert "it does not fit: give --optimizer adamw8bit, or give a smaller --lora_rank, or give --offload" in tight
    assert "1.00 GB per 1,000 pairs" in tight
    huge = "\n".join(plan_for(full(), 24, 10**12))
    assert re.search(r"it may not fit: \S+ GB on a disk with \S+ GB free: put --data_cache_dir", huge), huge


@pytest.mark.parametrize(
    ("config", "card"),
    [
        (full(), 24),
        (h100(), 80),
        (replace(full(), offload=True, compile=False), 12),
        (replace(on_toy(full()), lora_rank=4), 12),
    ],
)
def test_the_parts_that_are_shown_add_up_to_the_sum_that_is_shown(config: TrainConfig, card: float) -> None:
    lines = plan_for(replace(config, toy=False), card)
    total = re.fullmatch(r"planned, GPU memory: ([\d.]+) GB of [\d.]+ GB usable", lines[0])
    rows = [re.match(r"  (\w+) +([\d.]+) GB  ", line) for line in lines[2:8]]
    assert [row[1] for row in rows] == ["weights", "lora", "optimizer", "activations", "work", "reserve"]
    assert sum(Decimal(row[2]) for row in rows) == Decimal(total[1])


def test_the_plan_has_one_unit() -> None:
    shown = "\n".join(plan_for(full(), 24, 40_658, 2.0))
    assert "TFLOP" not in shown and not re.search(r"[\d.](?:[kMGTP]B|[kMGT]iB)|[kMT]B\b|iB\b", shown), shown
    assert len(re.findall(r"\d GB\b", shown)) == shown.count("GB")


def test_a_plan_on_a_cpu_has_nothing_of_a_gpu() -> None:
    toy = dict(new_transformer().config)
    config = replace(on_toy(quick_test()), output_dir="/")
    lines = plan_lines(config, toy, 9, 1, CPU, None, None)
    shown = "\n".join(lines)
    assert "planned, memory: 0.1 GB of " in lines[0] and "CUDA" not in shown and "GPU" not in shown
    assert "  frozen weights: float32; no block recomputes its activations" in lines
    assert "at most: 9 pairs; " in shown and "GB: 2 of " in shown and "it does not fit" not in shown
    many = replace(config, train_batch_size=1024, height=1536, width=1152)
    assert "it does not fit: give smaller panels" in "\n".join(plan_lines(many, toy, 9, 1, CPU, None, None))


def test_a_plan_of_few_pairs_gives_fewer_steps() -> None:
    advice = "for so few give --max_train_steps 113 --lr_warmup_steps 11"
    assert f"  each of 9 pairs is seen 7,111 times: {advice}" in plan_for(full(), 24, 9)
    assert "--max_train_steps" not in "\n".join(plan_for(full(), 24, 320))
    followed = replace(full(), max_train_steps=113, lr_warmup_steps=11)
    for config in (followed, replace(full(), num_train_epochs=300)):
        assert seen_often(config, 9) == ""


def test_the_plan_says_what_the_host_needs() -> None:
    (line,) = [line for line in plan_for(full(), 24) if line.startswith("planned, host")]
    assert line == "planned, host memory: 24.7 GB for each process, one per GPU"
    four = "\n".join(plan_for(replace(full(), num_processes=4, offload=True), 24))
    assert "planned, host memory: 24.7 GB for each process, one per GPU, 98.7 GB for 4 on one machine\n" in four
    assert (
        "  training       9.3 GB  the offloaded blocks, locked in place, a checkpoint while it is written, 2 processes"
        in four
    )


def test_the_plan_says_that_more_gpus_take_more_samples_and_not_fewer_steps() -> None:
    shown = "\n".join(plan_for(full(), 24))
    assert "planned, time: 8,000 steps of 8 samples: 1 GPU x batches of 1 x 8 accumulated\n" in shown
    assert "more GPUs would take more samples per step; the steps stay as many and as long" in shown
    four = plan_for(replace(full(), num_processes=4), 24)
    assert "planned, time: 8,000 steps of 32 samples: 4 GPUs x batches of 1 x 8 accumulated" in four
    hours = [line for line in four if "estimated" in line]
    assert hours and hours == [line for line in shown.splitlines() if "estimated" in line]
    epochs = replace(full(), num_train_epochs=2)
    assert "10,165 steps of 8 samples" in "\n".join(plan_for(epochs, 24, 40_658))
    assert "so that the epochs need fewer steps" in "\n".join(plan_for(epochs, 24, 40_658))
    assert "--num_train_epochs is left out" in "\n".join(plan_for(epochs, 24))


def test_before_a_first_run_hours_are_an_estimate() -> None:
    """8,000 steps of 8 samples with all recomputed are 13.0e18 operations."""
    least, most = estimated_hours(13.0e18, 165e12, compiled=True)
    assert (least, most) == pytest.approx((48.6, 62.5), rel=0.01)
    lines = plan_for(replace(full(), compile=False), 24, price=2.0)
    assert "  estimated, not measured: 150 to 200 h on RTX 3090, 290 to 410 at 2 an hour" in lines
    assert "  estimated, not measured: 63 to 88 h on RTX 4090, 130 to 180 at 2 an hour" in lines
    assert any("the estimate is 25 to 35 % of the data sheet's bf16 peak" in line for line in lines)
    assert "  nf4 weights take longer; how much longer is not measured" in lines
    compiled = plan_for(full(), 80)
    assert any("the estimate is 35 to 45 % of the data sheet's bf16 peak" in line for line in compiled)
    assert not any("take longer" in line or "an hour" in line for line in compiled)
    assert any("on a GPU of 100 TFLOP/s in bf16" in line for line in plan_for(full(), 20))
    assert "nothing measured yet" in "\n".join(plan_for(replace(full(), mixed_precision="no"), 24))


@pytest.mark.parametrize(("profile", "card"), [("full", 24), ("quick_test", 16), ("h100", 80)])
def test_the_table_of_cards_is_what_the_plan_says(profile: str, card: int) -> None:
    header, _, *rows = [line.strip("| ").split(" | ") for line in hardware_needs.lines()]
    (row,) = [row for row in rows if row[0] == f"{card} GB, {card_memory(card) / 1e9:.1f} usable"]
    need, kept, recomputing = re.fullmatch(r"(\d+) GB: (\w+), (.*)", row[header.index(f"`{profile}`")]).groups()
    lines = plan_for(PROFILES[profile](), card)
    planned, usable = re.fullmatch(r"planned, GPU memory: ([\d.]+) GB of ([\d.]+) GB usable", lines[0]).groups()
    assert abs(float(planned) - int(need)) <= 0.5 and row[0].endswith(f", {usable} usable")
    assert f"  frozen weights: {kept}; {recomputing} its activations" in lines


def test_the_plan_of_this_machine_s_gpu_names_it_and_looks_at_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what the driver answers is made up."""
    monkeypatch.setattr(plan, "free_memory", lambda device: 84_000_000_000)
    monkeypatch.setattr(memory, "total_memory", lambda device: 85_000_000_000)
    monkeypatch.setattr(memory, "can_compile", lambda device: True)
    monkeypatch.setattr(speed, "device_name", lambda device: "NVIDIA H100 80GB HBM3")
    config = replace(h100(), data_cache_dir=str(tmp_path), num_processes=1000)
    lines = plan_lines(config, FILL_CONFIG, None, 2, torch.device("cuda", 0), None, None)
    assert re.fullmatch(r"planned, GPU memory: 5\d\.\d GB of 84\.0 GB free", lines[0])
    host = next(number for number, line in enumerate(lines) if line.startswith("planned, host memory"))
    assert re.search(r"process, one per GPU, [\d,.]+ GB for 1000 on one machine, of [\d.]+ GB free$", lines[host])
    assert lines[host + 4] == "  it may not fit: free some, or give fewer --num_processes"
    assert any(
        re.fullmatch(r"  estimated, not measured: [\d.]+ to [\d.]+ h on NVIDIA H100 80GB HBM3", x) for x in lines
    )


def test_the_plan_of_this_machine_counts_hours_and_money(tmp_path: Path) -> None:
    config = TrainConfig(data_cache_dir=str(tmp_path), max_train_steps=7200)
    free = plan_lines(config, FILL_CONFIG, None, 2, CPU, None, None)
    assert any("nothing measured yet" in line for line in free) and not any(" an hour" in line for line in free)
    assert not any("host memory" in line for line in free)  # all of it is the host's
    remember_speed(replace(config, quantization="none"), CPU, 2.0)
    lines = plan_lines(config, FILL_CONFIG, None, 2, CPU, None, 2.5)
    assert "  4.0 h, at 2 s a step, measured on CPU" in lines
    assert "  10.00 at 2.5 an hour" in lines
