"""The layer table as a picture: speeds with quartiles, a panel for either mode."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sketchlayers.reports.plot import (
    BLUE,
    GREEN,
    RED,
    check_picture,
    horizontal_rows,
    write_picture,
)

from .table import Row

Drawn = Row | SimpleNamespace
"""A row of the layer table, or the same of a network."""

_COLOURS = {"spatial": BLUE, "channel": RED, "any": GREEN}
_NAMES = {
    "spatial": "spatial mixing",
    "channel": "channel mixing",
    "any": "one mixing: 1x1 or fully connected",
}
TITLES = {"forward": "inference", "training": "forward + backward"}


def write_png(path: Path, rows: Sequence[Drawn], title: str) -> None:
    """Draws a dot for every row at its speed relative to dense, a bar from quartile to quartile.

    The speed stands beside the dot, and the name of the contender where it comes first.
    """
    check_picture(path)
    from matplotlib.figure import Figure

    modes = list(dict.fromkeys(row.mode for row in rows))
    labels = list(dict.fromkeys(_label(row) for row in rows))
    series = list(dict.fromkeys(_series(row) for row in rows))
    figure = Figure(
        figsize=(4 + 4.6 * len(modes), 1.2 + max(0.36, 0.15 * len(series)) * len(labels)),
        layout="constrained",
    )
    panels = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    for axes, mode in zip(panels, modes, strict=True):
        _draw(axes, [row for row in rows if row.mode == mode], labels, series)
        axes.set_title(TITLES[mode], fontsize="medium")
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].invert_yaxis()
    figure.suptitle(title, fontsize="medium")
    write_picture(figure, path)


def _label(row: Drawn) -> str:
    """The layer in words: ``5x5 96->192 @16`` has 96 and 192 channels on 16x16 pixels."""
    layer = re.sub(r" (\d+)->(\d+)", r", \1 to \2 channels", row.layer)
    layer = re.sub(r" @(\d+)", r", \1x\1 pixels", layer)
    layer = re.sub(r" /(\d+)$", r", stride \1", layer)
    layer = re.sub(r"^FC (\d+)x(\d+)$", r"fully connected, \1 to \2", layer)
    return f"{layer}; batch {row.batch}"


def _series(row: Drawn) -> str:
    return row.method if row.format == "nchw" else f"{row.method}, channels_last"


def _style(series: str) -> dict[str, Any]:
    """Colour by mixing; hollow for channels_last; a triangle if optimized for inference."""
    method, _, fmt = series.partition(", ")
    colour = _COLOURS[method.removeprefix("optimized ")]
    return {
        "color": colour,
        "fmt": "^" if method.startswith("optimized ") else "o",
        "markersize": 4.5,
        "markerfacecolor": "white" if fmt else colour,
    }


def _draw(axes: Any, rows: Sequence[Drawn], labels: Sequence[str], series: Sequence[str]) -> None:
    axes.axvline(1, color="black", linewidth=1, zorder=1)
    heights = _heights(rows, labels, series)
    for name in series:
        own = [row for row in rows if _series(row) == name]
        for index, row in enumerate(own):
            axes.errorbar(
                row.speed,
                heights[_label(row), name],
                xerr=[[row.speed - row.speed_low], [row.speed_high - row.speed]],
                elinewidth=1.5,
                **_style(name),
                zorder=3,
            )
            text = f"{row.speed:.2g}x" if row.speed < 1 else f"{row.speed:.1f}x"
            axes.annotate(
                f"{text}  {_NAMES.get(name, name)}" if index == 0 else text,
                (row.speed_high, heights[_label(row), name]),
                xytext=(4, 0),
                textcoords="offset points",
                verticalalignment="center",
                fontsize="x-small",
                color=_style(name)["color"],
            )
    _scale(axes, rows)
    for line in range(0, len(labels), 2):
        axes.axhspan(line - 0.5, line + 0.5, color="black", alpha=0.04, linewidth=0, zorder=0)
    axes.set_ylim(-0.5, len(labels) - 0.5)
    axes.set_xlabel("times as fast as dense (faster to the right)")
    horizontal_rows(axes)


def _heights(
    rows: Sequence[Drawn], labels: Sequence[str], series: Sequence[str]
) -> dict[tuple[str, str], float]:
    """Where the dots of a layer stand: evenly around its line, those that it has."""
    heights = {}
    for line, label in enumerate(labels):
        present = {_series(row) for row in rows if _label(row) == label}
        names = [name for name in series if name in present]
        for index, name in enumerate(names):
            heights[label, name] = line + (index + 1) / (len(names) + 1) - 0.5
    return heights


def _scale(axes: Any, rows: Sequence[Drawn]) -> None:
    """Logarithmic, with plain numbers at the ticks and room for a name on the right."""
    from matplotlib.ticker import LogLocator, NullLocator

    values = [value for row in rows for value in (row.speed_low, row.speed_high)]
    low, high = min(0.8, *values) / 1.1, max(1.25, *values)
    axes.set_xscale("log")
    axes.set_xlim(low, high * (high / low) ** 0.45)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
