"""Rows of the layer table: measured and printed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sketchlayers import ops
from sketchlayers._extension.plan_costs import cpu_name
from sketchlayers._runtime.timing import Step, paired_times
from sketchlayers.nn import SKConv2d, SKLinear
from sketchlayers.reports.table import Table

from .bound import Mode, Peaks, dense_work, sketch_work
from .cases import Case, build_dense, build_sketch, placed
from .memory import inference_memory, step_memory
from .timing import WIDE, captured, fastest, inference, speeds, training_step

Format = Literal["nchw", "nhwc"]


@dataclass(frozen=True)
class Row:
    """One sketched layer against the faster dense layer of the same run.

    Times are medians in milliseconds; speeds and memory are relative to dense, with quartiles.
    ``bound`` is the part of the bound that is reached, ``dense_bound`` the same for dense.
    ``method`` is the mixing (``any`` where both are the same). ``rate`` counts parameters, biases
    included.
    """

    layer: str
    method: str
    format: Format
    path: str
    mode: Mode
    batch: int
    rate: float
    dense_format: Format
    dense_ms: float
    ms: float
    speed: float
    speed_low: float
    speed_high: float
    bound: float
    dense_bound: float
    memory: float
    rounds: int

    @property
    def noisy(self) -> bool:
        """Whether the quartiles are too far apart to trust the median's second digit."""
        return (self.speed_high - self.speed_low) / self.speed > WIDE


@dataclass(frozen=True)
class Settings:
    """What all rows of a run have in common."""

    rate: float
    path: ops.Path
    seconds: float
    device: torch.device
    dtype: torch.dtype
    formats: tuple[Format, ...]
    peaks: Peaks
    graphs: bool = False
    blocks: int = 1


@dataclass(frozen=True)
class Contender:
    """A layer with the input that it gets."""

    method: str
    format: Format
    layer: nn.Module
    data: Tensor

    def step(self, mode: Mode, *, graphs: bool) -> Step:
        """What is timed."""
        prepare = training_step if mode == "training" else inference
        step = prepare(self.layer, self.data)
        return captured(step) if graphs else step

    def memory(self, mode: Mode) -> int:
        """Peak bytes of a call."""
        return (step_memory if mode == "training" else inference_memory)(self.layer, self.data)

    @property
    def parameters(self) -> int:
        """Numbers that are trained, the bias included."""
        return sum(parameter.numel() for parameter in self.layer.parameters())


def run_case(
    case: Case, batch: int, mode: Mode, mixings: Sequence[ops.Mixing], settings: Settings
) -> list[Row]:
    """Times a layer: dense in its formats, the sketched ones, all in turn."""
    dense, sketches = _build(case, batch, mode, mixings, settings)
    contenders = [*dense, *sketches]
    steps = [own.step(mode, graphs=settings.graphs) for own in contenders]
    times = paired_times(steps, settings.seconds, settings.device)
    seconds = [statistics.median(own) for own in times]
    memory = [own.memory(mode) for own in contenders]
    best = fastest(times[: len(dense)])
    reference = contenders[best]
    dense_bound = dense_work(case, batch, mode, settings.dtype.itemsize).seconds(settings.peaks)
    rows = []
    for index, own in enumerate(sketches, len(dense)):
        assert isinstance(own.layer, SKConv2d | SKLinear)
        with torch.set_grad_enabled(mode == "training"):
            plan = own.layer.plan(tuple(own.data.shape), channels_last=own.format == "nhwc")
        speed = speeds(times[best], times[index])
        bound = sketch_work(case, batch, own.layer, mode).seconds(settings.peaks)
        rows.append(
            Row(
                layer=case.name,
                method=own.method,
                format=own.format,
                path=plan.path,
                mode=mode,
                batch=batch,
                rate=own.parameters / reference.parameters,
                dense_format=reference.format,
                dense_ms=1e3 * seconds[best],
                ms=1e3 * seconds[index],
                speed=speed.median,
                speed_low=speed.low,
                speed_high=speed.high,
                bound=bound / seconds[index],
                dense_bound=dense_bound / seconds[best],
                memory=memory[index] / memory[best],
                rounds=len(times[index]),
            )
        )
    return rows


def _build(
    case: Case, batch: int, mode: Mode, mixings: Sequence[ops.Mixing], settings: Settings
) -> tuple[list[Contender], list[Contender]]:
    """The dense layers in both formats, and the sketched layers."""

    def contender(method: str, fmt: Format, layer: nn.Module) -> Contender:
        layer, data = placed(
            layer, case, batch, settings.device, settings.dtype, channels_last=fmt == "nhwc"
        )
        return Contender(method, fmt, layer, data.requires_grad_(mode == "training"))

    formats: tuple[Format, ...] = ("nchw", "nhwc") if case.size else ("nchw",)
    dense = [contender("dense", fmt, build_dense(case)) for fmt in formats]
    sketches = [
        contender(
            mixing if case.taps > 1 else "any",
            fmt,
            build_sketch(case, settings.rate, mixing, settings.path, settings.blocks),
        )
        for mixing in (mixings if case.taps > 1 else mixings[:1])
        for fmt in (settings.formats if case.size else settings.formats[:1])
    ]
    return dense, sketches


ROWS = Table(
    *("layer", "method", "format", "path", "batch", "dense ms", "ms"),
    *("speed ", "(quartiles)", "bound", "memory"),
    left=4,
    widths=(24, 16, 6, 9, 5, 9, 9, 6, 13, 5, 6),
)


def format_row(row: Row) -> str:
    """One line of `ROWS`; ``~`` marks a speed with wide quartiles."""
    return ROWS.line(
        row.layer,
        row.method,
        row.format,
        row.path,
        str(row.batch),
        f"{row.dense_ms:.3f}",
        f"{row.ms:.3f}",
        f"{row.speed:.2f}{'~' if row.noisy else ' '}",
        f"({row.speed_low:.2f}-{row.speed_high:.2f})",
        f"{row.bound:.0%}",
        f"{row.memory:.2f}",
    )


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader of the table must know: the slowest row, and noise."""
    slowest = min(rows, key=lambda row: row.speed)
    lines = [
        f"lowest speed: {slowest.speed:.2f} times dense ({slowest.layer}, {slowest.method}, "
        f"{slowest.mode}, batch {slowest.batch})"
    ]
    noisy = sum(row.noisy for row in rows)
    if noisy:
        lines.append(
            f"~ {noisy} of {len(rows)} rows have quartiles more than {WIDE:.0%} apart: the machine "
            "was busy, or --seconds is too short; measure them again"
        )
    return lines


def machine(device: torch.device) -> str:
    """The hardware in words, for the head of the table."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {torch.get_num_threads()} threads"
