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
    """A line of a panel: its name, its points and how far they spread up and down, if known."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    spread: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Panel:
    """A title, lines, and a level that is drawn across all of the panel."""

    title: str
    lines: tuple[Line, ...]
    level: float | None = None


def plot_panels(panels: Sequence[Panel], path: Path, *, x: str, y: str, level: str) -> None:
    """Writes a PNG with panels side by side, at most four in a row; the same name, the same line.

    Args:
        panels: what to draw.
        path: of the file.
        x: label of the horizontal axis.
        y: label of the vertical axis.
        level: what the level is called.
    """
    across = max(1, min(4, len(panels)))
    down = max(1, -(-len(panels) // across))
    figure, grid = plt.subplots(
        down,
        across,
        figsize=(max(6.4, 4.2 * across), 3.6 * down + 0.8),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    styles = {
        name: {"color": colour, "linestyle": ("-", "--", ":")[index // len(_COLOURS) % 3]}
        for index, (name, colour) in enumerate(zip(names, _colours(len(names)), strict=True))
    }
    handles = {}
    for axes, panel in zip(grid.flat, panels, strict=False):
        for line in panel.lines:
            handles[line.name] = axes.errorbar(
                line.x,
                line.y,
                line.spread,
                marker="o",
                markersize=3,
                capsize=2,
                **styles[line.name],
            )
        if panel.level is not None:
            handles[level] = axes.axhline(panel.level, color="grey", linewidth=0.8)
        axes.set_title(panel.title, fontsize="small")
        axes.set_xlabel(x)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.grid(alpha=0.3)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_axis_off()
    for axes in grid[:, 0]:
        axes.set_ylabel(y)
    order = [name for name in (level, *names) if name in handles]
    figure.legend(
        [handles[name] for name in order],
        order,
        loc="outside lower center",
        ncols=max(2, across),
        fontsize="small",
    )
    figure.savefig(path, dpi=150)
    plt.close(figure)
