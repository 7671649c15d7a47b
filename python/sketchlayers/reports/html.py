"""A report as one HTML file that needs nothing else: tables and charts, for light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from sketchlayers._version import __version__
from sketchlayers.methods._rank import rank_text
from sketchlayers.reports.export import ratio
from sketchlayers.reports.plot import colour_of
from sketchlayers.reports.rows import LayerReport
from sketchlayers.reports.svg import Bar, bar_chart
from sketchlayers.reports.table import (
    error_text,
    fraction,
    joined,
    layer_name,
    percent,
    quantity,
)
from sketchlayers.reports.text import remarks, title_of, totals
from sketchlayers.reports.unchanged import large_others

if TYPE_CHECKING:
    from sketchlayers.reports.report import Report

_STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --soft: #59636e; --line: #d1d9e0;
  --pale: #d5dae0; --dense: #57606a; --page: #ffffff; --card: #f6f8fa; --accent: #0072B2;
  --warn: #9a6700; --warn-card: #fff8c5; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --soft: #9198a1; --line: #3d444d;
  --pale: #3a424c; --dense: #aeb6bf; --page: #0d1117; --card: #161b22; --accent: #4aa8e0;
  --warn: #e3b341; --warn-card: #2b2410; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 70rem; background: var(--page);
  color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { margin: .3rem 0; } .soft { color: var(--soft); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .8rem;
  margin: 1.2rem 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .7rem .9rem; }
.card b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.track { background: var(--pale); border-radius: 3px; height: 6px; margin-top: .4rem;
  overflow: hidden; }
.track i { display: block; height: 6px; background: var(--accent); }
.track.worse i { background: var(--warn); }
.advice { background: var(--warn-card); border: 1px solid var(--warn); border-radius: 8px;
  padding: .6rem .9rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td:first-child { overflow-wrap: anywhere; }
svg { width: 100%; height: auto; display: block; }
.legend span { margin-right: 1.2rem; white-space: nowrap; color: var(--soft); font-size: 13px; }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: 2px;
  margin-right: .4em; }
"""


def report_page(report: Report) -> str:
    """Returns the whole page."""
    body = [
        f"<h1>{_text(title_of(report))}</h1>",
        f'<p class="soft">{_text(_how(report))}</p>',
        _cards(report),
        _advice(report),
        _candidates(report),
        _charts(report),
        _kept(report),
        _others(report),
        _layers(report),
        _rest(report),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{_text(title_of(report))}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )


def _how(report: Report) -> str:
    rate = report.rate_asked
    asked = "rates of layers" if isinstance(rate, Mapping) else f"{report.budget} {fraction(rate)}"
    parts = [f"method {report.method}", asked, f"seed {report.seed}"]
    if report.images is not None:
        parts.insert(2, f"calibrated on {report.images:,} images")
    parts.append(f"{len(report.replaced)} of {len(report.layers)} layers replaced")
    return ", ".join((*parts, f"sketchlayers {__version__}"))


# -------------------------------------------------------------------------------- the whole model


def _cards(report: Report) -> str:
    cards = [_card(one.what, f"{one.before} → {one.after}", one.ratio) for one in totals(report)]
    if report.output_change is not None:
        note = "of the outputs on the calibration images"
        cards.append(_card("change", percent(report.output_change), None, note))
    for which, share in report.accuracy.items():
        note = f"of {report.accuracy_images or 0:,} held-out images"
        cards.append(_card(f"accuracy, {which}", percent(share), None, note))
    if report.evaluation is not None:
        note = f"{fraction(report.evaluation.before)} before, {report.evaluation.drop_text()}"
        cards.append(_card("evaluation", fraction(report.evaluation.after), None, note))
    return f'<div class="cards">{"".join(cards)}</div>'


def _card(name: str, value: str, share: float | None, note: str = "") -> str:
    bar = ""
    if share is not None:
        worse = " worse" if share > 1 else ""
        width = f"{100 * min(1.0, share):.1f}%"
        bar = f'<div class="track{worse}"><i style="width: {width}"></i></div>'
        note = f"{fraction(share)} of the original"
    soft = f'<span class="soft">{_text(note)}</span>' if note else ""
    head = f'<span class="soft">{_text(name)}</span><b>{_text(value)}</b>'
    return f'<div class="card">{head}{soft}{bar}</div>'


def _candidates(report: Report) -> str:
    """What a search has tried."""
    rows = []
    for one in report.candidates:
        evaluation = one.evaluation
        cells = [fraction(one.rate_asked), fraction(one.rate), f"{one.parameters:,}"]
        cells += ["-" if one.output_change is None else percent(one.output_change)]
        cells += ["-" if evaluation is None else fraction(evaluation.after)]
        cells += ["-" if evaluation is None else evaluation.drop_text()]
        rows.append([*cells, "chosen" if one.chosen else ""])
    if not rows:
        return ""
    names = ["asked", "got", "parameters", "change of the outputs", "evaluation", "drop", ""]
    return f"<h2>Candidates</h2>\n{_table(names, rows, left=0)}"


def _advice(report: Report) -> str:
    return f'<p class="advice">{_text(report.advice)}</p>' if report.advice else ""


# -------------------------------------------------------------------------------- charts


