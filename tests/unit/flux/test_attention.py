"""Attention kernels: compared with plain arithmetic, and chosen among those that are right."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from tryon.flux.attention import attention_in_use, choose_attention, fall_back
from tryon.flux.attention_kernels import (
    CPU_KERNELS,
    CRASHED,
    KERNELS_FILE,
    TOO_LITTLE_MEMORY,
    Attention,
    KernelReport,
    attention_inputs,
    best_kernel,
    compare_elsewhere,
    compare_kernels,
    machine,
    one_at_a_time,
    reference_attention,
    relative_error,
    remembered_kernels,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL = Attention(batch=2, tokens=24, heads=3, head_dim=32, dtype=torch.float32)  # the toy's heads
right_attention = torch.nn.functional.scaled_dot_product_attention


@pytest.fixture(autouse=True)
def torchs_own_choice(transformer: FluxTransformer2DModel) -> Iterator[None]:
    """diffusers keeps the last choice for the whole process."""
    yield
    transformer.set_attention_backend("native")


def use(attention: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts it in the place of torch's own, as a broken driver would."""
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)


def problems(folder: Path, asked: Attention = SMALL) -> list[str | None]:
    """What is wrong with each kernel of a CPU."""
    reports = compare_kernels(asked, CPU, folder)
    assert [report.kernel for report in reports] == list(CPU_KERNELS)
    return [report.problem for report in reports]


@pytest.mark.parametrize("extreme", [False, True])
def test_the_reference_is_a_softmax_s_autograd_in_float64(extreme: bool) -> None:
    query, key, value, grad = (each.double() for each in attention_inputs(SMALL, extreme, CPU))
    inputs = [each.requires_grad_() for each in (query, key, value)]
    logits = torch.einsum("bqhd,bkhd->bhqk", query, key) / SMALL.head_dim**0.5
    out = torch.einsum("bhqk,bkhd->bqhd", logits.softmax(dim=-1), value)
    expected = out, *torch.autograd.grad(out, inputs, grad)
    found = reference_attention(*(each.detach().float() for each in (query, key, value, grad)))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert relative_error(one, other.detach()) < (1e-4 if extreme else 2e-6)


def test_extreme_logits_leave_the_range_of_exp() -> None:
    """In float32, exp is infinite above 88.7 and loses digits below -87.3: kernels have returned NaN there."""
    query, key, _, _ = attention_inputs(SMALL, True, CPU)
    sums = (torch.einsum("bqhd,bkhd->bhqk", query, key) / SMALL.head_dim**0.5).logsumexp(dim=-1)
    assert sums[..., ::2].max() < -80 and sums[..., 1::2].min() > 90


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_torchs_kernels_are_right(dtype: torch.dtype, tmp_path: Path) -> None:
    reports = compare_kernels(replace(SMALL, dtype=dtype), CPU, tmp_path)
    assert [report.kernel for report in reports] == list(CPU_KERNELS)
    assert all(report.is_right and report.seconds > 0 and report.error < report.allowed for report in reports)
    assert not any(report.elsewhere for report in reports)


def stretch(tensor: Tensor) -> Tensor:
    """As it is, with a gradient that is 5 % too large."""
    return tensor + 0.05 * (tensor - tensor.detach())


