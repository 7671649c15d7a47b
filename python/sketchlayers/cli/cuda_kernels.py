"""``sketchlayers doctor --device cuda``: every CUDA kernel against PyTorch's own operations.

:func:`measure` compares and times, :func:`line` and :func:`summary` write it down.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sketchlayers import _extension
from sketchlayers.reports.table import Table

LEAST_SPEEDUP = 1.2
"""A kernel that is not so many times as fast as the composition is a candidate for removal."""

_CALLS = 10
"""Calls between two events, so that what is timed does not wait for its launch."""

_SAMPLES = 15


@dataclass(frozen=True)
class KernelReport:
    """What was found about a family of kernels in one type.

    Attributes:
        family: The kernels, such as ``"channel_conv"``.
        dtype: The type, such as ``"bfloat16"``.
        difference: The largest difference from the composition, relative to the largest number.
        tolerance: What it may be.
        kernel_ms: Median milliseconds of a layer of a network's size, by the kernels.
        composition_ms: The same by PyTorch's operations.
        error: What was raised in place of these.
    """

    family: str
    dtype: str
    difference: float = float("nan")
    tolerance: float = float("nan")
    kernel_ms: float = float("nan")
    composition_ms: float = float("nan")
    error: str = ""

    @property
    def passes(self) -> bool:
        """Whether the kernels compute what they must."""
        return not self.error and self.difference <= self.tolerance

    @property
    def speedup(self) -> float:
        """How many times as fast as the composition the kernels are."""
        return self.composition_ms / self.kernel_ms

    @property
    def pays(self) -> bool:
        """Whether they are so much faster that they are worth having."""
        return self.speedup >= LEAST_SPEEDUP


TABLE = Table(
    *("kernels", "type", "difference", "tolerance", "check"),
    *("kernel ms", "composition ms", "speedup"),
    left=2,
    widths=(29, 8, 10, 9, 5, 9, 14, 7),
)


def cuda_device(name: str) -> str:
    """A device as ``--device`` takes it: ``cuda``, or one of several such as ``cuda:1``."""
    if not re.fullmatch(r"cuda(:\d+)?", name):
        raise argparse.ArgumentTypeError(f"must be cuda or cuda:0, cuda:1, ... (got {name})")
    return name


def why_not(device: str) -> str | None:
    """Why no kernel can run on the device, in a sentence; None where they can."""
    try:
        import torch
    except Exception as error:  # a broken installation may raise anything
        return f"PyTorch cannot be imported ({type(error).__name__}: {error})"
    problem = _extension.problem()
    if problem is not None:
        return problem
    if _extension.load().build_info()["cuda"] is None:
        return "sketchlayers was built for the CPU alone"
    if not torch.cuda.is_available():
        return "PyTorch can use no GPU of this machine"
    if (torch.device(device).index or 0) >= torch.cuda.device_count():
        return f"there is no {device} (PyTorch can use {torch.cuda.device_count()})"
    return None


def measure(device: str) -> Iterator[KernelReport]:
    """Compares and times all kernels on a GPU that is there."""
    import torch

    compiled = _extension.load()
    torch.backends.cudnn.allow_tf32 = True  # or float32 would have no convolution to compare
    with torch.cuda.device(device), torch.no_grad():
        for kernel in compiled.cuda_kernels():
            yield _report(kernel)


def _report(kernel: Any) -> KernelReport:
    family, dtype = kernel.family, kernel.dtype
    try:
        difference, tolerance = kernel.compare()
        step = kernel.step()
        return KernelReport(
            family,
            dtype,
            difference,
            tolerance,
            kernel_ms=_median_ms(lambda: step(True)),
            composition_ms=_median_ms(lambda: step(False)),
        )
    except RuntimeError as error:
        return KernelReport(family, dtype, error=str(error).partition("\n")[0])


def _median_ms(step: Callable[[], object]) -> float:
    """Median milliseconds of a call, by events on the current stream."""
    import torch

    for _ in range(3):
        step()
    samples = []
    for _ in range(_SAMPLES):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(_CALLS):
            step()
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) / _CALLS)
    return statistics.median(samples)


def line(report: KernelReport) -> str:
    """One row of `TABLE`."""
    if report.error:
        return TABLE.line(report.family, report.dtype, "", "", "error", "", "", "")
    return TABLE.line(
        report.family,
        report.dtype,
        f"{report.difference:.1e}",
        f"{report.tolerance:.1e}",
        "pass" if report.passes else "FAIL",
        f"{report.kernel_ms:.3f}",
        f"{report.composition_ms:.3f}",
        f"{report.speedup:.2f}",
    )


def summary(reports: Sequence[KernelReport]) -> str:
    """What follows from the table: errors, kernels that are wrong, and those that do not pay."""
    failed = [report for report in reports if not report.passes]
    slow = [report for report in reports if report.passes and not report.pays]
    lines = [f"{_name(report)}: {report.error}" for report in reports if report.error]
    lines += [
        f"{len(reports) - len(failed)} of {len(reports)} pass; failed: {_names(failed)}",
        f"candidates for removal (less than {LEAST_SPEEDUP} times as fast): {_names(slow)}",
    ]
    return "\n".join(lines)


def _name(report: KernelReport) -> str:
    return f"{report.family} in {report.dtype}"


def _names(reports: Sequence[KernelReport]) -> str:
    return ", ".join(map(_name, reports)) or "none"


def run(device: str) -> int:
    """Prints the table, a row as soon as it is measured, or why there is none.

    Returns:
        0 when all kernels pass, 1 otherwise.
    """
    reason = why_not(device)
    if reason is not None:
        print(f"The CUDA kernels cannot be checked: {reason}.")
        return 1
    import torch

    build = _extension.load().build_info()
    print(
        f"{torch.cuda.get_device_name(device)}, PyTorch {torch.__version__}, kernels of CUDA "
        f"{build['cuda']} for {build['cuda_archs']}\n\n{TABLE.header()}",
        flush=True,
    )
    reports = []
    for report in measure(device):
        reports.append(report)
        print(line(report), flush=True)
    print("\n" + summary(reports))
    return 0 if all(report.passes for report in reports) else 1
