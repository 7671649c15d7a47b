"""The demo's plot: accuracy over the size of the file, and over milliseconds an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # Files only: works without a display.

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

_COLOURS = ("#0072B2", "#D55E00", "#009E73")  # Okabe and Ito's, for any colour vision.


@dataclass(frozen=True)
class Series:
    """Networks of one kind: a label for each, and where it stands.

    Attributes:
        name: of the kind, written beside its networks.
        labels: of the networks.
        x: of the networks.
        accuracy: of the networks, in percent.
        joined: whether a line goes through them.
    """

    name: str
    labels: tuple[str, ...]
    x: tuple[float, ...]
    accuracy: tuple[float, ...]
    joined: bool = True


@dataclass(frozen=True)
class Panel:
    """One set of axes: what is on the horizontal one, and the networks."""

    x: str
    series: tuple[Series, ...]


def draw(panels: Sequence[Panel], path: Path, *, title: str) -> None:
    """Writes a PNG; every network has its label beside it, and axes say what is better."""
    figure, grid = plt.subplots(
        1, len(panels), figsize=(6 * len(panels), 4.6), sharey=True, layout="constrained"
    )
    figure.suptitle(title)
    for number, (series, colour) in enumerate(zip(panels[0].series, _COLOURS, strict=False)):
        mark = "●" if series.joined else "■"
        figure.text(
            (number + 0.5) / len(panels[0].series),
            -0.02,
            f"{mark} {series.name}",
            color=colour,
            ha="center",
            va="top",
        )
    for axes, panel in zip(grid, panels, strict=True):
        _draw(axes, panel)
    grid[0].set_ylabel("test accuracy (%), higher is better")
    figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(figure)


def _draw(axes: Axes, panel: Panel) -> None:
    accuracies = [y for series in panel.series for y in series.accuracy]
    gap = 0.06 * max(1.0, max(accuracies) - min(accuracies))
    for series, colour in zip(panel.series, _COLOURS, strict=False):
        axes.plot(
            series.x, series.accuracy, "o-" if series.joined else "s", color=colour, markersize=5
        )
        height = -math.inf
        for y, x, label in sorted(zip(series.accuracy, series.x, series.labels, strict=True)):
            height = y + gap if series.joined else max(y, height + gap)
            axes.annotate(
                label,
                (x, height),
                xytext=(0 if series.joined else 8, 0),
                textcoords="offset points",
                ha="center" if series.joined else "left",
                va="center",
                color=colour,
                fontsize="small",
                path_effects=[withStroke(linewidth=3, foreground="white")],
            )
    axes.set_xlabel(f"{panel.x}, smaller is better")
    axes.margins(y=0.2)
    axes.set_xlim(0, 1.25 * max(x for series in panel.series for x in series.x))  # labels fit
    axes.grid(alpha=0.3)
