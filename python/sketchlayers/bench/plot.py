"""The layer table as a picture: speeds with quartiles, a panel for either mode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol


class Drawn(Protocol):
    """What a dot needs to know: a `Row` of the layer table has it, one of networks too."""

    @property
    def layer(self) -> str:
        """What was measured."""

    @property
    def method(self) -> str:
        """The contender."""

    @property
    def format(self) -> str:
        """``nchw`` or ``nhwc``."""

    @property
    def mode(self) -> str:
        """``forward`` or ``training``."""

    @property
    def batch(self) -> int:
        """Images."""

    @property
    def speed(self) -> float:
        """Times as fast as dense."""

    @property
    def speed_low(self) -> float:
        """Lower quartile."""

    @property
    def speed_high(self) -> float:
        """Upper quartile."""

    @property
    def gemms(self) -> float | None:
        """Speed of the matrix products alone."""


# Okabe and Ito's palette, distinguishable with any colour vision.
_COLOURS = {
    "spatial": "#0072B2",
    "channel": "#D55E00",
    "any": "#009E73",
    "tensorly Tucker": "#CC79A7",
    "tensorly CP": "#E69F00",
    "Panther": "#56B4E9",
}
TITLES = {"forward": "inference", "training": "forward + backward"}


def require_matplotlib() -> None:
    """Fails before anything is measured, if the picture could not be drawn.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "--png: needs matplotlib, which is not installed (pip install matplotlib)"
        ) from error


def write_png(path: Path, rows: Sequence[Drawn], title: str) -> None:
    """Draws a dot for every row at its speed relative to dense, a bar from quartile to quartile.

    A grey stroke stands where the two matrix products alone would be.
    """
    from matplotlib.figure import Figure

    modes = list(dict.fromkeys(row.mode for row in rows))
    labels = list(dict.fromkeys(_label(row) for row in rows))
    series = list(dict.fromkeys(_series(row) for row in rows))
    figure = Figure(
        figsize=(3 + 4.2 * len(modes), 1.8 + max(0.42, 0.13 * len(series)) * len(labels)),
        layout="constrained",
    )
    panels = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    for axes, mode in zip(panels, modes, strict=True):
        _draw(axes, [row for row in rows if row.mode == mode], labels, series)
        axes.set_title(TITLES[mode], fontsize="medium")
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].invert_yaxis()
    handles, names = _legend(panels)
    figure.legend(
        handles, names, loc="outside lower center", ncols=min(4, len(names)), frameon=False
    )
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=150)


def _label(row: Drawn) -> str:
    return f"{row.layer}, batch {row.batch}"


def _series(row: Drawn) -> str:
    return row.method if row.format == "nchw" else f"{row.method}, channels_last"


def _style(series: str) -> dict[str, Any]:
    """Colour by mixing or package; hollow for channels_last; square if compiled by PyTorch."""
    method, _, fmt = series.partition(", ")
    colour = next((c for name, c in _COLOURS.items() if method.endswith(name)), "#999999")
    return {
        "color": colour,
        "fmt": {"compiled": "s", "optimized": "^"}.get(method.partition(" ")[0], "o"),
        "markersize": 4.5,
        "markerfacecolor": "white" if fmt else colour,
    }


def _draw(axes: Any, rows: Sequence[Drawn], labels: Sequence[str], series: Sequence[str]) -> None:
    axes.axvline(1, color="black", linewidth=1, zorder=1)
    heights = _heights(rows, labels, series)
    for name in series:
        own = [row for row in rows if _series(row) == name]
        if own:
            axes.errorbar(
                [row.speed for row in own],
                [heights[_label(row), name] for row in own],
                xerr=[
                    [row.speed - row.speed_low for row in own],
                    [row.speed_high - row.speed for row in own],
                ],
                elinewidth=1.5,
                **_style(name),
                label=name,
                zorder=3,
            )
    _draw_products(axes, rows, labels)
    _scale(axes, rows)
    for row in range(0, len(labels), 2):
        axes.axhspan(row - 0.5, row + 0.5, color="black", alpha=0.04, linewidth=0, zorder=0)
    axes.set_ylim(-0.5, len(labels) - 0.5)
    axes.set_xlabel("times as fast as dense")
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _heights(
    rows: Sequence[Drawn], labels: Sequence[str], series: Sequence[str]
) -> dict[tuple[str, str], float]:
    """Where the dots of a layer stand: evenly around its line, those that it has."""
    heights = {}
    for line, label in enumerate(labels):
        present = {_series(row) for row in rows if _label(row) == label}
        names = [name for name in series if name in present]
        for index, name in enumerate(names):
            heights[label, name] = line + 0.8 * ((index + 1) / (len(names) + 1) - 0.5)
    return heights


def _draw_products(axes: Any, rows: Sequence[Drawn], labels: Sequence[str]) -> None:
    speeds = {_label(row): row.gemms for row in rows if row.gemms is not None}
    if speeds:
        axes.scatter(
            list(speeds.values()),
            [labels.index(label) for label in speeds],
            marker="|",
            s=160,
            color="0.45",
            label="the two matrix products alone",
            zorder=2,
        )


def _scale(axes: Any, rows: Sequence[Drawn]) -> None:
    """Logarithmic, with plain numbers at the ticks."""
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator, StrMethodFormatter

    values = [value for row in rows for value in (row.speed_low, row.speed_high, row.gemms or 1.0)]
    low, high = min(0.8, *values) / 1.1, max(1.25, *values) * 1.1
    ticks = [0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 100]
    if high / low > 30:
        ticks = [tick for tick in ticks if tick not in (3, 4, 7, 15, 30)]
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", alpha=0.3)


def _legend(panels: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """Every name once, in the order of the panels."""
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(name, handle)
    return list(entries.values()), list(entries)
