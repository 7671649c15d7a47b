"""Which speeds count as reached, and that all of them can be measured by name."""

from __future__ import annotations

import pytest

from sketchlayers.bench import figures
from sketchlayers.bench.cases import NINN, TABLE
from sketchlayers.bench.figures import CPU_GOALS, GPU_GOALS, Goal

from .rows import row

GOAL = Goal(NINN[2], "channel", "forward", 64, 3.5)


@pytest.mark.parametrize(("speed", "verdict"), [(3.5, "yes"), (3.49, "no")])
def test_a_goal_is_reached_by_the_median(speed: float, verdict: str) -> None:
    line = figures.summary([GOAL], [row(speed=speed)]).splitlines()[3]
    assert line.startswith("5x5 96->192 @16") and line.endswith(verdict)


def test_the_folded_path_counts_where_the_goal_says_so() -> None:
    goal = Goal(NINN[3], "any", "forward", 64, 1.2, or_folded=True)
    assert not goal.reached(row(speed=1.0))
    assert goal.reached(row(speed=1.0, path="folded"))


def test_other_rows_are_not_taken_for_a_goal() -> None:
    others = [row(batch=1), row(mode="training"), row(method="spatial"), row(layer="FC 1x1")]
    assert GOAL.row(others) is None
    assert "0 of 0 reached" in figures.summary([GOAL], others)


def test_of_two_formats_the_faster_one_counts() -> None:
    fast = row(speed=3.6, format="nhwc")
    assert GOAL.row([row(speed=3.0), fast]) == fast


def test_the_summary_names_what_is_too_slow_or_too_large() -> None:
    rows = [
        row(),
        row(layer="slow", speed=0.89),
        row(layer="slow but tiny", speed=0.5, dense_ms=0.19),
        row(layer="large", mode="training", memory=1.06),
    ]
    text = figures.summary([GOAL], rows)
    assert "1 of 1 reached" in text
    assert "slower than 0.9 times dense: slow channel forward at 64\n" in text
    assert text.endswith("of the peak memory: large channel training at 64")


def test_goals_are_about_layers_that_can_be_named() -> None:
    names = {case.name for case in TABLE}
    assert {goal.case.name for goal in CPU_GOALS} <= names
    keys = [(goal.case.name, goal.mixing, goal.mode, goal.batch) for goal in CPU_GOALS + GPU_GOALS]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    ("layer", "mixing", "mode", "batch", "speed"),
    [
        ("5x5 96->192 @16", "channel", "forward", 1, 4.0),
        ("3x3 192->192 @8", "channel", "forward", 64, 4.0),
        ("3x3 96->208 @14", "channel", "training", 64, 3.5),
        ("3x3 512->512 @7", "channel", "training", 64, 4.0),
        ("1x1 192->160 @32", "any", "forward", 1, 1.5),
        ("3x3 64->64 @56", "spatial", "forward", 1, 0.95),
        ("FC 4096x4096", "any", "forward", 16, 6.0),
        ("FC 1024x1024", "any", "training", 256, 3.5),
    ],
)
def test_goals_of_the_processor(
    layer: str, mixing: str, mode: str, batch: int, speed: float
) -> None:
    found = [
        goal.speed
        for goal in CPU_GOALS
        if (goal.case.name, goal.mixing, goal.mode, goal.batch) == (layer, mixing, mode, batch)
    ]
    assert found == [speed]
