"""Layers of factors, as `compress` makes them, against the dense layer and against their own parts.

Speeds are relative to the faster of PyTorch's layers in both memory formats. The goals are for a
CPU, float32 and two threads.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sketchlayers._runtime.timing import Step, paired_times
from sketchlayers.nn import CPConv2d, TuckerConv2d
from sketchlayers.reports.table import Table

from .bound import Mode
from .cases import Case
from .table import Format
from .timing import inference, speeds, training_step

KINDS = {"cp": CPConv2d, "tucker2": TuckerConv2d}
RATES = (0.5, 0.3)
_FORMATS: dict[Format, torch.memory_format] = {
    "nchw": torch.contiguous_format,
    "nhwc": torch.channels_last,
}


@dataclass(frozen=True)
class Chain:
    """A 3x3 layer and a batch, with the speeds to reach: by method, at each of `RATES`."""

    case: Case
    batch: int
    goals: dict[str, tuple[float, float]]


_LARGE = {"cp": (1.3, 2.0), "tucker2": (1.5, 2.3)}
_SMALL = {"cp": (1.0, 1.3), "tucker2": (1.1, 1.5)}


def _chain(channels: int, size: int, batch: int, goals: dict[str, tuple[float, float]]) -> Chain:
    return Chain(Case("", channels, channels, kernel=3, size=size, padding=1), batch, goals)


CHAINS = (
    _chain(64, 56, 1, _LARGE),
    _chain(64, 56, 16, _LARGE),
    _chain(256, 14, 1, _LARGE),
    _chain(256, 14, 16, _LARGE),
    _chain(16, 32, 64, _SMALL),
    _chain(64, 8, 64, _SMALL),
)


@dataclass(frozen=True)
class FactoredRow:
    """A layer of factors against the faster dense layer of the same run.

    Times are medians in milliseconds, ``parts_ms`` of the layer's parts one after the other; speeds
    are relative to dense, with quartiles. ``goal`` is the speed to reach; None where none is set.
    """

    layer: str
    method: str
    rate: float
    batch: int
    mode: Mode
    format: Format
    path: str
    dense_format: Format
    dense_ms: float
    parts_ms: float
    ms: float
    speed: float
    speed_low: float
    speed_high: float
    goal: float | None

    @property
    def reached(self) -> str:
        """Whether the goal is: "yes", "no", or nothing where there is none."""
        return "" if self.goal is None else "yes" if self.speed >= self.goal else "no"


class _Parts(nn.Module):
    """The parts of a layer, one after the other."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.parts = nn.Sequential(*layer.children())

    def forward(self, input: Tensor) -> Tensor:
        output: Tensor = self.parts(input)
        return output


def rows_of(chain: Chain, mode: Mode, dtype: torch.dtype, seconds: float) -> Iterator[FactoredRow]:
    """Measures all methods, rates and formats of a layer in one paired run."""
    case, batch = chain.case, chain.batch
    begin: Callable[[nn.Module, Tensor], Step]
    begin = training_step if mode == "training" else inference
    contenders: list[tuple[Any, ...]] = []
    steps: list[Step] = []
    for format, memory_format in _FORMATS.items():
        data = torch.randn(case.input_shape(batch)).to(dtype, memory_format=memory_format)
        data.requires_grad_(mode == "training")
        sizes = case.in_channels, case.out_channels, case.kernel

        def step(layer: nn.Module, data: Tensor = data, to: Any = memory_format) -> Step:
            return begin(layer.to(dtype).to(memory_format=to), data)

        steps.append(step(nn.Conv2d(*sizes, padding=case.padding)))
        contenders.append((format, None, None, ""))
        for method, kind in KINDS.items():
            for rate in RATES:
                layer: Any = kind(*sizes, padding=case.padding, rate=rate)
                steps += [step(_Parts(layer)), step(layer)]
                with torch.set_grad_enabled(mode == "training"):
                    path = layer.plan(data.shape, channels_last=format == "nhwc").path
                contenders += [(format, method, rate, "parts"), (format, method, rate, path)]
    times = dict(zip(contenders, paired_times(steps, seconds, torch.device("cpu")), strict=True))
    dense = {key[0]: taken for key, taken in times.items() if key[1] is None}
    dense_format = min(dense, key=lambda format: statistics.median(dense[format]))
    for (format, method, rate, path), taken in times.items():
        if method is None or path == "parts":
            continue
        low, speed, high = speeds(dense[dense_format], taken)
        has_goal = mode == "forward" and dtype == torch.float32
        yield FactoredRow(
            layer=case.name,
            method=method,
            rate=rate,
            batch=batch,
            mode=mode,
            format=format,
            path=path,
            dense_format=dense_format,
            dense_ms=1e3 * statistics.median(dense[dense_format]),
            parts_ms=1e3 * statistics.median(times[format, method, rate, "parts"]),
            ms=1e3 * statistics.median(taken),
            speed=speed,
            speed_low=low,
            speed_high=high,
            goal=chain.goals[method][RATES.index(rate)] if has_goal else None,
        )


TABLE = Table(
    *("layer", "method", "format", "path", "batch", "rate", "dense ms", "parts ms", "ms"),
    *("speed", "(quartiles)", "goal", "reached"),
    left=4,
    widths=(17, 7, 6, 5, 5, 4, 8, 8, 8, 5, 13, 4, 7),
)


def cells(row: FactoredRow) -> Sequence[str]:
    """What the table has of a row."""
    return (
        *(row.layer, row.method, row.format, row.path, str(row.batch), f"{row.rate:g}"),
        *(f"{row.dense_ms:.2f}", f"{row.parts_ms:.2f}", f"{row.ms:.2f}", f"{row.speed:.2f}"),
        f"({row.speed_low:.2f}-{row.speed_high:.2f})",
        *("" if row.goal is None else f"{row.goal:.2f}", row.reached),
    )


def summary(rows: Sequence[FactoredRow]) -> str:
    """How many goals are reached."""
    goals = [row for row in rows if row.goal is not None]
    return f"{sum(row.reached == 'yes' for row in goals)} of {len(goals)} reached"
