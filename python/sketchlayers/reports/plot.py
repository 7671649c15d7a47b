"""Layers as a picture: parameters before and after, and the error of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sketchlayers._runtime.extras import missing
from sketchlayers._runtime.files import written_whole
from sketchlayers.reports.rows import LayerReport
from sketchlayers.reports.table import layer_name, quantity

BLUE, ORANGE, GREEN, PINK, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00"
"""Okabe and Ito's palette, distinguishable with any colour vision."""

_COLOURS = {"tucker2": BLUE, "svd": ORANGE, "cp": GREEN, "sketch": PINK, "dense": "#555555"}
_BEFORE = "#DDDDDD"
_MANY_LAYERS = 60
"""Layers from which on rows are lower, so that the figure stays within a page or two."""
_NARROWEST, _LETTER, _PANEL = 3.0, 0.07, 4.0
"""Inches: of the names' column at least, of a letter of a name, and of a panel."""


def check_picture(path: Path) -> None:
    """Makes sure that a picture of this name can be drawn.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: matplotlib draws no files of this kind.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise ImportError(missing("a plot", "matplotlib", "plot")) from error
    kinds = FigureCanvasAgg.get_supported_filetypes()
    if _kind(path) not in kinds:
        raise ValueError(
            f"Report.plot: a picture must end in one of .{', .'.join(sorted(kinds))} (got {path})"
        )


def draw_layers(
    layers: Sequence[LayerReport], path: Path, *, title: str, error_of: str | None
) -> None:
    """Draws layers into a file; for what can go wrong see `check_picture`.

    Args:
        layers: those without parameters are left out.
        path: of the file; its ending says what kind of picture.
        title: stands above.
        error_of: whose the errors are, "output" or "weight"; None where there are none.
    """
    check_picture(path)
    from matplotlib.figure import Figure

    rows = [row for row in layers if row.parameters_before]
    panels = 1 + (error_of is not None)
    height = 1.4 + len(rows) * (0.2 if len(rows) <= _MANY_LAYERS else 0.14)
    names = [layer_name(row.name) for row in rows]
    width = max([_NARROWEST, *(_LETTER * len(name) for name in names)]) + _PANEL * panels
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    _draw_parameters(axes[0], rows)
    if error_of is not None:
        _draw_errors(axes[1], rows)
        axes[1].set_xlabel(f"relative error of the layer's {error_of}")
    axes[0].set_yticks(range(len(rows)), names, fontsize=8 if len(rows) <= _MANY_LAYERS else 6)
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.suptitle(title, fontsize="medium")
    write_picture(figure, path)


def write_picture(figure: Any, path: Path) -> None:
    """Writes a figure of matplotlib, whole or not at all."""
    with written_whole(path) as temporary:
        figure.savefig(temporary, format=_kind(path), dpi=150)


def _kind(path: Path) -> str:
    return path.suffix.lower().removeprefix(".")


def _draw_parameters(axes: Any, rows: Sequence[LayerReport]) -> None:
    places = range(len(rows))
    before = [row.parameters_before for row in rows]
    axes.barh(places, before, height=0.8, color=_BEFORE, label="before")
    for label in dict.fromkeys(row.becomes for row in rows):
        own = [place for place in places if rows[place].becomes == label]
        if label is not None:
            after = [rows[place].parameters_after for place in own]
            axes.barh(own, after, height=0.5, color=colour_of(label), label=label)
    axes.set_xlabel("parameters")
    axes.xaxis.set_major_formatter(lambda value, _: quantity(round(value)))
    _tidy(axes)


def _draw_errors(axes: Any, rows: Sequence[LayerReport]) -> None:
    for place, row in enumerate(rows):
        if row.relative_error is not None:
            axes.barh(place, row.relative_error, height=0.5, color=colour_of(row.becomes))
    axes.set_xlim(left=0)
    _tidy(axes)


def colour_of(label: str | None) -> str:
    """Returns the colour of a method; another one for those that have none of their own."""
    return _COLOURS.get(label or "dense", RED)


def _tidy(axes: Any) -> None:
    axes.set_axisbelow(True)
    horizontal_rows(axes)


def horizontal_rows(axes: Any) -> None:
    """Takes off what axes with a name for each row do not need."""
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
