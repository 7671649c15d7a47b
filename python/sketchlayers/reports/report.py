"""What has been done to a model: what ``compress`` returns with the smaller one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sketchlayers._runtime.files import written_whole
from sketchlayers.reports.candidates import CandidateReport, Evaluation
from sketchlayers.reports.export import Printed, ratio, sum_known
from sketchlayers.reports.html import report_page
from sketchlayers.reports.plot import draw_layers
from sketchlayers.reports.rows import Latency, LayerReport, OtherParameter
from sketchlayers.reports.table import fraction
from sketchlayers.reports.text import images_of, report_text, title_of
from sketchlayers.reports.unchanged import Kept, kept_layers

_NOT_FASTER = 0.95
"""After / before of a time from which on a network does not count as faster."""
_FASTER_RANKS = "flops_rate= and latency_rate= choose ranks for speed"
_FASTER_CALLS = (
    "torch.compile and exported networks (ONNX Runtime, AOTInductor) spend less on each layer, "
    "optimize_for_inference() takes the fastest form of sketched layers, and fold() gives the "
    "original's speed"
)


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
        others: parameters outside of the layers, such as those of normalisation.
        other_bytes: size of those in a checkpoint, running statistics included.
        notes: advice and exceptions, such as why a rate was not met.
        budget: the argument that ``rate_asked`` was given to: "rate" (parameters), "flops_rate"
            (multiply-adds), "latency_rate" (time) or "bytes_rate".
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
        latencies: of one call of both networks, measured on this machine: with one image, and with
            the first calibration batch or the example inputs; empty without images or example
            inputs, and with ``measure_latency=False``.
        evaluation: what the caller's ``evaluate`` says of the original and of the smaller network;
            None without one.
        candidates: all sizes that a search (``max_drop``) has made and evaluated, in that order.
        seconds: how long each stage took.
    """

    _derived = (
        "rate",
        "other_parameters",
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
    others: tuple[OtherParameter, ...]
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
    latencies: tuple[Latency, ...] = ()
    evaluation: Evaluation | None = None
    candidates: tuple[CandidateReport, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def parameters_before(self) -> int:
        """Number of parameters of the whole original model."""
        return self.other_parameters + sum(row.parameters_before for row in self.layers)

    @property
    def other_parameters(self) -> int:
        """Number of parameters outside of the layers."""
        return sum(one.parameters for one in self.others)

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
    def kept(self) -> tuple[Kept, ...]:
        """The layers that were not replaced, by reason, with their share of all parameters."""
        rows = ((row.name, row.reason, row.parameters_before) for row in self.layers)
        return kept_layers(rows, self.parameters_before)

    @property
    def error_of(self) -> str | None:
        """Whose the errors are, "output" or "weight"; None if nothing was fitted.

        A layer without moments is fitted in the norm of its weight; a note then says so.
        """
        if all(row.relative_error is None for row in self.layers):
            return None
        return "weight" if self.images is None else "output"

    @property
    def advice(self) -> str | None:
        """What to do if the smaller network is not faster; None if it is, or nobody knows."""
        slow = [one for one in self.latencies if one.rate > _NOT_FASTER]
        if not slow or not self.replaced:
            return None
        times = " and ".join(f"{fraction(one.rate)} for {images_of(one)}" for one in slow)
        budgets = "" if self.budget == "latency_rate" else f"{_FASTER_RANKS}; "
        return f"smaller, but not faster (times the original's: {times}): {budgets}{_FASTER_CALLS}"

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws the parameters and the error of every layer.

        Args:
            path: of the file to write; its ending says what kind, such as ``.png`` or ``.svg``.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: matplotlib draws no files of this kind.
        """
        draw_layers(self.layers, Path(path), title=title_of(self), error_of=self.error_of)

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Writes everything into one HTML file, with charts, that needs no other file.

        Args:
            path: of the file; one that exists is replaced when all is written.

        Raises:
            OSError: the file cannot be written.
        """
        with written_whole(Path(path)) as temporary:
            temporary.write_text(report_page(self), encoding="utf-8")

    def __str__(self) -> str:
        return report_text(self)
