"""Tables and plot of `zero_shot`'s CSV file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.plots import Line, Panel, plot_panels
from common.tables import Column, decimals, format_table, whole
from sketchlayers.compression import Report
from trained.variants import GROUPS

Row = dict[str, Any]

STAGES = ("calibration", "sensitivity", "ranks", "fit", "batch_norm", "refinement")
KEY = (
    *("network", "data", "split", "images", "calibration_data", "calibration_images"),
    *("method", "variant", "options", "rate", "seed"),
)
"""Columns that tell runs from each other."""
RESULTS = (
    *("kept", "parameters", "replaced", "accuracy", "difference", "standard_error"),
    *("output_change", "seconds", *(f"seconds_{stage}" for stage in STAGES), "note", "correct"),
)
"""Columns that are measured: accuracies in percent, the difference to the dense network in points
with its standard error, the change of the outputs on calibration images relative to them; the last
has a bit for each image, whether its class was found."""
CIRCUMSTANCES = ("hardware", "threads", "torch", "sketchlayers")
COLUMNS = KEY + RESULTS + CIRCUMSTANCES

_SETTING = ("network", "data", "split", "images", "seed")
"""What rows must share to be compared."""


def identity(row: Mapping[str, Any], keys: Sequence[str] = KEY) -> tuple[str, ...]:
    """What tells a row from others, as it stands in a CSV file or was just made."""
    return tuple(f"{float(row[key]):.6g}" if key == "rate" else str(row[key]) for key in keys)


def stage_seconds(report: Report) -> Row:
    """Seconds of every stage there is, as columns; None for stages that were left out."""
    return {f"seconds_{stage}": report.seconds.get(stage.replace("_", " ")) for stage in STAGES}


def tables(rows: Sequence[Row], *, markdown: bool = False) -> list[str]:
    """For each network and data set: accuracies by variant, then every run."""

    def write(lines: Sequence[Row], columns: Sequence[Column]) -> str:
        return format_table(lines, columns, markdown=markdown)

    found = []
    for setting, group in _groups(rows, _SETTING):
        dense = next((row for row in group if row["variant"] == "dense"), None)
        network, data, split, images, seed = setting
        title = f"{network} on {data}, {images} {split} images, seed {seed}"
        if dense is not None:
            title += (
                f": dense {float(dense['accuracy']):.1f} %, {whole(dense['parameters'])} parameters"
            )
        compressed = [row for row in group if row["variant"] != "dense"]
        if compressed:
            found += [f"{title}\n\n{write(*_by_variant(compressed))}", write(*_details(group))]
        else:
            found.append(title)
    return found


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draws accuracy over the fraction kept: methods, and the steps of one, for each network."""
    panels: list[Panel] = []
    for setting, group in _groups(rows, _SETTING):
        network, data, split, *_ = setting
        title = f"{TITLES.get(network, network)}, {data}"
        title += "" if split == "test" else f" ({split})"
        dense = [float(row["accuracy"]) for row in group if row["variant"] == "dense"]
        own = [
            row
            for row in group
            if row["accuracy"]
            and row["variant"] != "dense"
            and row["calibration_data"] in ("same", "none")
        ]
        for name, lines in (("by method", _method_lines(own)), *_step_lines(own)):
            if len(lines) > 1 or not panels:
                level = dense[0] if dense else None
                panels.append(Panel(f"{title}: {name}", tuple(lines), level))
    plot_panels(
        panels,
        path,
        x="fraction of the parameters kept (smaller networks to the right)",
        y="accuracy (%), higher is better",
        level="dense",
    )


TITLES = {
    "resnet18": "ResNet-18",
    "resnet20": "ResNet-20",
    "resnet32": "ResNet-32",
    "efficientnet_lite0": "EfficientNet-Lite0",
}
_PLOTTED_METHODS = ("auto", "tucker2", "svd")
_PLOTTED_STEPS = {
    "sensitivity": "+ sequential fit, sensitivity",
    "allocation": "+ ranks by error",
    "data": "norm of the outputs",
    "frobenius": "no images",
}


