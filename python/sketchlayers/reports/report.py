"""What has been done to a model: what ``compress`` returns with the smaller one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sketchlayers.methods._rank import rank_text
from sketchlayers.reports.candidates import CandidateReport, Evaluation, candidates_table
from sketchlayers.reports.export import Printed, ratio, sum_known
from sketchlayers.reports.plot import draw_layers
from sketchlayers.reports.rows import LayerReport
from sketchlayers.reports.table import (
    Footnotes,
    Table,
    fraction,
    joined,
    layer_name,
    megabytes,
    percent,
    quantity,
    wrapped,
)

_SUMMARY = ("whole model", "before", "after", "after / before", "")
_ERRORS = {
    ("output", True): "|change| / |output| of each layer, with its inputs as the layers before "
    "it leave them",
    ("output", False): "|change| / |output| of each layer, with its original inputs",
    ("weight", False): "|change| / |weight| of each layer",
}


@dataclass(frozen=True, repr=False)
class Report(Printed):
    """Tells what ``compress`` has done; printed, it is a table of all layers and a summary.

    Attributes:
        method: name of the method.
        options: its options.
        init: "fit" or "random".
        seed: what the layers' seeds were derived from, together with their names.
        rate_asked: rate of the whole model, or of each named layer or pattern.
        layers: every layer of the model, replaced or unchanged, in order of registration.
        other_parameters: number of parameters outside of the layers, such as those of
            normalisation.
        other_bytes: size of those in a checkpoint, running statistics included.
        notes: advice and exceptions, such as why a rate was not met.
        budget: the argument that ``rate_asked`` was given to: "rate" (parameters), "flops_rate"
            (multiply-adds) or "latency_rate" (time).
        budget_rate: the rate of that budget that was reached; of time, as estimated from the times
            of the layers. None where layers have rates of their own.
        allocation: how the budget became ranks; None where layers have rates of their own.
        images: number of images that the layers' moments were taken on; None without data.
        sequential: whether layers were fitted one after the other.
        output_change: of the network on calibration images, relative to its outputs
            (root mean square), before any training with labels; None without images.
        accuracy: of networks on held-out images with labels, such as "original" and "compressed":
            the fraction whose class has the highest score.
        accuracy_images: number of held-out images.
        latency_before: seconds of one call of the original network on this machine, on the example
            inputs or one calibration image; None where they were not measured.
        latency_after: the same of the smaller network.
        evaluation: what the caller's ``evaluate`` says of the original and of the smaller network;
            None without one.
        candidates: all sizes that a search (``max_drop``) has made and evaluated, in that order.
        seconds: how long each stage took.
    """

    _derived = (
        "rate",
        "parameters_before",
        "parameters_after",
        "bytes_before",
        "bytes_after",
        "multiply_adds_before",
        "multiply_adds_after",
    )

    method: str
    options: Mapping[str, Any]
    init: str
    seed: int
    rate_asked: float | Mapping[str, float]
    layers: tuple[LayerReport, ...]
    other_parameters: int
    other_bytes: int
    notes: tuple[str, ...] = ()
    budget: str = "rate"
    budget_rate: float | None = None
    allocation: str | None = None
    images: int | None = None
    sequential: bool = False
    output_change: float | None = None
    accuracy: Mapping[str, float] = field(default_factory=dict)
    accuracy_images: int | None = None
    latency_before: float | None = None
    latency_after: float | None = None
    evaluation: Evaluation | None = None
    candidates: tuple[CandidateReport, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def parameters_before(self) -> int:
        """Number of parameters of the whole original model."""
        return self.other_parameters + sum(row.parameters_before for row in self.layers)

    @property
    def parameters_after(self) -> int:
        """Number of parameters of the whole smaller model."""
        return self.other_parameters + sum(row.parameters_after for row in self.layers)

    @property
    def rate(self) -> float:
        """Parameters after / before, of the whole model."""
        return ratio(self.parameters_after, self.parameters_before)

    @property
    def bytes_before(self) -> int:
        """Size of a checkpoint of the original model in bytes."""
        return self.other_bytes + sum(row.bytes_before for row in self.layers)

    @property
    def bytes_after(self) -> int:
        """Size of a checkpoint of the smaller model in bytes."""
        return self.other_bytes + sum(row.bytes_after for row in self.layers)

    @property
    def multiply_adds_before(self) -> int | None:
        """Multiply-adds of the convolutions and linear layers; None without example inputs."""
        return sum_known(row.multiply_adds_before for row in self.layers)

    @property
    def multiply_adds_after(self) -> int | None:
        """Multiply-adds of the smaller model; None without example inputs."""
        return sum_known(row.multiply_adds_after for row in self.layers)

    @property
    def replaced(self) -> tuple[LayerReport, ...]:
        """The layers that were replaced."""
        return tuple(row for row in self.layers if row.method is not None)

    @property
    def error_of(self) -> str | None:
        """Whose the errors are, "output" or "weight"; None if nothing was fitted.

        A layer without moments is fitted in the norm of its weight; a note then says so.
        """
        if all(row.relative_error is None for row in self.layers):
            return None
        return "weight" if self.images is None else "output"

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws the parameters and the error of every layer.

        Args:
            path: of the file to write; its ending says what kind, such as ``.png`` or ``.svg``.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: matplotlib draws no files of this kind.
        """
        draw_layers(self.layers, Path(path), title=self._title(), error_of=self.error_of)

    def _title(self) -> str:
        sizes = f"{quantity(self.parameters_before)} to {quantity(self.parameters_after)}"
        title = f"{sizes} parameters (rate {fraction(self.rate)})"
        if self.output_change is None:
            return title
        return f"{title}; the network's outputs change by {percent(self.output_change)}"

    def __str__(self) -> str:
        reasons = Footnotes()
        counted = self.multiply_adds_before is not None
        headers: list[str | tuple[str, str]] = ["layer", "method", "shape", "rank"]
        for what in ["parameters"] + ["multiply-adds"] * counted:
            headers += [(what, "before"), (what, "after")]
        errors = [] if self.error_of is None else [(self.error_of, "error")]
        table = Table(*headers, *errors, "", left=3)
        for row in self.layers:
            rank = "-" if row.rank is None else rank_text(row.rank)
            cells = [layer_name(row.name), row.becomes or "-", joined(row.shape), rank]
            cells += [f"{row.parameters_before:,}", f"{row.parameters_after:,}"]
            if counted:
                cells += [quantity(row.multiply_adds_before), quantity(row.multiply_adds_after)]
            cells += [_error_text(row.relative_error) for _ in errors]
            table.add(*cells, reasons.mark(row.reason))
        others = f"{self.other_parameters:,}"
        table.add(
            "everything else", *[""] * 3, *[others] * 2, *[""] * (2 * counted + len(errors) + 1)
        )
        lines = [*self._legend(), *self._of_layers(), *self._of_data(), *self._of_time()]
        lines = [wrapped(line) for line in (*lines, *(f"note: {note}" for note in self.notes))]
        lines += reasons.lines("not replaced:")
        if self.candidates:
            sizes = self.parameters_before, self.multiply_adds_before
            lines += ["", candidates_table(self.candidates, *sizes)]
        return "\n".join([str(table), "", str(self._summary()), "", *lines])

    def _summary(self) -> Table:
        """The whole model before and after."""
        table = Table(*_SUMMARY, left=1)
        rate = self.rate_asked
        asked = "" if isinstance(rate, Mapping) else f"asked: {fraction(rate)}"

        def add(
            what: str, before: float, after: float, text: Callable[[Any], str], of: str
        ) -> None:
            kept = fraction(ratio(after, before))
            table.add(what, text(before), text(after), kept, asked if of == self.budget else "")

        add("parameters", self.parameters_before, self.parameters_after, "{:,}".format, "rate")
        add("file size", self.bytes_before, self.bytes_after, megabytes, "")
        before, after = self.multiply_adds_before, self.multiply_adds_after
        if before is not None and after is not None:
            add("multiply-adds", before, after, quantity, "flops_rate")
        if self.latency_before is not None and self.latency_after is not None:
            times = self.latency_before, self.latency_after
            add("milliseconds", *times, _milliseconds, "latency_rate")
        return table

    def _legend(self) -> list[str]:
        """What signs in the table stand for, as far as they are there."""
        ranks = [row.rank for row in self.replaced if isinstance(row.rank, tuple)]
        meanings = {
            "an unchanged layer (method)": any(row.becomes is None for row in self.layers),
            "no single weight (shape)": any(not row.shape for row in self.layers),
            "a layer or side without factors (rank)": len(self.replaced) < len(self.layers)
            or any(None in rank for rank in ranks),
            "a count that is not known (multiply-adds)": self.multiply_adds_before is not None
            and any(row.multiply_adds_before is None for row in self.layers),
        }
        dashes = [meaning for meaning, holds in meanings.items() if holds]
        lines = [f'"-": {", ".join(dashes)}'] if dashes else []
        if any(None not in rank for rank in ranks):
            lines.append("rank AxB: the h x w convolution has A input and B output channels")
        return lines

    def _of_layers(self) -> list[str]:
        refitted = sum(row.becomes == "dense" for row in self.layers)
        dense = f", {refitted} dense with new weights" if refitted else ""
        return [
            f"{len(self.replaced)} of {len(self.layers)} layers replaced{dense}; seed {self.seed}"
        ]

    def _of_data(self) -> list[str]:
        """What the data say of the network, and what the layers' errors are."""
        lines = []
        if self.images is not None:
            line = f"calibrated on {self.images:,} images"
            if self.output_change is not None:
                line += f"; the network's outputs change by {percent(self.output_change)}"
            lines.append(line)
        if self.accuracy and self.accuracy_images is not None:
            shares = ", ".join(f"{which} {percent(x)}" for which, x in self.accuracy.items())
            lines.append(f"accuracy on {self.accuracy_images:,} held-out images: {shares}")
        if self.evaluation is not None:
            lines.append(f"evaluation: {self.evaluation}")
        if self.error_of is not None:
            lines.append(f"{self.error_of} error: {_ERRORS[self.error_of, self.sequential]}")
        if self.latency_after is not None and self.budget_rate is not None:
            lines.append(
                "milliseconds: of one call on this machine (expected from the times of single "
                f"layers: {fraction(self.budget_rate)} of the original)"
            )
        return lines

    def _of_time(self) -> list[str]:
        """How long the stages took."""
        if not self.seconds:
            return []
        stages = ", ".join(f"{stage} {seconds:.3g}" for stage, seconds in self.seconds.items())
        total = sum(self.seconds.values())
        return [f"seconds for compressing: {stages}; {total:.3g} in all"]


def _error_text(error: float | None) -> str:
    if error is None:
        return ""
    return "<0.001" if 0 < error < 0.001 else f"{error:.3f}"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g}" if seconds < 1 else f"{1000 * seconds:,.0f}"