@pytest.mark.parametrize("wrong", ["output", "dq", "dk", "dv"])
def test_a_kernel_that_is_5_percent_off_is_wrong(wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def attention(query: Tensor, key: Tensor, value: Tensor, **settings: object) -> Tensor:
        named = {"dq": query, "dk": key, "dv": value}
        inputs = (stretch(each) if name == wrong else each for name, each in named.items())
        out = right_attention(*inputs, **settings)
        return 1.05 * out if wrong == "output" else out

    use(attention, monkeypatch)
    for problem in problems(tmp_path):
        assert problem.startswith(f"{wrong} is 0.05 off with 24 tokens and ordinary logits, 0.001 is allowed")


def test_a_single_nan_that_extreme_logits_bring_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def attention(query: Tensor, key: Tensor, value: Tensor, **settings: object) -> Tensor:
        out = right_attention(query, key, value, **settings)
        spoilt = torch.zeros_like(out)
        if key.mean() > 1:
            spoilt[0, 0, 0, 0] = torch.nan
        return out + spoilt

    use(attention, monkeypatch)
    for problem in problems(tmp_path):
        assert problem.startswith("output is inf off with 24 tokens and extreme logits")


def test_what_differs_between_two_passes_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factors = cycle([1 + 8e-4, 1 - 8e-4])  # each within a thousandth

    def attention(*inputs: Tensor, **settings: object) -> Tensor:
        return next(factors) * right_attention(*inputs, **settings)

    use(attention, monkeypatch)
    for problem in problems(tmp_path):
        assert problem.startswith("output differs by 0.0016 between two passes with 24 tokens")


def test_a_kernel_that_is_wrong_at_half_a_tile_more_is_right_here_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attention(query: Tensor, *rest: Tensor, **settings: object) -> Tensor:
        return (1.0 if query.shape[2] == 24 else 1.05) * right_attention(query, *rest, **settings)

    use(attention, monkeypatch)
    for report in compare_kernels(SMALL, CPU, tmp_path):
        assert report.is_right and report.elsewhere.startswith("output is 0.05 off with 88 tokens")


def test_a_kernel_that_refuses_is_not_available_and_want_of_memory_is_none_of_its_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(*inputs: Tensor, **settings: object) -> Tensor:
        raise RuntimeError("No available kernel. Aborting execution.\nmore of it")

    use(refusing, monkeypatch)
    reports = compare_kernels(SMALL, CPU, tmp_path)
    assert not any(report.available for report in reports)
    assert {report.problem for report in reports} == {"No available kernel. Aborting execution."}
    with pytest.raises(ValueError, match="no attention kernel computes what it should on this machine .*: update the"):
        best_kernel(reports, CPU)

    def full(*inputs: Tensor, **settings: object) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    use(full, monkeypatch)
    (tmp_path / KERNELS_FILE).unlink()
    reports = compare_kernels(SMALL, CPU, tmp_path)
    assert {report.problem for report in reports} == {TOO_LITTLE_MEMORY}
    assert remembered_kernels(SMALL, CPU, tmp_path) is None  # there may be more of it next time


def report(kernel: str, seconds: float | None = None, problem: str | None = None) -> KernelReport:
    return KernelReport(kernel, available=True, error=0.0, allowed=1e-3, problem=problem, seconds=seconds)


def test_the_fastest_right_kernel_is_chosen() -> None:
    slow, fast = report("_native_math", 2.0), report("_native_flash", 1.0)
    broken, missing = report("_native_cudnn", 0.5, "dq is inf off"), KernelReport("flash", available=False)
    assert best_kernel([slow, fast, broken, missing], CUDA) == "_native_flash"
    assert best_kernel([report("_native_math", 1.0), report("native", 2.0)], CPU) == "native"
    with pytest.raises(
        ValueError, match=r"\(_native_cudnn wrong: dq is inf off; flash not available\): update"
    ) as error:
        best_kernel([broken, missing], CUDA)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no attention kernel"):  # on a CPU nothing but torch's own choice is used
        best_kernel([slow, report("native", 1.0, "output is 0.05 off")], CPU)


def test_what_was_found_is_kept_by_machine_and_shape(tmp_path: Path) -> None:
    other = replace(SMALL, tokens=16, dtype=torch.bfloat16)
    assert remembered_kernels(SMALL, CPU, tmp_path) is None
    found = compare_kernels(SMALL, CPU, tmp_path)
    assert remembered_kernels(other, CPU, tmp_path) is None
    compare_kernels(other, CPU, tmp_path)
    assert remembered_kernels(SMALL, CPU, tmp_path) == found
    known = json.loads((tmp_path / KERNELS_FILE).read_text())
    (key,) = known
    assert key.startswith(f"{machine(CPU)}, diffusers ") and machine(CPU) == f"CPU, torch {torch.__version__}"
    assert list(known[key]) == ["2 x 24 x 3 x 32, float32", "2 x 16 x 3 x 32, bfloat16"]


ENDING = """
import os, torch
right = torch.nn.functional.scaled_dot_product_attention
def attention(*inputs, **settings):
    if torch.backends.cuda.flash_sdp_enabled():  # not the plain one alone
        {end}
    return right(*inputs, **settings)
torch.nn.functional.scaled_dot_product_attention = attention
"""


@pytest.mark.parametrize("end", ["os.abort()", "raise torch.AcceleratorError('CUDA error: an illegal memory access')"])
def test_a_kernel_that_ends_its_process_is_wrong_and_the_others_are_compared(
    end: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(ENDING.format(end=end))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    reports = compare_elsewhere(["_native_math", "native"], SMALL, CPU)
    assert reports["_native_math"].is_right
    assert (reports["native"].problem, reports["native"].is_right) == (CRASHED, False)


def test_a_comparison_that_fails_by_anything_else_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(ENDING.format(end="raise KeyError('something else')"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"cannot be compared here \(KeyError: 'something else'\): free memory"):
        compare_elsewhere(["native"], SMALL, CPU)


def test_the_kernel_in_use_is_set_told_and_left_for_the_safest_one(
    transformer: FluxTransformer2DModel, tmp_path: Path
) -> None:
    assert attention_in_use(transformer) == "native"
    transformer.set_attention_backend("_native_flash")
    choose_attention(transformer, 1, 24, CPU, tmp_path)
    assert attention_in_use(transformer) == "native"
    assert fall_back(transformer) and attention_in_use(transformer) == "_native_math"
    assert not fall_back(transformer)
    assert attention_in_use(transformer) == "_native_math"


def test_kernels_are_compared_by_one_at_a_time(tmp_path: Path) -> None:
    entered = threading.Event()

    def other() -> None:
        with one_at_a_time(tmp_path):
            entered.set()

    thread = threading.Thread(target=other)
    with one_at_a_time(tmp_path):
        thread.start()
        assert not entered.wait(0.1)
    thread.join(10)
    assert entered.is_set()
