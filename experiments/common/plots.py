"""The plot that training runs share: accuracy over epochs, size and accuracy of the networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # Files only: works without a display.

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's palette, distinguishable with any colour vision, and a brown.
_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#8C510A",
)

_PIXELS = 100 / 72
"""Of a point at matplotlib's default resolution, in which it lays out."""


@dataclass(frozen=True)
class Curve:
    """One network: its name, number of parameters, and test accuracy (percent) by epoch.

    A network that was not trained has one accuracy and `epochs` (0,).
    """

    name: str
    parameters: int
    epochs: tuple[int, ...]
    accuracies: tuple[float, ...]

    @property
    def was_trained(self) -> bool:
        """Whether there is a curve, and not only the accuracy at the start."""
        return self.epochs != (0,)


def plot_curves(curves: Sequence[Curve], path: Path, *, title: str) -> None:
    """Writes a PNG: accuracy over epochs, and bars of every network's size and accuracy."""
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(12, 4.2), width_ratios=(5, 3, 3), layout="constrained"
    )
    figure.suptitle(title)
    _plot_learning(left, curves)
    parameters = [curve.parameters for curve in curves]
    _plot_bars(middle, curves, parameters, "{:,.0f}", "parameters")
    middle.set_yticks(range(len(curves)), [curve.name for curve in curves])
    accuracies = [curve.accuracies[-1] for curve in curves]
    _plot_bars(right, curves, accuracies, "{:.1f}", "test accuracy (%)")
    right.set_yticks([])
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _plot_learning(axes: Axes, curves: Sequence[Curve]) -> None:
    for curve, colour in zip(curves, _colours(len(curves)), strict=True):
        if curve.was_trained:
            axes.plot(
                curve.epochs,
                curve.accuracies,
                color=colour,
                marker="o",
                markersize=3,
                label=curve.name,
            )
    axes.set(xlabel="epoch", ylabel="test accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")


def _plot_bars(
    axes: Axes, curves: Sequence[Curve], values: Sequence[float], form: str, label: str
) -> None:
    """One bar a network, first on top, its value beside it; networks not trained are hollow."""
    colours = _colours(len(curves))
    bars = axes.barh(
        range(len(curves)),
        values,
        color=[
            colour if curve.was_trained else "none"
            for curve, colour in zip(curves, colours, strict=True)
        ],
        edgecolor=colours,
        height=0.6,
    )
    axes.bar_label(bars, [form.format(value) for value in values], padding=3, fontsize="small")
    axes.set(xlabel=label, xlim=(0, 1.3 * max([*values, 1])), xticks=[])
    axes.invert_yaxis()
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _colours(count: int) -> list[str]:
    return [_COLOURS[index % len(_COLOURS)] for index in range(count)]


@dataclass(frozen=True)
class Line:
    """A line of a panel: its name, its points and their standard deviations, if known."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    spread: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Panel:
    """A title, a few lines, a level that is drawn across all of the panel, and its own axis."""

    title: str
    lines: tuple[Line, ...]
    level: float | None = None
    x: str | None = None


def plot_panels(
    panels: Sequence[Panel], path: Path, *, x: str = "", y: str, level: str, across: int = 2
) -> None:
    """Writes a PNG with panels side by side; x falls to the right, where the lines are named.

    Args:
        panels: what to draw.
        path: of the file.
        x: label of the horizontal axis where a panel has none of its own.
        y: label of the vertical axis; it says whether higher or lower is better.
        level: name of the level.
        across: panels in a row, at most.
    """
    across = max(1, min(across, len(panels)))
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
        while len(groups) > 1 and _bottom(groups[-2], gap) - _top(groups[-1], gap) < gap:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_top(group, gap) - index * gap for group in groups for index in range(len(group))]


def _top(group: Sequence[float], gap: float) -> float:
    return sum(group) / len(group) + gap * (len(group) - 1) / 2


def _bottom(group: Sequence[float], gap: float) -> float:
    return sum(group) / len(group) - gap * (len(group) - 1) / 2
