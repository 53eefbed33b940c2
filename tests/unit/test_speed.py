"""The arithmetic of a step, remembered speeds, and the plan made of them."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tryon.config import TrainConfig, full, h100
from tryon.models import FILL_CONFIG
from tryon.plan import plan_lines
from tryon.speed import remember_speed, remembered_speed, step_flops

CPU = torch.device("cpu")


def test_a_step_is_the_arithmetic_of_the_papers() -> None:
    """768 x 1152: 51.2 TFLOP of linear layers and 11.0 of attention forward; 141 without, 203 with recomputing."""
    plain, recomputing = (step_flops(full(), FILL_CONFIG, every) for every in (None, 1))
    assert plain.forward == pytest.approx(62.2e12, rel=0.01)
    assert plain.total == pytest.approx(141e12, rel=0.01)
    assert recomputing.total == pytest.approx(203e12, rel=0.01)
    half = step_flops(full(), FILL_CONFIG, 2)
    assert plain.total < half.total < recomputing.total
    assert half.recomputed == pytest.approx(29 / 57 * plain.forward)


def test_a_speed_is_remembered_for_runs_of_its_kind(tmp_path: Path) -> None:
    config = TrainConfig(data_cache_dir=str(tmp_path), quantization="none")
    assert remembered_speed(config, CPU) is None
    remember_speed(config, CPU, 1.5)
    remember_speed(replace(config, lora_rank=8), CPU, 0.5)
    assert remembered_speed(replace(config, learning_rate=1.0, max_train_steps=3), CPU) == 1.5
    assert remembered_speed(replace(config, lora_rank=8), CPU) == 0.5
    assert remembered_speed(replace(config, train_batch_size=2), CPU) is None
    assert [path.name for path in tmp_path.iterdir()] == ["speeds.json"]


def test_the_plan_for_another_machine_says_what_it_needs_and_what_would_help() -> None:
    lines = plan_lines(full(), FILL_CONFIG, 40_658, 2, None, 24e9, None)
    shown = "\n".join(lines)
    assert re.search(r"^planned, GPU memory: 13.9GB of 24.0GB in all$", shown, re.MULTILINE), shown
    assert "frozen weights: nf4; every block recomputes its activations" in shown
    assert "80.9GB at most: 40,658 pairs, in up to 2 variants" in shown
    assert re.search(r"8,000 steps of 8 samples, 13,0\d\d,\d{3} TFLOP on each device", shown)
    epochs = replace(full(), num_train_epochs=2)
    assert "10,165 steps of 8" in "\n".join(plan_lines(epochs, FILL_CONFIG, 40_658, 2, None, 24e9, None))
    assert "it does not fit" not in shown
    tight = "\n".join(plan_lines(h100(), FILL_CONFIG, None, 2, None, 12e9, None))
    assert "it does not fit: give --optimizer adamw8bit, or give a smaller --lora_rank, or give --offload" in tight
    assert "995MB per 1,000 pairs" in tight
    huge = "\n".join(plan_lines(full(), FILL_CONFIG, 10**12, 2, None, 24e9, None))
    assert re.search(r"it may not fit: \S+ on a disk with \S+ free: put --data_cache_dir", huge), huge


def test_the_plan_of_this_machine_counts_hours_and_money(tmp_path: Path) -> None:
    config = TrainConfig(data_cache_dir=str(tmp_path), max_train_steps=7200)
    free = plan_lines(config, FILL_CONFIG, None, 2, CPU, 0, None)
    assert any("nothing measured yet" in line for line in free) and not any(" an hour" in line for line in free)
    remember_speed(replace(config, quantization="none"), CPU, 2.0)
    lines = plan_lines(config, FILL_CONFIG, None, 2, CPU, 0, 2.5)
    assert "  4.0 h, at 2 s a step, measured on CPU" in lines
    assert "  10.00 at 2.5 an hour" in lines
