"""A row of the layer table, for tests that measure nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sketchlayers.bench.table import Row

ROW = Row(
    layer="5x5 96->192 @16",
    method="channel",
    format="nchw",
    path="factored",
    mode="forward",
    batch=64,
    rate=0.1,
    dense_format="nhwc",
    dense_ms=30.0,
    ms=8.0,
    speed=3.75,
    speed_low=3.7,
    speed_high=3.8,
    bound=0.5,
    dense_bound=0.9,
    memory=0.9,
    rounds=9,
)


def row(**changes: Any) -> Row:
    """The row above with some values changed."""
    return replace(ROW, **changes)
