"""Plots that scripts share: accuracy of training runs over epochs, and panels of named lines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # Files only: works without a display.

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from sketchlayers.reports.plot import BLUE, GREEN, ORANGE, PINK, RED

_COLOURS = (BLUE, RED, GREEN, PINK, ORANGE, "#56B4E9", "#000000", "#8C510A")

_PIXELS = 100 / 72
"""Of a point at matplotlib's default resolution, in which it lays out."""


def _colours(count: int) -> list[str]:
    return [_COLOURS[index % len(_COLOURS)] for index in range(count)]


@dataclass(frozen=True)
class Line:
    """Its name, its points and their standard deviations, if known; grey ones stay behind."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    spread: tuple[float, ...] | None = None
    grey: bool = False


def plot_curves(lines: Sequence[Line], path: Path, *, title: str) -> None:
    """Writes a PNG of test accuracies (percent) over epochs, with a legend."""
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    for line, colour in zip(lines, _colours(len(lines)), strict=True):
        axes.plot(line.x, line.y, color=colour, marker="o", markersize=3, label=line.name)
    axes.set(title=title, xlabel="epoch", ylabel="test accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")
    figure.savefig(path, dpi=150)
    plt.close(figure)


@dataclass(frozen=True)
class Panel:
    """A title, a few lines, a level that is drawn across all of the panel, and its own axis."""

    title: str
    lines: tuple[Line, ...]
    level: float | None = None
    x: str | None = None


def plot_panels(panels: Sequence[Panel], path: Path, *, x: str = "", y: str, level: str) -> None:
    """Writes a PNG with two panels in a row; x falls to the right, where the lines are named.

    Args:
        panels: what to draw.
        path: of the file.
        x: label of the horizontal axis where a panel has none of its own.
        y: label of the vertical axis; it says whether higher or lower is better.
        level: name of the level.
    """
    across = 2 if len(panels) > 1 else 1
    down = max(1, -(-len(panels) // across))
    figure, grid = plt.subplots(
        down,
        across,
        figsize=(5.6 * across, 3.7 * down),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, panel in zip(grid.flat, panels, strict=False):
        _plot_panel(axes, panel, level)
        axes.set_xlabel(panel.x or x)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel(y)
    figure.canvas.draw()  # sets the limits, on which the places of the names depend
    for axes, panel in zip(grid.flat, panels, strict=False):
        _name_lines(axes, panel, level)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def plot_sizes(
    panels: Sequence[Panel], path: Path, *, across: int = 1, lowest: float | None = None
) -> None:
    """Writes a PNG of accuracies over sizes, which fall to the right, as logarithms.

    Args:
        panels: what to draw; y and the spread are percent, x is thousands of bytes if a panel has
            no axis of its own. The level is the dense network's accuracy.
        path: of the file.
        across: panels in a row, which have the same lines.
        lowest: so many points below the level is where a panel ends; None: with its last point.
    """
    down = -(-len(panels) // across)
    size = 7.5 + 4.7 * (across - 1), 4.2 * down
    figure, grid = plt.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    for number, (axes, panel) in enumerate(zip(grid.flat, panels, strict=True), 1):
        _plot_sizes(axes, panel, lowest)
        if number % across == 0:
            axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _plot_sizes(axes: Axes, panel: Panel, lowest: float | None) -> None:
    coloured = [line for line in panel.lines if not line.grey]
    grey = [line for line in panel.lines if line.grey]
    colours = [*_colours(len(coloured)), *["#999999"] * len(grey)]
    bottom = -math.inf if lowest is None or panel.level is None else panel.level - lowest
    for number, (line, colour) in enumerate(zip([*coloured, *grey], colours, strict=True)):
        markers = "v^<>PXD*" if line.grey else "os"
        place = number - len(coloured) if line.grey else number // len(_COLOURS)
        axes.errorbar(
            line.x,
            line.y,
            line.spread,
            color=colour,
            marker=markers[place % len(markers)],
            markersize=4,
            capsize=2,
            linewidth=1.0 if line.grey else 1.5,
            zorder=1.5 if line.grey else 2.0,
            label=line.name + (f" ({max(line.y):.0f} % at most)" if max(line.y) < bottom else ""),
        )
    if panel.level is not None:
        named = any(line.name == "dense" for line in panel.lines)
        label = "_dense" if named else "dense"  # legends leave out what begins like this
        axes.axhline(panel.level, color="grey", linewidth=1, zorder=1, label=label)
        if lowest is not None:
            axes.set_ylim(bottom, panel.level + 0.25 * lowest)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(lambda size, _: f"{size:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.invert_xaxis()
    axes.set(
        title=panel.title,
        xlabel=panel.x or "thousands of bytes of the file",
        ylabel="accuracy (%)",
    )
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)


def _plot_panel(axes: Axes, panel: Panel, level: str) -> None:
    for line, colour in zip(panel.lines, _colours(len(panel.lines)), strict=True):
        axes.errorbar(
            line.x, line.y, line.spread, color=colour, marker="o", markersize=3.5, capsize=2
        )
    axes.set_title(panel.title, fontsize="medium")
    axes.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    axes.margins(y=0.1)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    places = [place for line in panel.lines for place in line.x]
    if places:
        first, last = max(places), min(places)
        width = first - last or 0.1
        if panel.level is not None:
            axes.plot([first, last], [panel.level] * 2, color="grey", linewidth=1, zorder=1)
        left, margin = first + 0.05 * width, 0.01 * width
        axes.set_xlim(left, last - 0.72 * width)  # room for the names
        axes.set_xticks([tick for tick in axes.get_xticks() if last - margin <= tick <= left])


def _name_lines(axes: Axes, panel: Panel, level: str) -> None:
    """Writes each line's name to the right of its last point, without overlaps."""
    colours = _colours(len(panel.lines))
    ends = [
        (line.y[line.x.index(min(line.x))], line.name, colour)
        for line, colour in zip(panel.lines, colours, strict=True)
        if line.x
    ]
    if not ends:
        return
    if panel.level is not None:
        ends.append((panel.level, level, "grey"))
    ends.sort(reverse=True)
    low, high = axes.get_ylim()
    place = min(line_x for line in panel.lines for line_x in line.x)
    heights = _apart([height for height, _, _ in ends], 0.065 * (high - low))
    for (height, name, colour), text_height in zip(ends, heights, strict=True):
        axes.annotate(
            name,
            (place, height),
            xytext=(12, (text_height - height) / (high - low) * axes.bbox.height / _PIXELS),
            textcoords="offset points",
            color=colour,
            fontsize="small",
            verticalalignment="center",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkB": 4},
        )


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """The nearest heights to falling ones that are a gap apart: groups around their means."""
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _places(groups[-2], gap)[-1] - _places(groups[-1], gap)[0] < gap:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [place for group in groups for place in _places(group, gap)]


def _places(group: Sequence[float], gap: float) -> list[float]:
    top = sum(group) / len(group) + gap * (len(group) - 1) / 2
    return [top - index * gap for index in range(len(group))]