def _method_lines(rows: Sequence[Row]) -> list[Line]:
    """The methods as `compress` uses them by default, and the first without images."""
    by_method = {method: _line(rows, method, "sensitivity", method) for method in _PLOTTED_METHODS}
    without = _line(rows, "tucker2", "frobenius", "tucker2, no images")
    return [line for line in (*by_method.values(), without) if line.x]


def _step_lines(rows: Sequence[Row]) -> list[tuple[str, list[Line]]]:
    """The title and the lines of the first method that was run with several steps."""
    for method in dict.fromkeys(row["method"] for row in rows):
        lines = [_line(rows, method, variant, name) for variant, name in _PLOTTED_STEPS.items()]
        lines = [line for line in lines if line.x]
        if len(lines) > 1:
            return [(f"steps of {method}", lines)]
    return []


def _line(rows: Sequence[Row], method: str, variant: str, name: str) -> Line:
    own = sorted(
        (float(row["kept"]), float(row["accuracy"]))
        for row in rows
        if row["method"] == method and row["variant"] == variant
    )
    return Line(name, tuple(kept for kept, _ in own), tuple(value for _, value in own))


def _by_variant(rows: Sequence[Row]) -> tuple[list[Row], list[Column]]:
    """A line for each method, rate and calibration, a column for each variant."""
    order = [variant.name for variant in GROUPS["all"]]
    present = dict.fromkeys(row["variant"] for row in rows)
    names = [name for name in order if name in present]
    names += [name for name in present if name not in order]
    # What needs no images is the same whatever the others were calibrated on.
    calibrations = {_calibration(row) for row in rows if row["calibration_data"] != "none"}
    lines = []
    for calibration in sorted(calibrations) or ["none 0"]:
        for (method, rate), group in _groups(_by_rate(rows), ("method", "rate")):
            own = [row for row in group if _calibration(row) == calibration]
            if own:
                without = [row for row in group if row["calibration_data"] == "none"]
                line: Row = {"method": method, "rate": rate, "calibration": calibration}
                line |= {row["variant"]: row["accuracy"] or None for row in (*own, *without)}
                lines.append(line)
    columns = [
        Column("calibration", "calibrated on", left=True),
        Column("method", "method", left=True),
        Column("rate", "rate", decimals(2)),
        *(Column(name, name, decimals(1)) for name in names),
    ]
    return lines, columns


def _details(rows: Sequence[Row]) -> tuple[list[Row], list[Column]]:
    """Every run: size, accuracy, difference to the dense network, time."""
    lines = [{key: value for key, value in row.items() if value != ""} for row in _by_rate(rows)]
    for line in lines:
        if "accuracy" in line and line["variant"] != "dense":
            difference, error = float(line["difference"]), float(line["standard_error"])
            line["against_dense"] = f"{difference:+.1f} ± {error:.1f}"
    columns = [
        Column("calibration_data", "calibrated on", left=True),
        Column("method", "method", left=True),
        Column("variant", "variant", left=True),
        Column("rate", "rate", decimals(2)),
        Column("kept", "kept", decimals(4)),
        Column("parameters", "parameters", whole),
        Column("accuracy", "accuracy", decimals(1)),
        Column("against_dense", "against dense"),
        Column("output_change", "change", decimals(3)),
        Column("seconds", "seconds", decimals(1)),
    ]
    return lines, columns


def _by_rate(rows: Sequence[Row]) -> list[Row]:
    """Methods as they came, in each the largest rates first."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    return sorted(rows, key=lambda row: (methods.index(row["method"]), -float(row["rate"])))


def _calibration(row: Row) -> str:
    return f"{row['calibration_data']} {row['calibration_images']}"


def _groups(rows: Iterable[Row], keys: Sequence[str]) -> list[tuple[tuple[Any, ...], list[Row]]]:
    """Rows that share these values, in order of appearance."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(groups.items())
