"""Plots: names of lines can be read, whatever the lines."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from common.plots import Line, Panel, _apart, plot_panels


@pytest.mark.parametrize(
    "heights", [[10.0, 5.0, 0.0], [3.0, 2.9, 2.8, 0.0], [1.0, 1.0, 1.0], [2.0], []]
)
def test_names_keep_their_order_and_a_distance(heights: list[float]) -> None:
    places = _apart(heights, 1.0)
    assert len(places) == len(heights)
    assert all(above - below >= 1 - 1e-9 for above, below in itertools.pairwise(places))
    assert sum(places) == pytest.approx(sum(heights))


def test_names_that_are_apart_stay_where_they_are() -> None:
    assert _apart([10.0, 5.0, 0.0], 1.0) == [10.0, 5.0, 0.0]


@pytest.mark.parametrize(
    "panels",
    [
        [],
        [Panel("no lines", (), 1.0)],
        [Panel("no points", (Line("a", (), (), ()),), 1.0)],
        [Panel("one point", (Line("a", (0.5,), (1.0,)),))],
        [Panel("two lines", (Line("a", (0.5, 0.2), (1.0, 2.0)), Line("b", (0.5,), (1.0,))), 1.0)],
    ],
)
def test_panels_of_any_lines_are_drawn(panels: list[Panel], tmp_path: Path) -> None:
    plot_panels(panels, tmp_path / "plot.png", x="x", y="y", level="dense")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
