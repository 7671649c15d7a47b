"""Rows of the layer table: measured, printed, written as CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from sketchlayers import ops
from sketchlayers._extension.plan_costs import cpu_name
from sketchlayers._runtime.files import shortened
from sketchlayers._version import __version__
from sketchlayers.nn import SKConv2d, SKLinear
from sketchlayers.reports.table import Table, number

from .bound import Mode, Peaks, dense_work, sketch_work
from .cases import Case, build_dense, build_sketch, placed
from .gemms import two_gemms
from .memory import inference_memory, step_memory, tensor_bytes
from .peers import Peer
from .records import write_csv
from .timing import (
    WIDE,
    Step,
    captured,
    fastest,
    inference,
    paired_times,
    quartiles,
    speeds,
    training_step,
)

Format = Literal["nchw", "nhwc"]

TRAINING_MEMORY_LIMIT = 1.05
"""Peak memory that a training step may need, relative to the dense layer's."""


@dataclass(frozen=True)
class Row:
    """One contender against the faster dense layer of the same run.

    Times are medians in milliseconds; speeds and memory are relative to dense, with quartiles.
    ``gemms`` is the speed of the two matrix products alone, ``bound`` the part of the bound that
    is reached, ``dense_bound`` the same for dense. ``method`` is a mixing (``any`` where both are
    the same) or a peer. ``rate`` counts parameters, biases included.
    """

    layer: str
    method: str
    format: str
    path: str
    mode: Mode
    batch: int
    rate: float
    dense_format: str
    dense_ms: float
    ms: float
    speed: float
    speed_low: float
    speed_high: float
    gemms: float | None
    bound: float | None
    dense_bound: float
    memory: float | None
    memory_limit: float | None
    rounds: int
    automatic: bool

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
    peers: tuple[Peer, ...] = ()
    graphs: bool = False
    memory: bool = True
    blocks: int = 1
    say: Callable[[str], None] = print


@dataclass(frozen=True)
class Contender:
    """A layer with the input that it gets."""

    method: str
    format: Format
    layer: nn.Module
    data: Tensor
    mixing: ops.Mixing | None = None

    def step(self, mode: Mode, *, graphs: bool) -> Step:
        """What is timed."""
        prepare = training_step if mode == "training" else inference
        step = prepare(self.layer, self.data)
        return captured(step) if graphs else step

    def memory(self, mode: Mode) -> int:
        """Peak bytes of a call."""
        return (step_memory if mode == "training" else inference_memory)(self.layer, self.data)


def run_case(
    case: Case, batch: int, mode: Mode, mixings: Sequence[ops.Mixing], settings: Settings
) -> list[Row]:
    """Times a layer: dense in its formats, the sketched ones, the peers, all in turn."""
    dense, sketches, stacked = _build(case, batch, mode, mixings, settings)
    peers = _build_peers(case, batch, mode, settings, sketches)
    contenders = [*dense, *sketches, *peers]
    steps = [contender.step(mode, graphs=settings.graphs) for contender in contenders]
    products = two_gemms(case, batch, stacked, mode, device=settings.device, dtype=settings.dtype)
    steps.append(captured(products) if settings.graphs else products)
    times = paired_times(steps, settings.seconds, settings.device)
    best = fastest(times[: len(dense)])
    memory = [own.memory(mode) for own in contenders] if settings.memory else None
    measured = _Measured(case, batch, mode, settings, stacked, dense[best], times[best], times[-1])
    return [
        measured.row(contenders[i], times[i], (memory[i], memory[best]) if memory else None)
        for i in range(len(dense), len(contenders))
    ]


@dataclass(frozen=True)
class _Measured:
    """What the rows of one layer share: the dense side that they are compared with."""

    case: Case
    batch: int
    mode: Mode
    settings: Settings
    stacked: int
    dense: Contender
    dense_times: Sequence[float]
    product_times: Sequence[float]

    def row(
        self, contender: Contender, times: Sequence[float], memory: tuple[int, int] | None
    ) -> Row:
        speed = speeds(self.dense_times, times)
        own, dense = quartiles(times).median, quartiles(self.dense_times).median
        return Row(
            layer=self.case.name,
            method=contender.method,
            format=contender.format,
            path=self._path(contender),
            mode=self.mode,
            batch=self.batch,
            rate=_parameters(contender.layer) / _parameters(self.dense.layer),
            dense_format=self.dense.format,
            dense_ms=1e3 * dense,
            ms=1e3 * own,
            speed=speed.median,
            speed_low=speed.low,
            speed_high=speed.high,
            gemms=self._gemms(contender),
            bound=self._bound(contender, own),
            dense_bound=self._dense_bound(dense),
            memory=memory[0] / memory[1] if memory else None,
            memory_limit=self._memory_limit(contender, memory),
            rounds=len(times),
            automatic=contender.mixing is not None and self.settings.path == "auto",
        )

    def _path(self, contender: Contender) -> str:
        """What a sketched layer runs; a peer has no choice."""
        layer = contender.layer
        if not isinstance(layer, (SKConv2d, SKLinear)):
            return "-"
        with torch.set_grad_enabled(self.mode == "training"):
            shape = tuple(contender.data.shape)
            return layer.plan(shape, channels_last=contender.format == "nhwc").path

    def _gemms(self, contender: Contender) -> float | None:
        """Neither spatial mixing nor blocks nor a peer reduce to these products."""
        if contender.mixing is None or (contender.mixing == "spatial" and self.case.taps > 1):
            return None
        if self.settings.blocks > 1:
            return None
        return speeds(self.dense_times, self.product_times).median

    def _bound(self, contender: Contender, seconds: float) -> float | None:
        if contender.mixing is None:
            return None
        element = self.settings.dtype.itemsize
        assert isinstance(contender.layer, (SKConv2d, SKLinear))
        work = sketch_work(
            self.case,
            self.batch,
            self.stacked,
            contender.mixing,
            self.mode,
            element,
            contender.layer.blocks,
        )
        return work.seconds(self.settings.peaks) / seconds

    def _dense_bound(self, seconds: float) -> float:
        work = dense_work(self.case, self.batch, self.mode, self.settings.dtype.itemsize)
        return work.seconds(self.settings.peaks) / seconds

    def _memory_limit(self, contender: Contender, memory: tuple[int, int] | None) -> float | None:
        """For training a fixed part more than dense, for inference what the factors take."""
        layer = contender.layer
        if memory is None or not isinstance(layer, (SKConv2d, SKLinear)):
            return None
        if self.mode == "training":
            return TRAINING_MEMORY_LIMIT
        return 1 + tensor_bytes(layer.s1, layer.s2, layer.u1, layer.u2) / memory[1]


