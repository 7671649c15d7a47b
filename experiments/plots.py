"""The plot that training runs share: accuracy over epochs, and accuracy against parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # Files only: works without a display.

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Okabe and Ito's palette, distinguishable with any colour vision.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@dataclass(frozen=True)
class Curve:
    """One network: its name, number of parameters, and test accuracy (percent) by epoch.

    A network that was not trained has one accuracy and `epochs` (0,).
    """

    name: str
    parameters: int
    epochs: tuple[int, ...]
    accuracies: tuple[float, ...]


def plot_curves(curves: Sequence[Curve], path: Path, *, title: str) -> None:
    """Writes a PNG with both panels."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    figure.suptitle(title)
    _plot_learning(left, curves)
    _plot_trade_off(right, curves)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _plot_learning(axes: Axes, curves: Sequence[Curve]) -> None:
    for curve, colour in zip(curves, _colours(len(curves)), strict=True):
        if len(curve.epochs) > 1:
            axes.plot(
                curve.epochs,
                curve.accuracies,
                color=colour,
                marker="o",
                markersize=3,
                label=f"{curve.name}: {curve.accuracies[-1]:.1f} %",
            )
    axes.set(xlabel="epoch", ylabel="test accuracy (%)", title="Training")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")


def _plot_trade_off(axes: Axes, curves: Sequence[Curve]) -> None:
    for curve, colour in zip(curves, _colours(len(curves)), strict=True):
        trained = len(curve.epochs) > 1
        axes.scatter(
            curve.parameters,
            curve.accuracies[-1],
            s=64,
            color=colour if trained else "none",
            edgecolors=colour,
            linewidths=1.6,
            label=curve.name if trained else f"{curve.name} (hollow: not trained)",
            zorder=3,
        )
    axes.set(xlabel="parameters", ylabel="test accuracy (%)", title="Size and accuracy")
    axes.set_xlim(0, 1.1 * max(curve.parameters for curve in curves))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:g}k"))
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize="small")


def _colours(count: int) -> list[str]:
    return [_COLOURS[index % len(_COLOURS)] for index in range(count)]
