"""Attention kernels, each compared with plain arithmetic on this machine, by a process of its own on a GPU. Imports no
models, so that this process starts in half the time."""

import fcntl
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor

from tryon.config import PROJECT, first_line
from tryon.files import replace_json

# diffusers' names, and the package that a kernel needs. "native" is torch's own choice.
CUDA_KERNELS = {
    "_native_math": "torch", "_native_efficient": "torch", "_native_flash": "torch", "_native_cudnn": "torch",
    "native": "torch", "flash": "flash_attn", "_flash_3": "flash_attn_interface",
}  # fmt: skip
CPU_KERNELS = {"_native_math": "torch", "native": "torch"}

KERNELS_FILE = "kernels.json"  # in the data cache: what was found, per machine and shape
EXTREME_LOGIT = 110.0  # half of the rows have a log-sum-exp near minus this, half near this
HALF_TILE = 64  # tokens: kernels work in tiles of 128, and half a tile has failed before
REPEATS = 5  # timed passes
CRASHED = "it ended the process that it ran in"
TOO_LITTLE_MEMORY = "too little memory is free"


@dataclass(frozen=True)
class Attention:
    """What attention is computed on: its sizes, and the dtype of queries, keys and values."""

    batch: int
    tokens: int
    heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def key(self) -> str:
        """Names it in a file."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.batch} x {self.tokens} x {self.heads} x {self.head_dim}, {dtype}"


@dataclass(frozen=True)
class KernelReport:
    """What a comparison found. error, allowed: of the worst tensor, relative. problem: None where the kernel is right.
    seconds: of a forward and a backward pass; None where it is not usable. elsewhere: what is wrong with half a tile of
    tokens more, which other sizes may have: they are compared by themselves."""

    kernel: str
    available: bool
    error: float | None = None
    allowed: float | None = None
    problem: str | None = None
    seconds: float | None = None
    elsewhere: str | None = None

    @property
    def is_right(self) -> bool:
        return self.available and self.problem is None


def best_kernel(reports: list[KernelReport], device: torch.device) -> str:
    """The fastest one that is right; on a CPU torch's own choice. Raises ValueError where none is right."""
    candidates = ("native",) if device.type != "cuda" else CUDA_KERNELS
    right = [report for report in reports if report.is_right and report.kernel in candidates]
    if not right:
        raise ValueError(
            f"no attention kernel computes what it should on this machine ({'; '.join(map(in_words, reports))}): "
            "update the NVIDIA driver, or install another version of torch"
        )
    return min(right, key=lambda report: report.seconds).kernel


def in_words(report: KernelReport) -> str:
    if not report.available:
        return f"{report.kernel} not available"
    if report.problem:
        return f"{report.kernel} wrong: {report.problem}"
    return f"{report.kernel} {1000 * report.seconds:.2f} ms"


