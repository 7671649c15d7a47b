"""Networks of several sizes beside each other: a table and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sketchlayers.reports.export import Exported
from sketchlayers.reports.plot import BLUE, ORANGE, check_picture, write_picture
from sketchlayers.reports.table import Table, fraction, percent, quantity

AXES = {
    "rate": "parameters, after / before",
    "flops_rate": "multiply-adds, after / before",
    "latency_rate": "time, after / before (estimated from the layers')",
    "bytes_rate": "bytes, after / before",
}


@dataclass(frozen=True)
class Evaluation(Exported):
    """What the user's ``evaluate`` says of the original network and of a smaller one.

    Attributes:
        before: of the original; higher is better.
        after: of the smaller one.
        standard_error: of the drop; from the differences of the two networks example by example,
            and None where ``evaluate`` returns one number.
    """

    _derived = ("drop",)

    before: float
    after: float
    standard_error: float | None = None

    @property
    def drop(self) -> float:
        """Before minus after."""
        return self.before - self.after

    @property
    def is_noise(self) -> bool:
        """Whether the drop is within its standard error."""
        return bool(self.standard_error) and abs(self.drop) <= (self.standard_error or 0.0)

    def __str__(self) -> str:
        text = f"{fraction(self.before)} before, {fraction(self.after)} after: {self.drop_text()}"
        return f"{text}, within the noise" if self.is_noise else text

    def drop_text(self) -> str:
        """The drop, with its standard error where that is known."""
        error = self.standard_error
        drop = f"{self.drop:.4f}"
        return f"drop {drop}" if error is None else f"drop {drop} +- {error:.4f}"


@dataclass(frozen=True)
class CandidateReport(Exported):
    """One size of a network.

    Attributes:
        budget: what the rates count: "rate" (parameters), "flops_rate", "latency_rate" or
            "bytes_rate".
        rate_asked: of that.
        rate: that was reached.
        parameters: of the whole model.
        multiply_adds: of its convolutions and linear layers; None where not known.
        output_change: of the network on calibration images, relative to its outputs; None where
            not known.
        evaluation: None where there is none.
        chosen: whether it is what a search ended with.
    """

    budget: str
    rate_asked: float
    rate: float
    parameters: int
    multiply_adds: int | None
    output_change: float | None
    evaluation: Evaluation | None
    chosen: bool = False


def candidates_table(
    rows: Sequence[CandidateReport], parameters_before: int, multiply_adds_before: int | None
) -> str:
    """A line for the original network and for each smaller one; below it what signs mean."""
    budget = rows[0].budget.replace("_", " ") if rows else "rate"
    counted = any(row.multiply_adds is not None for row in rows)
    changed = any(row.output_change is not None for row in rows)
    evaluations = [row.evaluation for row in rows if row.evaluation is not None]
    errors = any(one.standard_error is not None for one in evaluations)
    headers: list[str | tuple[str, str]] = [(budget, "asked"), (budget, "got"), "parameters"]
    headers += ["multiply-adds"] * counted + [("change of", "the outputs")] * changed
    headers += ["evaluation", "drop"] * bool(evaluations) + [("standard", "error")] * errors
    table = Table(*headers, "", left=1)

    def add(*cells: str) -> None:
        table.add(*cells, *[""] * (len(headers) + 1 - len(cells)))

    cells = ["original", "1", f"{parameters_before:,}"]
    cells += [quantity(multiply_adds_before)] * counted + [""] * changed
    add(*cells, *(fraction(one.before) for one in evaluations[:1]))
    for row in rows:
        cells = [fraction(row.rate_asked), fraction(row.rate), f"{row.parameters:,}"]
        cells += [quantity(row.multiply_adds)] * counted
        cells += ["-" if row.output_change is None else percent(row.output_change)] * changed
        cells += _evaluated(row.evaluation, errors) if evaluations else []
        add(*cells, *["chosen"] * row.chosen)
    lines = [str(table)]
    if any(one.is_noise for one in evaluations):
        lines.append("~ a drop within its standard error: the evaluation cannot tell it from none")
    return "\n".join(lines)


def _evaluated(evaluation: Evaluation | None, errors: bool) -> list[str]:
    if evaluation is None:
        return ["-"] * (2 + errors)
    cells = [fraction(evaluation.after), f"{'~' * evaluation.is_noise}{evaluation.drop:.4f}"]
    error = evaluation.standard_error
    return cells + (["-" if error is None else f"{error:.4f}"] if errors else [])


def draw_candidates(rows: Sequence[CandidateReport], path: Path) -> None:
    """Draws evaluations, or changes of the outputs, over rates; see `check_picture`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: matplotlib draws no files of this kind.
    """
    check_picture(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    rows = sorted(rows, key=lambda row: row.rate)
    evaluated = [(row.rate, row.evaluation) for row in rows if row.evaluation is not None]
    if evaluated:
        errors = [one.standard_error or 0.0 for _, one in evaluated]
        values = [one.after for _, one in evaluated]
        axes.errorbar([rate for rate, _ in evaluated], values, errors, fmt="o-", color=BLUE)
        axes.axhline(evaluated[0][1].before, color=ORANGE, linestyle="--", label="original")
        axes.legend(frameon=False)
        axes.set_ylabel("evaluation")
    else:
        known = [(row.rate, row.output_change) for row in rows if row.output_change is not None]
        axes.plot([rate for rate, _ in known], [change for _, change in known], "o-", color=BLUE)
        axes.set_ylabel("change of the outputs, relative to them")
        axes.set_ylim(bottom=0)
    axes.set_xlabel(AXES[rows[0].budget] if rows else "")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    write_picture(figure, path)
