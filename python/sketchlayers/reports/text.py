"""A report as text: a table of the layers, one of the whole model, and what is to be said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from sketchlayers.methods._rank import rank_text
from sketchlayers.reports.candidates import candidates_table
from sketchlayers.reports.export import ratio
from sketchlayers.reports.rows import Latency
from sketchlayers.reports.table import (
    Table,
    error_text,
    fraction,
    joined,
    layer_name,
    megabytes,
    percent,
    quantity,
    wrapped,
)
from sketchlayers.reports.unchanged import kept_lines, marks_of, other_lines

if TYPE_CHECKING:
    from sketchlayers.reports.report import Report

_ERRORS = {
    ("output", True): "|change| / |output| of each layer, with its inputs as the layers before "
    "it leave them",
    ("output", False): "|change| / |output| of each layer, with its original inputs",
    ("weight", False): "|change| / |weight| of each layer",
}


class Total(NamedTuple):
    """Something of the whole model, before and after, in words."""

    what: str
    before: str
    after: str
    ratio: float
    asked: str


def report_text(report: Report) -> str:
    """Returns the tables, and what is to be said below them."""
    lines = [*_legend(report), *remarks(report), *_of_time(report)]
    lines = [wrapped(line) for line in (*lines, *(f"note: {note}" for note in report.notes))]
    lines += [*kept_lines(report.kept), *other_lines(report.others, report.parameters_before)]
    if report.candidates:
        sizes = report.parameters_before, report.multiply_adds_before
        lines += ["", candidates_table(report.candidates, *sizes)]
    summary = Table("whole model", "before", "after", "after / before", "", left=1)
    for total in totals(report):
        summary.add(total.what, total.before, total.after, fraction(total.ratio), total.asked)
    return "\n".join([str(_layers(report)), "", str(summary), "", *lines])


def title_of(report: Report) -> str:
    """Returns the most important numbers in a line."""
    sizes = f"{quantity(report.parameters_before)} to {quantity(report.parameters_after)}"
    title = f"{sizes} parameters (rate {fraction(report.rate)})"
    if report.output_change is None:
        return title
    return f"{title}; the network's outputs change by {percent(report.output_change)}"


def totals(report: Report) -> list[Total]:
    """Returns the size and the speed of the whole model before and after."""
    rate = report.rate_asked
    asked = "" if isinstance(rate, Mapping) else f"asked: {fraction(rate)}"
    found = []

    def add(what: str, before: float, after: float, text: Callable[[Any], str], of: str) -> None:
        told = asked if of == report.budget else ""
        found.append(Total(what, text(before), text(after), ratio(after, before), told))

    add("parameters", report.parameters_before, report.parameters_after, "{:,}".format, "rate")
    add("file size", report.bytes_before, report.bytes_after, megabytes, "bytes_rate")
    before, after = report.multiply_adds_before, report.multiply_adds_after
    if before is not None and after is not None:
        add("multiply-adds", before, after, quantity, "flops_rate")
    for one in report.latencies:
        of = "latency_rate" if one is report.latencies[-1] else ""
        add(f"milliseconds, {images_of(one)}", one.before, one.after, _milliseconds, of)
    return found


def remarks(report: Report) -> list[str]:
    """Returns what there is to say of the layers, the data and the times."""
    return [_of_layers(report), *_of_data(report), *_of_latency(report)]


def images_of(latency: Latency) -> str:
    """Returns what one call is for: "1 image"."""
    if latency.images is None:
        return "1 call"
    return f"{latency.images:,} image{'s' * (latency.images != 1)}"


def _layers(report: Report) -> Table:
    marks = marks_of(report.kept)
    counted = report.multiply_adds_before is not None
    rounded = any(row.bits is not None for row in report.layers)
    headers: list[str | tuple[str, str]] = ["layer", "method", "shape", "rank"]
    headers += ["bits"] * rounded
    for what in ["parameters"] + ["bytes"] * rounded + ["multiply-adds"] * counted:
        headers += [(what, "before"), (what, "after")]
    errors = [] if report.error_of is None else [(report.error_of, "error")]
    table = Table(*headers, *errors, "", left=3)
    for row in report.layers:
        rank = "-" if row.rank is None else rank_text(row.rank)
        cells = [layer_name(row.name), row.becomes or "-", joined(row.shape), rank]
        cells += ["-" if row.bits is None else str(row.bits)] * rounded
        cells += [f"{row.parameters_before:,}", f"{row.parameters_after:,}"]
        cells += [f"{row.bytes_before:,}", f"{row.bytes_after:,}"] * rounded
        if counted:
            cells += [quantity(row.multiply_adds_before), quantity(row.multiply_adds_after)]
        cells += [error_text(row.relative_error) for _ in errors]
        table.add(*cells, marks.get(row.reason or "", ""))
    others = f"{report.other_parameters:,}"
    sizes = [others] * 2 + [f"{report.other_bytes:,}"] * (2 * rounded)
    blank = [""] * (2 * counted + len(errors) + 1)
    table.add("everything else", *[""] * (3 + rounded), *sizes, *blank)
    return table


def _legend(report: Report) -> list[str]:
    """What signs in the table stand for, as far as they are there."""
    ranks = [row.rank for row in report.replaced if isinstance(row.rank, tuple)]
    meanings = {
        "an unchanged layer (method)": any(row.becomes is None for row in report.layers),
        "no single weight (shape)": any(not row.shape for row in report.layers),
        "a layer or side without factors (rank)": len(report.replaced) < len(report.layers)
        or any(None in rank for rank in ranks),
        "a count that is not known (multiply-adds)": report.multiply_adds_before is not None
        and any(row.multiply_adds_before is None for row in report.layers),
    }
    dashes = [meaning for meaning, holds in meanings.items() if holds]
    lines = [f'"-": {", ".join(dashes)}'] if dashes else []
    if any(None not in rank for rank in ranks):
        lines.append("rank AxB: the h x w convolution has A input and B output channels")
    return lines


def _of_layers(report: Report) -> str:
    refitted = sum(row.becomes == "dense" for row in report.layers)
    dense = f", {refitted} dense with new weights" if refitted else ""
    return (
        f"{len(report.replaced)} of {len(report.layers)} layers replaced{dense}; seed {report.seed}"
    )


def _of_data(report: Report) -> list[str]:
    """What the data say of the network, and what the layers' errors are."""
    lines = []
    if report.images is not None:
        line = f"calibrated on {report.images:,} images"
        if report.output_change is not None:
            line += f"; the network's outputs change by {percent(report.output_change)}"
        lines.append(line)
    if report.accuracy and report.accuracy_images is not None:
        shares = ", ".join(f"{which} {percent(x)}" for which, x in report.accuracy.items())
        lines.append(f"accuracy on {report.accuracy_images:,} held-out images: {shares}")
    if report.evaluation is not None:
        lines.append(f"evaluation: {report.evaluation}")
    if report.error_of is not None:
        lines.append(f"{report.error_of} error: {_ERRORS[report.error_of, report.sequential]}")
    return lines


def _of_latency(report: Report) -> list[str]:
    """How the times were measured, and what to do where they have not become shorter."""
    lines = []
    if report.budget == "latency_rate" and report.budget_rate is not None:
        share = fraction(report.budget_rate)
        lines.append(f"expected from the times of single layers: {share} of the milliseconds")
    if report.latencies:
        calls = " and ".join(dict.fromkeys(str(one.calls) for one in report.latencies))
        one = report.latencies[0]
        where = f"{one.threads} threads" if one.threads > 1 else "1 thread"
        where = where if one.device == "cpu" else "a GPU"
        lines.append(
            f"milliseconds: of one call in PyTorch on {where}, uncompiled; medians of {calls} "
            "calls of each network in turns"
        )
    return [*lines, *([report.advice] if report.advice else [])]


def _of_time(report: Report) -> list[str]:
    """How long the stages took."""
    if not report.seconds:
        return []
    stages = ", ".join(f"{stage} {seconds:.3g}" for stage, seconds in report.seconds.items())
    total = sum(report.seconds.values())
    return [f"seconds for compressing: {stages}; {total:.3g} in all"]


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g}" if seconds < 1 else f"{1000 * seconds:,.0f}"