@contextmanager
def one_at_a_time(cache: Path) -> Iterator[None]:
    """Waits until no other process compares kernels, as a GPU's memory and its time are shared."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{KERNELS_FILE}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def compare_kernels(asked: Attention, device: torch.device, cache: Path) -> list[KernelReport]:
    """Compares every kernel with `reference_attention`, and keeps what it finds in `cache` for later runs.

    On CUDA this happens in a process of its own, as a kernel that accesses memory illegally ends its process; another
    process goes on after it. Raises ValueError where nothing can be compared.
    """
    reports: dict[str, KernelReport] = {}
    for kernel, package in kernels_of(device).items():
        if find_spec(package) is None:
            reports[kernel] = KernelReport(kernel, available=False, problem=f"{package} is not installed")
    if device.type != "cuda":
        reports |= {kernel: compare_kernel(kernel, asked, device) for kernel in CPU_KERNELS}
    while remaining := [kernel for kernel in kernels_of(device) if kernel not in reports]:
        reports |= compare_elsewhere(remaining, asked, device)
    found = [reports[kernel] for kernel in kernels_of(device)]
    if not any(report.problem == TOO_LITTLE_MEMORY for report in found):  # there may be more of it next time
        _write(asked, device, cache, found)
    return found


def compare_elsewhere(kernels: list[str], asked: Attention, device: torch.device) -> dict[str, KernelReport]:
    """Compares the kernels on the device in a process of its own, up to the first that ends it: at least one report.

    Raises ValueError where the process ends by anything else.
    """
    torch.cuda.empty_cache()  # what this process has reserved and does not use
    dtype = str(asked.dtype).removeprefix("torch.")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())  # of this process, one of several perhaps
    work = json.dumps({"kernels": kernels, "asked": {**vars(asked), "dtype": dtype}, "device": str(device)})
    path = os.pathsep.join(filter(None, (str(PROJECT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "tryon.flux.attention_kernels", work]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    found = [KernelReport(**json.loads(line)) for line in done.stdout.splitlines() if line.startswith("{")]
    reports = {report.kernel: report for report in found}
    if done.returncode and (done.returncode < 0 or "AcceleratorError" in done.stderr) and len(found) < len(kernels):
        kernel = kernels[len(found)]
        reports[kernel] = KernelReport(kernel, available=True, problem=CRASHED)
    elif done.returncode:
        last = next(iter(reversed(done.stderr.strip().splitlines())), "it says nothing")
        raise ValueError(
            f"attention kernels cannot be compared here ({last}): free memory of the GPU, and let two processes use it "
            "at a time"
        )
    return reports


def main(argv: list[str]) -> None:
    """Compares kernels in this process, which `compare_elsewhere` starts, and prints a line of JSON for each."""
    work = json.loads(argv[0])
    asked = Attention(**{**work["asked"], "dtype": getattr(torch, work["asked"]["dtype"])})
    for kernel in work["kernels"]:
        print(json.dumps(asdict(compare_kernel(kernel, asked, torch.device(work["device"])))), flush=True)


def kernels_of(device: torch.device) -> dict[str, str]:
    """Kernels that may be had on such a device, and the package of each."""
    return CUDA_KERNELS if device.type == "cuda" else CPU_KERNELS


def compare_kernel(kernel: str, asked: Attention, device: torch.device) -> KernelReport:
    """One kernel at the tokens asked for, and at half a tile more."""
    report = _compare_at(kernel, asked, device)
    if not report.is_right:
        return report
    elsewhere = _compare_at(kernel, replace(asked, tokens=asked.tokens + HALF_TILE), device).problem
    inputs = attention_inputs(asked, False, device)
    seconds = median_seconds(lambda: run_kernel(kernel, *inputs), device, REPEATS, warm_up=1)
    return replace(report, elsewhere=elsewhere, seconds=seconds)


def _compare_at(kernel: str, asked: Attention, device: torch.device) -> KernelReport:
    """With ordinary and with extreme logits, twice each, as a race shows as a difference between two passes."""
    worst = KernelReport(kernel, available=True, error=0.0, allowed=1.0)
    for extreme in (False, True):
        inputs = attention_inputs(asked, extreme, device)
        expected, allowed = reference_attention(*inputs), allowed_error(inputs)
        try:
            first, second = (run_kernel(kernel, *inputs) for _ in range(2))
        except torch.OutOfMemoryError:
            return KernelReport(kernel, available=False, problem=TOO_LITTLE_MEMORY)
        except torch.AcceleratorError:  # the process cannot go on
            raise
        except (RuntimeError, ValueError, ImportError) as error:  # not built, or not for these shapes
            return KernelReport(kernel, available=False, problem=first_line(error))
        where = f"with {asked.tokens} tokens and {'extreme' if extreme else 'ordinary'} logits"
        for name, found, again, right in zip(("output", "dq", "dk", "dv"), first, second, expected, strict=True):
            error, repeat = relative_error(found, right), relative_error(found, again)
            if not error <= allowed:
                problem = f"{name} is {error:.2g} off {where}, {allowed:.2g} is allowed"
                return KernelReport(kernel, True, error, allowed, problem)
            if not repeat <= allowed:
                problem = f"{name} differs by {repeat:.2g} between two passes {where}"
                return KernelReport(kernel, True, repeat, allowed, problem)
            if error / allowed > worst.error / worst.allowed:
                worst = KernelReport(kernel, True, error, allowed)
    return worst


def attention_inputs(shape: Attention, extreme: bool, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Seeded query, key, value and gradient of the output, each [batch, tokens, heads, head_dim], laid out as the
    training blocks do. extreme: every second query has logits near -EXTREME_LOGIT, the others near EXTREME_LOGIT."""
    generator = torch.Generator(device).manual_seed(0)
    size = shape.batch, shape.tokens, shape.heads, shape.head_dim
    query, key, value, grad = (torch.randn(size, generator=generator, device=device) for _ in range(4))
    if extreme:
        shift = (EXTREME_LOGIT * shape.head_dim**-0.5) ** 0.5  # of each of head_dim numbers: their product is the logit
        sign = torch.ones(shape.tokens, 1, 1, device=device)
        sign[::2] = -1
        query, key = query + shift * sign, key + shift
    return tuple(each.to(shape.dtype) for each in (query, key, value, grad))


