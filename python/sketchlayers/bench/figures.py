"""The speeds that the layers are to reach, and whether a measured table reaches them.

Speeds are relative to the faster of PyTorch's layers in both memory formats, at rate 0.1. On a CPU
they are for two threads, and in bfloat16 for processors with AMX; on a GPU for bfloat16 and
channels_last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sketchlayers.reports.table import Table

from .bound import Mode
from .cases import ALL, GPU_LAYERS, TABLE, Case
from .table import Row

RATE = 0.1
THREADS = 2

NEVER_BELOW = 0.9
NEVER_BELOW_MS = 0.2
"""No layer whose dense time is above this may be slower than that."""

TRAINING_MEMORY_LIMIT = 1.05
"""Peak memory that a training step may need, relative to the dense layer's."""


@dataclass(frozen=True)
class Goal:
    """A speed to reach; ``or_folded`` lets a choice of the folded path count as well."""

    case: Case
    mixing: str
    mode: Mode
    batch: int
    speed: float
    or_folded: bool = False

    def row(self, rows: Sequence[Row]) -> Row | None:
        """The row that was measured for it, if any; the faster one of two formats."""
        key = (self.case.name, self.mixing, self.mode, self.batch)
        found = [row for row in rows if (row.layer, row.method, row.mode, row.batch) == key]
        return max(found, key=lambda row: row.speed, default=None)

    def reached(self, row: Row) -> bool:
        """Whether its row is fast enough."""
        return (self.or_folded and row.path == "folded") or row.speed >= self.speed


_CASES = {case.name: case for case in ALL}


def _goals(
    layer: str,
    mixing: str,
    forward: Mapping[int, float],
    training: Mapping[int, float],
    *,
    or_folded: bool = False,
) -> Iterator[Goal]:
    """Speeds by batch."""
    modes: list[tuple[Mode, Mapping[int, float]]] = [("forward", forward), ("training", training)]
    for mode, speeds in modes:
        for batch, speed in speeds.items():
            yield Goal(_CASES[layer], mixing, mode, batch, speed, or_folded)


def _gpu_goals() -> Iterator[Goal]:
    for case in GPU_LAYERS:
        if case.size == 0:
            yield from _goals(case.name, "any", {1: 6, 4096: 4}, {4096: 3})
        elif case.kernel == 1:
            yield from _goals(case.name, "any", {128: 1.2}, {128: 1.2}, or_folded=True)
        else:
            yield from _goals(case.name, "channel", {128: 2}, {128: 2})
            yield from _goals(case.name, "spatial", {128: 0.97}, {128: 0.97})


CPU_GOALS = (
    *_goals("5x5 96->192 @16", "channel", {64: 3.5, 1: 4}, {64: 3.5}),
    *_goals("3x3 192->192 @8", "channel", {64: 4, 1: 4.5}, {64: 3.5}),
    *_goals("3x3 96->208 @14", "channel", {64: 4, 1: 4}, {64: 3.5}),
    *_goals("3x3 512->512 @7", "channel", {64: 4.5, 1: 4.5}, {64: 4}),
    *_goals("1x1 192->192 @16", "any", {64: 2.2, 1: 1.5}, {64: 1.8}),
    *_goals("1x1 192->160 @32", "any", {64: 2.2, 1: 1.5}, {64: 1.8}),
    *(
        goal
        for case in TABLE
        if case.kernel > 1
        for goal in _goals(case.name, "spatial", {64: 1.0, 1: 0.95}, {64: 0.98})
    ),
    *_goals("FC 4096x4096", "any", {1: 7, 16: 6, 256: 4.2}, {256: 4}),
    *_goals("FC 1024x1024", "any", {1: 4, 256: 3.5}, {256: 3.5}),
)
BFLOAT16_GOALS = (
    *_goals("5x5 96->192 @16", "channel", {64: 3}, {64: 3}),
    *(
        goal
        for case in TABLE
        if case.kernel == 3 and case.stride == 1 and case.in_channels > 64
        for goal in _goals(case.name, "channel", {64: 2}, {64: 2})
    ),
    *_goals("1x1 192->192 @16", "any", {64: 1, 1: 1}, {64: 1}),
    *_goals("1x1 192->160 @32", "any", {64: 1, 1: 1}, {64: 1}),
    *(
        goal
        for case in TABLE
        if case.kernel > 1
        for goal in _goals(case.name, "spatial", {64: 0.95, 1: 0.95}, {64: 0.95})
    ),
    *_goals("FC 4096x4096", "any", {1: 3.3, 16: 3, 256: 3.5}, {256: 3.5}),
    *_goals("FC 1024x1024", "any", {256: 1.6}, {256: 1.6}),
)
GPU_GOALS = tuple(_gpu_goals())


def summary(goals: Sequence[Goal], rows: Sequence[Row]) -> str:
    """The table of figures that were measured and, below it, what is too slow or too large."""
    table = Table(
        *("figure", "mixing", "mode", "batch", "goal", "measured", "(quartiles)", "reached"), left=3
    )
    measured = [(goal, row) for goal in goals if (row := goal.row(rows)) is not None]
    for goal, row in measured:
        table.add(
            goal.case.name,
            goal.mixing,
            goal.mode,
            str(goal.batch),
            f"{goal.speed:.2f}",
            f"{row.speed:.2f}",
            f"({row.speed_low:.2f}-{row.speed_high:.2f})",
            "yes" if goal.reached(row) else "no",
        )
    reached = sum(goal.reached(row) for goal, row in measured)
    slow = [row for row in rows if row.dense_ms > NEVER_BELOW_MS and row.speed < NEVER_BELOW]
    large = [row for row in rows if row.mode == "training" and row.memory > TRAINING_MEMORY_LIMIT]
    return "\n".join(
        [
            *("", str(table), "", f"{reached} of {len(measured)} reached"),
            f"slower than {NEVER_BELOW} times dense: {_named(slow)}",
            f"training with more than {TRAINING_MEMORY_LIMIT} of the peak memory: {_named(large)}",
        ]
    )


def _named(rows: Sequence[Row]) -> str:
    names = (f"{row.layer} {row.method} {row.mode} at {row.batch}" for row in rows)
    return ", ".join(names) or "none"
