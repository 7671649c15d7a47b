"""Results of a figure's points: one CSV file, a table, a plot of error over rate."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.plots import Line, Panel, plot_panels
from common.runs import RunError, read_csv
from common.tables import Column, decimals, format_table
from figures.contenders import CONTENDERS
from figures.points import summaries
from plot import result_row
from sketchlayers._runtime.files import write_csv

Row = dict[str, Any]


def collect(out: Path) -> list[Row]:
    """Writes ``results.csv`` from the summaries of all points below a folder that have ended."""
    rows = []
    for summary in summaries(out):
        row = result_row(summary)
        accuracy = row["test_accuracy"]
        error = None if accuracy is None else 100 - float(str(accuracy))
        figure = summary["part_of"]  # whose method is that of the contender
        rows.append({**figure, "error": error, **row, "method": figure["method"]})
    rows.sort(key=lambda row: (-row["nominal_rate"], row["method"], row["seed"]))
    if rows:
        write_csv(out / "results.csv", rows)
    return rows


def show(files: Sequence[Path], *, markdown: bool) -> str:
    """A comparison for each data set.

    Raises:
        RunError: a file is not there or has other columns.
    """
    tables = [
        f"{title}\n\n{comparison(rows, markdown=markdown)}"
        for title, rows in _by_data(files).items()
    ]
    return "\n\n".join(tables)


def comparison(rows: Sequence[Row], *, markdown: bool = False) -> str:
    """A line a point, a column a method: errors in percent, and what the sketch is away by.

    Over several seeds, mean and standard deviation. A method that learned nothing with any seed is
    shown as failed; the differences are those of means, of the sketch in the scripts' own recipe.
    """
    points: dict[float, dict[str, list[Row]]] = {}
    for row in sorted(rows, key=lambda row: -float(row["nominal_rate"])):
        points.setdefault(float(row["nominal_rate"]), {}).setdefault(row["method"], []).append(row)
    dense = points.get(1.0, {}).get("dense", [])
    lines: list[dict[str, object]] = []
    for nominal, members in points.items():
        others = [rows for method, rows in members.items() if not method.startswith("sketch")]
        sketch = members.get("sketch", [])
        lines.append(
            {method: mean_and_spread(_errors(rows), len(rows)) for method, rows in members.items()}
            | {
                "point": next(iter(members.values()))[0]["point"] or "-",
                "nominal": nominal,
                "to dense": _difference(sketch, [dense]),
                "to others": _difference(sketch, others),
            }
        )
    columns = [
        Column("point", "compressed up to", left=True),
        Column("nominal", "nominal rate", decimals(3)),
        *(Column(name, name) for name in CONTENDERS if any(name in line for line in lines)),
        Column("to dense", "sketch - dense", _signed),
        Column("to others", "sketch - best other", _signed),
    ]
    return format_table(lines, columns, markdown=markdown)


def mean_and_spread(values: Sequence[float], runs: int, digits: int = 1) -> str:
    """Of those of several runs that learned something, with the number of the others."""
    if not values:
        return "failed"
    text = f"{statistics.mean(values):.{digits}f}"
    if len(values) > 1:
        text += f" ± {statistics.stdev(values):.{digits}f}"
    return text if runs == len(values) else f"{text} ({runs - len(values)} failed)"


def _difference(rows: Sequence[Row], others: Sequence[Sequence[Row]]) -> float | None:
    """Between the mean error and the least mean of others; None if either learned nothing."""
    own = _errors(rows)
    means = [statistics.mean(errors) for errors in map(_errors, others) if errors]
    return statistics.mean(own) - min(means) if own and means else None


def _signed(value: object) -> str:
    return f"{float(str(value)):+.1f}"


def _by_data(files: Sequence[Path]) -> dict[str, list[Row]]:
    """Rows of CSV files that `collect` wrote, by the name of their data set."""
    found: dict[str, list[Row]] = {}
    for file in files:
        try:
            for row in read_csv(file):
                float(row["nominal_rate"])
                found.setdefault(row["data"], []).append(dict(row))
        except (OSError, KeyError, ValueError) as error:
            raise RunError(f"{file} must be a results.csv of a figure (got {error})") from error
    return found


def draw(files: Sequence[Path], png: Path) -> None:
    """Draws error over nominal rate from CSV files, panels of four methods for each data set.

    Points at which a method has failed with every seed are missing.

    Raises:
        RunError: a file is not there or has other columns.
    """
    plot_panels(
        [panel for title, rows in _by_data(files).items() for panel in _panels(title, rows)],
        png,
        x="fraction of the parameters kept (smaller networks to the right)",
        y="top-1 error (%), lower is better",
        level="dense",
    )


def _panels(title: str, rows: Sequence[Row]) -> list[Panel]:
    """Sketches, and the methods that they are compared to."""
    dense = _errors([row for row in rows if row["method"] == "dense"])
    level = statistics.mean(dense) if dense else None
    present = [method for method in CONTENDERS if any(row["method"] == method for row in rows)]
    families = {
        "sketches": [method for method in present if method.startswith("sketch")],
        "other methods": [
            method for method in present if not method.startswith(("sketch", "dense"))
        ],
    }
    return [
        Panel(
            f"{title}: {family}",
            tuple(_line(rows, method) for method in methods[start : start + _LINES]),
            level,
        )
        for family, methods in families.items()
        for start in range(0, len(methods), _LINES)
    ]


_LINES = 4
"""Of a panel, at most: more cannot be told apart."""


def _line(rows: Sequence[Row], method: str) -> Line:
    own = [row for row in rows if row["method"] == method]
    by_rate: dict[float, list[float]] = {}
    for row in own:
        by_rate.setdefault(float(row["nominal_rate"]), []).extend(_errors([row]))
    points = sorted((rate, errors) for rate, errors in by_rate.items() if errors)
    return Line(
        own[0]["label"].removeprefix("sketch "),
        tuple(rate for rate, _ in points),
        tuple(statistics.mean(errors) for _, errors in points),
        tuple(statistics.stdev(e) if len(e) > 1 else 0.0 for _, e in points),
    )


def _errors(rows: Sequence[Row]) -> list[float]:
    """In percent, of the runs that learned something."""
    return [float(row["error"]) for row in rows if row["status"] == "finished"]