def _build(
    case: Case, batch: int, mode: Mode, mixings: Sequence[ops.Mixing], settings: Settings
) -> tuple[list[Contender], list[Contender], int]:
    """The dense layers, the sketched layers, and the stacked rank of the latter."""
    formats: tuple[Format, ...] = ("nchw", "nhwc") if case.size else ("nchw",)
    dense = [
        _contender("dense", fmt, build_dense(case), case, batch, mode, settings) for fmt in formats
    ]
    sketches = []
    stacked = 1
    for mixing in mixings if case.taps > 1 else mixings[:1]:
        for fmt in settings.formats if case.size else settings.formats[:1]:
            layer = build_sketch(case, settings.rate, mixing, settings.path, settings.blocks)
            stacked = layer.num_sketches * layer.rank
            method = mixing if case.taps > 1 else "any"
            sketches.append(
                _contender(method, fmt, layer, case, batch, mode, settings, mixing=mixing)
            )
    return dense, sketches, stacked


def _contender(
    method: str,
    fmt: Format,
    layer: nn.Module,
    case: Case,
    batch: int,
    mode: Mode,
    settings: Settings,
    *,
    mixing: ops.Mixing | None = None,
) -> Contender:
    """Moves a layer to its device, type and format, and makes its input."""
    layer, data = placed(
        layer, case, batch, settings.device, settings.dtype, channels_last=fmt == "nhwc"
    )
    data.requires_grad_(mode == "training")
    return Contender(method, fmt, layer, data, mixing)


def _build_peers(
    case: Case, batch: int, mode: Mode, settings: Settings, sketches: Sequence[Contender]
) -> list[Contender]:
    """The peers that can stand in for this layer; why another cannot is said in one line."""
    built = []
    fitting = [peer for peer in settings.peers if peer.linear or case.size]
    for peer in fitting:
        for sketch in sketches:
            if sketch.format != settings.formats[0]:
                continue
            assert isinstance(sketch.layer, (SKConv2d, SKLinear))
            name = f"{peer.name} {sketch.method}" if peer.per_mixing else peer.name
            try:
                layer = peer.build(case, sketch.layer)
                contender = _contender(name, "nchw", layer, case, batch, mode, settings)
                contender.step(mode, graphs=False)()  # compiles, or shows that it cannot run
            except Exception as error:  # a peer's own trouble is not ours
                settings.say(f"{case.name}: no {name} ({shortened(error) or type(error).__name__})")
                break
            built.append(contender)
            if not peer.per_mixing:
                break
    return built


def _parameters(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())


ROWS = Table(
    *("layer", "method", "format", "path", "batch", "dense ms", "ms"),
    *("speed ", "(quartiles)", "GEMMs", "bound", "memory"),
    left=4,
    widths=(24, 16, 6, 9, 5, 9, 9, 6, 13, 6, 5, 6),
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
        number(row.gemms, ".2f"),
        number(row.bound, ".0%"),
        number(row.memory, ".2f"),
    )


def notes(rows: Sequence[Row]) -> list[str]:
    """What a reader of the table must know: the slowest row, and noise."""
    own = [row for row in rows if row.bound is not None]
    lines = []
    if own:
        slowest = min(own, key=lambda row: row.speed)
        lines.append(
            f"lowest speed: {slowest.speed:.2f} times dense ({slowest.layer}, {slowest.method}, "
            f"{slowest.mode}, batch {slowest.batch})"
        )
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


def write_rows(path: Path, rows: Sequence[Row], dtype: str, hardware: str) -> None:
    """Writes the rows with the type, hardware and versions they were measured with."""
    versions = {"torch": torch.__version__, "sketchlayers": __version__}
    write_csv(path, rows, ".6g", dtype=dtype, hardware=hardware, **versions)
