"""The speeds that the layers are to reach, and whether a measured table reaches them.

Speeds are relative to the faster of PyTorch's layers in both memory formats, at rate 0.1. On a CPU
they are for float32 and two threads, on a GPU for bfloat16 and channels_last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sketchlayers.reports.table import Table, number

from .bound import Mode
from .cases import FULLY_CONNECTED, GOOGLENET, GPU_LAYERS, NINN, RESNET, Case, distinct
from .table import Row

RATE = 0.1
THREADS = 2

GEMM_FLOOR = 0.8
"""Part of the two matrix products' speed that every channel mixing must have."""

NEVER_BELOW = 0.9
NEVER_BELOW_MS = 0.2
"""No layer whose dense time is above this may be slower than that."""


@dataclass(frozen=True)
class Goal:
    """A speed to reach; ``or_folded`` lets a choice of the folded path count as well."""

    case: Case
    mixing: str
    mode: Mode
    batch: int
    speed: float
    or_folded: bool = False


@dataclass(frozen=True)
class Judged:
    """A goal with the row that was measured for it; ``floor`` is None where there is none."""

    goal: Goal
    row: Row
    floor: float | None

    @property
    def verdict(self) -> str:
        """``yes``; ``floor`` above the two products' share alone; ``no``."""
        folded = self.goal.or_folded and self.row.path == "folded"
        if folded or self.row.speed >= self.goal.speed:
            return "yes"
        return "floor" if self.floor is not None and self.row.speed >= self.floor else "no"


def _goals(
    case: Case,
    mixing: str,
    forward: Mapping[int, float],
    training: Mapping[int, float],
    *,
    or_folded: bool = False,
) -> list[Goal]:
    modes: list[tuple[Mode, Mapping[int, float]]] = [("forward", forward), ("training", training)]
    return [
        Goal(case, mixing, mode, batch, speed, or_folded)
        for mode, speeds in modes
        for batch, speed in speeds.items()
    ]


def _cpu_goals() -> tuple[Goal, ...]:
    _, _, conv_4, conv_5, _, conv_7, _ = NINN
    conv_2, (inception, _), (*_, layer4) = NINN[0], GOOGLENET, RESNET
    _, fc_1024, fc_4096 = FULLY_CONNECTED
    goals = [
        *_goals(conv_4, "channel", {64: 3.5, 1: 4}, {64: 3.5}),
        *_goals(conv_7, "channel", {64: 4, 1: 4.5}, {64: 3.5}),
        *_goals(inception, "channel", {64: 4, 1: 4}, {64: 3.5}),
        *_goals(layer4, "channel", {64: 4.5, 1: 4.5}, {64: 4}),
        *_goals(conv_5, "any", {64: 2.2, 1: 1.5}, {64: 1.8}),
        *_goals(conv_2, "any", {64: 2.2, 1: 1.5}, {64: 1.8}),
    ]
    for case in distinct((*NINN, *GOOGLENET, *RESNET)):
        if case.kernel > 1:
            goals += _goals(case, "spatial", {64: 1.0, 1: 0.95}, {64: 0.98})
    goals += _goals(fc_4096, "any", {1: 7, 16: 6, 256: 4.2}, {256: 4})
    goals += _goals(fc_1024, "any", {1: 4, 256: 3.5}, {256: 3.5})
    return tuple(goals)


def _gpu_goals() -> tuple[Goal, ...]:
    goals: list[Goal] = []
    for case in GPU_LAYERS:
        if case.size == 0:
            goals += _goals(case, "any", {1: 6, 4096: 4}, {4096: 3})
        elif case.kernel == 1:
            goals += _goals(case, "any", {128: 1.2}, {128: 1.2}, or_folded=True)
        else:
            goals += _goals(case, "channel", {128: 2}, {128: 2})
            goals += _goals(case, "spatial", {128: 0.97}, {128: 0.97})
    return tuple(goals)


CPU_GOALS = _cpu_goals()
GPU_GOALS = _gpu_goals()


def goals_for(device_type: str) -> tuple[Goal, ...]:
    """The goals of a kind of device, ``"cpu"`` or ``"cuda"``."""
    return GPU_GOALS if device_type == "cuda" else CPU_GOALS


def judge(goals: Sequence[Goal], rows: Sequence[Row]) -> list[Judged]:
    """Every goal that was measured, with its row; the faster one where a layer has two formats."""
    judged = []
    for goal in goals:
        found = [
            row
            for row in rows
            if (row.layer, row.method, row.mode, row.batch)
            == (goal.case.name, goal.mixing, goal.mode, goal.batch)
        ]
        if not found:
            continue
        row = max(found, key=lambda row: row.speed)
        floor = None
        if goal.mixing == "channel" and row.gemms is not None:
            floor = GEMM_FLOOR * row.gemms
        judged.append(Judged(goal, row, floor))
    return judged


def too_slow(rows: Sequence[Row]) -> list[Row]:
    """Rows with the automatic choice that are slower than any layer may be."""
    return [
        row
        for row in rows
        if row.automatic and row.dense_ms > NEVER_BELOW_MS and row.speed < NEVER_BELOW
    ]


def too_large(rows: Sequence[Row]) -> list[Row]:
    """Rows whose peak memory is above what the layer may need."""
    return [
        row
        for row in rows
        if row.memory is not None and row.memory_limit is not None and row.memory > row.memory_limit
    ]


def summary(goals: Sequence[Goal], rows: Sequence[Row]) -> str:
    """The table of figures and, below it, what is too slow or too large."""
    judged = judge(goals, rows)
    table = Table(
        *("figure", "mixing", "mode", "batch", "goal", "measured", "(quartiles)", "floor"),
        "reached",
        left=3,
    )
    for own in judged:
        goal, row = own.goal, own.row
        table.add(
            goal.case.name,
            goal.mixing,
            goal.mode,
            str(goal.batch),
            f"{goal.speed:.2f}",
            f"{row.speed:.2f}",
            f"({row.speed_low:.2f}-{row.speed_high:.2f})",
            number(own.floor, ".2f"),
            own.verdict,
        )
    reached = sum(own.verdict == "yes" for own in judged)
    lines = ["", str(table), "", f"{reached} of {len(judged)} reached"]
    lines.append(
        f"floor: {GEMM_FLOOR} times the two matrix products alone; 'floor' as an answer means that"
        " the goal is missed and the floor is held"
    )
    for what, wrong in (
        (f"slower than {NEVER_BELOW} times dense", too_slow(rows)),
        ("peak memory above the limit", too_large(rows)),
    ):
        named = [f"{row.layer} {row.method} {row.mode} at {row.batch}" for row in wrong]
        lines.append(f"{what}: {', '.join(named) or 'none'}")
    return "\n".join(lines)