def reference_attention(
    query: Tensor, key: Tensor, value: Tensor, grad: Tensor, rounded: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention and its gradients written out in float32, head by head: the output and the gradients of query, key and
    value, each [batch, tokens, heads, head_dim].

    With P = softmax(S), S = Q K^T / sqrt(d): O = P V, dV = P^T dO, dS = P * (dP - rowsum(dO * O)) with dP = dO V^T,
    dQ = dS K / sqrt(d), dK = dS^T Q / sqrt(d) (https://arxiv.org/abs/2205.14135, appendix B).
    rounded: P and dS pass through this dtype before they are multiplied, as they do in every kernel of that dtype.
    """
    scale = query.shape[-1] ** -0.5
    results = [torch.empty(query.shape, device=query.device) for _ in range(4)]

    def through(tensor: Tensor) -> Tensor:
        return tensor if rounded is None else tensor.to(rounded).float()

    for sample in range(query.shape[0]):
        for head in range(query.shape[2]):
            q, k, v, do = (each[sample, :, head].float() for each in (query, key, value, grad))
            logits = scale * (q @ k.T)
            weights = torch.exp(logits - logits.amax(dim=1, keepdim=True))
            p = weights / weights.sum(dim=1, keepdim=True)
            o = through(p) @ v
            ds = through(p * (do @ v.T - (do * o).sum(dim=1, keepdim=True)))
            parts = o, scale * (ds @ k), scale * (ds.T @ q), through(p).T @ do
            for result, part in zip(results, parts, strict=True):
                result[sample, :, head] = part
    return tuple(results)


def allowed_error(inputs: tuple[Tensor, Tensor, Tensor, Tensor]) -> float:
    """The relative error that a right kernel may have: a thousandth, and three times what rounding P, dS and the
    results costs. With extreme logits that is much, as gradients cancel: it is for NaN that they are tried."""
    dtype = inputs[2].dtype
    exact, rounded = reference_attention(*inputs), reference_attention(*inputs, rounded=dtype)
    error = max(relative_error(one.to(dtype), other) for one, other in zip(rounded, exact, strict=True))
    return 3 * error + 1e-3


def relative_error(found: Tensor, expected: Tensor) -> float:
    """|found - expected| / |expected| of [batch, tokens, heads, head_dim], of the worst head of the worst sample."""
    found, expected = found.float(), expected.float()
    error = (found - expected).norm(dim=(1, 3)) / expected.norm(dim=(1, 3))
    return torch.where(error.isfinite(), error, torch.inf).max().item()


def run_kernel(
    kernel: str, query: Tensor, key: Tensor, value: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The output and the gradients of query, key and value as the kernel computes them. Raises RuntimeError, ValueError
    or ImportError where it cannot."""
    inputs = [each.detach().clone().requires_grad_() for each in (query, key, value)]
    out = dispatch_attention_fn(*inputs, backend=kernel)
    out.backward(grad)
    _wait(query.device)  # an illegal access is an error of this kernel, not of what comes next
    return out.detach(), *(each.grad for each in inputs)


def median_seconds(work: Callable[[], object], device: torch.device, repeats: int, warm_up: int) -> float:
    """Median seconds of `repeats` calls, the device's work included, after `warm_up` calls that are not timed."""
    seconds = []
    for _ in range(warm_up + repeats):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[warm_up:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def remembered_kernels(asked: Attention, device: torch.device, cache: Path) -> list[KernelReport] | None:
    """What an earlier comparison on this machine found; None where there was none."""
    file = cache / KERNELS_FILE
    known = json.loads(file.read_text()) if file.is_file() else {}
    reports = known.get(_kernels_key(device), {}).get(asked.key)
    return reports and [KernelReport(**report) for report in reports]


def machine(device: torch.device) -> str:
    """What decides whether a kernel is right: GPU, driver's CUDA, torch, CUDA, cuDNN."""
    if device.type != "cuda":
        return f"CPU, torch {torch.__version__}"
    return (
        f"{torch.cuda.get_device_name(device)}, driver {driver_version()}, torch {torch.__version__}, "
        f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    )


def driver_version() -> str:
    """Version of the NVIDIA kernel module, from Linux's /proc; "unknown" where it does not say."""
    file = Path("/proc/driver/nvidia/version")
    words = file.read_text().split() if file.is_file() else []
    return next((word for word in words if word[0].isdigit() and word.count(".") >= 1), "unknown")


def _kernels_key(device: torch.device) -> str:
    """The machine, and the packages that have kernels or call them."""
    packages = {"diffusers", *kernels_of(device).values()} - {"torch"}
    return ", ".join([machine(device), *(f"{name} {_version(name)}" for name in sorted(packages))])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _write(asked: Attention, device: torch.device, cache: Path, reports: list[KernelReport]) -> None:
    file = cache / KERNELS_FILE
    known = json.loads(file.read_text()) if file.is_file() else {}
    known.setdefault(_kernels_key(device), {})[asked.key] = [asdict(report) for report in reports]
    replace_json(file, known)


if __name__ == "__main__":
    main(sys.argv[1:])