def _charts(report: Report) -> str:
    rows = [row for row in report.layers if row.parameters_before]
    if not rows:
        return ""
    sizes = [
        Bar(
            f"{layer_name(row.name)}: {row.parameters_before:,} to {row.parameters_after:,}",
            row.parameters_after,
            _colour(row),
            row.parameters_before,
        )
        for row in rows
    ]
    chart = bar_chart("parameters of every layer, before and after", sizes, _count)
    parts = ["<h2>Parameters of every layer</h2>", _legend(rows), chart]
    if report.error_of is not None:
        errors = [
            Bar(f"{layer_name(row.name)}: {error_text(error)}", error, _colour(row))
            if (error := row.relative_error) is not None and math.isfinite(error)
            else Bar(layer_name(row.name), 0.0, "none")
            for row in rows
        ]
        what = f"relative error of every layer's {report.error_of}"
        parts += [f"<h2>{_text(what.capitalize())}</h2>", bar_chart(what, errors, fraction)]
    return "\n".join(parts)


def _legend(rows: Sequence[LayerReport]) -> str:
    labels = {"before": "var(--pale)"}
    labels |= {row.method or "not replaced": _colour(row) for row in rows}
    items = (
        f'<span><i style="background: {colour}"></i>{_text(label)}</span>'
        for label, colour in labels.items()
    )
    return f'<p class="legend">{"".join(items)}</p>'


def _colour(row: LayerReport) -> str:
    return "var(--dense)" if row.method is None else colour_of(row.method)


def _count(value: float) -> str:
    return quantity(round(value))


# -------------------------------------------------------------------------------- tables


def _layers(report: Report) -> str:
    counted = report.multiply_adds_before is not None
    rounded = any(row.bits is not None for row in report.layers)
    names = ["layer", "kind", "shape", "method", "rank", "parameters", "after"]
    names += ["bits", "bytes", "after"] * rounded
    names += ["multiply-adds", "after"] * counted
    names += [f"{report.error_of} error"] * (report.error_of is not None)
    rows = []
    for row in report.layers:
        cells = [layer_name(row.name), row.kind, joined(row.shape), row.becomes or "-"]
        cells += ["-" if row.rank is None else rank_text(row.rank)]
        cells += [f"{row.parameters_before:,}", f"{row.parameters_after:,}"]
        if rounded:
            cells += ["-" if row.bits is None else str(row.bits)]
            cells += [f"{row.bytes_before:,}", f"{row.bytes_after:,}"]
        if counted:
            cells += [quantity(row.multiply_adds_before), quantity(row.multiply_adds_after)]
        if report.error_of is not None:
            cells.append(error_text(row.relative_error))
        rows.append(cells)
    others = f"{report.other_parameters:,}"
    sizes = [others, others]
    if rounded:
        sizes += ["", f"{report.other_bytes:,}", f"{report.other_bytes:,}"]
    blank = [""] * (len(names) - 5 - len(sizes))
    rows.append(["everything else", "", "", "", "", *sizes, *blank])
    return f"<h2>Layers</h2>\n{_table(names, rows, left=4)}"


def _kept(report: Report) -> str:
    rows = [
        [one.reason, _listed(one.names), f"{one.parameters:,}", percent(one.share)]
        for one in report.kept
    ]
    if not rows:
        return ""
    names = ["not replaced: reason", "layers, the largest first", "parameters", "share"]
    return f"<h2>What stays as it is</h2>\n{_table(names, rows, left=2)}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(map(layer_name, names[:8])) + more


def _others(report: Report) -> str:
    total = report.parameters_before
    rows = [
        (
            *(one.name, one.kind, joined(one.shape)),
            *(f"{one.parameters:,}", percent(ratio(one.parameters, total))),
        )
        for one in large_others(report.others, total)
    ]
    if not rows:
        return ""
    names = ["parameter in no layer that can be replaced", "held by", "shape", "values", "share"]
    return _table(names, rows, left=3)


def _rest(report: Report) -> str:
    parts = []
    if report.seconds:
        rows = [[stage, f"{seconds:.3g}"] for stage, seconds in report.seconds.items()]
        rows.append(["in all", f"{sum(report.seconds.values()):.3g}"])
        parts += ["<h2>Seconds for compressing</h2>", _table(["stage", "seconds"], rows, left=1)]
    told = (one for one in (*remarks(report), *report.notes) if one != report.advice)
    items = "".join(f"<li>{_text(note)}</li>" for note in told)
    parts += ["<h2>Notes</h2>", f"<ul>{items}</ul>"]
    return "\n".join(parts)


def _table(names: Sequence[str], rows: Iterable[Sequence[str]], *, left: int) -> str:
    """A table; the first columns are of words, the others of numbers."""

    def line(tag: str, cells: Sequence[str]) -> str:
        classes = ["" if number < left else ' class="n"' for number in range(len(cells))]
        inner = "".join(
            f"<{tag}{kind}>{_text(cell)}</{tag}>" for kind, cell in zip(classes, cells, strict=True)
        )
        return f"<tr>{inner}</tr>"

    body = "\n".join(line("td", cells) for cells in rows)
    head = line("th", names)
    return (
        f'<div class="wide"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )


def _text(text: str) -> str:
    return escape(text)
