"""What can be done to a model (`Inspection`) and what has been done (`Report`).

Both print as an aligned table and export as a dict and as JSON; a `Report` can be drawn as well.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sketchlayers.methods import Rank
from sketchlayers.methods._rank import rank_text
from sketchlayers.reports.table import (
    Footnotes,
    Table,
    fraction,
    joined,
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


@dataclass(frozen=True)
class LayerReport:
    """Describes one layer before and after.

    Attributes:
        name: qualified name in the model; "" for the model itself.
        kind: class of the original layer.
        shape: shape of its weight.
        method: name of the method; None if the layer is unchanged.
        rank: size of the replacement; None if the layer is unchanged.
        parameters_before: number of parameters, bias included; a parameter that is shared with an
            earlier layer is not counted.
        parameters_after: the same of the new layer.
        bytes_before: size in a checkpoint: parameters and persistent buffers.
        bytes_after: the same of the new layer, its seed included.
        multiply_adds_before: of one run on the example inputs; None where not known.
        multiply_adds_after: the same of the new layer.
        relative_error: after a fit to data, change of the layer's output on them, relative to it;
            after one without data ``|W_hat - W| / |W|`` (Frobenius); None if nothing was fitted.
        reason: why the layer is unchanged, or stays dense with another weight; None if it is
            replaced.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    method: str | None
    rank: Rank | None
    parameters_before: int
    parameters_after: int
    bytes_before: int
    bytes_after: int
    multiply_adds_before: int | None = None
    multiply_adds_after: int | None = None
    relative_error: float | None = None
    reason: str | None = None

    @property
    def rate(self) -> float:
        """Parameters after / before; 1 for a layer without parameters of its own."""
        return _ratio(self.parameters_after, self.parameters_before)

    @property
    def becomes(self) -> str | None:
        """The method, or "dense" for a dense layer with another weight; None if unchanged."""
        return "dense" if self.method is None and self.relative_error is not None else self.method

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as dict, list, str, int, float and None."""
        return {**_plain(self), "rate": self.rate}


class _Exported:
    """Export as JSON; the table in place of a long ``repr``."""

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as dict, list, str, int, float and None."""
        raise NotImplementedError

    def to_json(self, *, indent: int | None = 2) -> str:
        """Returns `to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True, repr=False)
class Report(_Exported):
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
        seconds: how long each stage took.
    """

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
    accuracy: Mapping[str, float] = dataclasses.field(default_factory=dict)
    accuracy_images: int | None = None
    latency_before: float | None = None
    latency_after: float | None = None
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)

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
        return _ratio(self.parameters_after, self.parameters_before)

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
        return _sum_known(row.multiply_adds_before for row in self.layers)

    @property
    def multiply_adds_after(self) -> int | None:
        """Multiply-adds of the smaller model; None without example inputs."""
        return _sum_known(row.multiply_adds_after for row in self.layers)

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
        from sketchlayers.reports.plot import picture  # most have no use for matplotlib

        Path(path).write_bytes(picture(self, Path(path)))

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as dict, list, str, int, float and None."""
        asked = self.rate_asked
        return {
            "method": self.method,
            "options": {name: _listed(value) for name, value in self.options.items()},
            "init": self.init,
            "seed": self.seed,
            "rate_asked": dict(asked) if isinstance(asked, Mapping) else asked,
            "rate": self.rate,
            "budget": self.budget,
            "budget_rate": self.budget_rate,
            "allocation": self.allocation,
            "images": self.images,
            "sequential": self.sequential,
            "output_change": _finite(self.output_change),
            "accuracy": dict(self.accuracy),
            "accuracy_images": self.accuracy_images,
            "latency_before": self.latency_before,
            "latency_after": self.latency_after,
            "seconds": dict(self.seconds),
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "multiply_adds_before": self.multiply_adds_before,
            "multiply_adds_after": self.multiply_adds_after,
            "other_parameters": self.other_parameters,
            "other_bytes": self.other_bytes,
            "notes": list(self.notes),
            "layers": [row.to_dict() for row in self.layers],
        }

    def __str__(self) -> str:
        reasons = Footnotes()
        counted = self.multiply_adds_before is not None
        headers = [("", "layer"), ("", "method"), ("", "shape"), ("", "rank")]
        for what in ["parameters"] + ["multiply-adds"] * counted:
            headers += [(what, "before"), (what, "after")]
        errors = [] if self.error_of is None else [(self.error_of, "error")]
        table = Table(*headers, *errors, ("", ""), left=3)
        for row in self.layers:
            rank = "-" if row.rank is None else rank_text(row.rank)
            cells = [_name(row.name), row.becomes or "-", joined(row.shape), rank]
            cells += [f"{row.parameters_before:,}", f"{row.parameters_after:,}"]
            if counted:
                cells += [quantity(row.multiply_adds_before), quantity(row.multiply_adds_after)]
            cells += [_error_text(row.relative_error) for _ in errors]
            table.add(*cells, reasons.mark(row.reason) if row.reason else "")
        others = f"{self.other_parameters:,}"
        table.add(
            "everything else", *[""] * 3, *[others] * 2, *[""] * (2 * counted + len(errors) + 1)
        )
        lines = [*self._legend(), *self._of_layers(), *self._of_data(), *self._of_time()]
        notes = [f"note: {note}" for note in self.notes]
        unchanged = ["not replaced:", *reasons.lines()] if reasons.lines() else []
        text = [wrapped(line) for line in (*lines, *notes)]
        return "\n".join([str(table), "", str(self._summary()), "", *text, *unchanged])

    def _summary(self) -> Table:
        """The whole model before and after."""
        table = Table(*[("", header) for header in _SUMMARY], left=1)
        rate = self.rate_asked
        asked = "" if isinstance(rate, Mapping) else f"asked: {fraction(rate)}"

        def add(
            what: str, before: float, after: float, text: Callable[[Any], str], of: str
        ) -> None:
            ratio = fraction(_ratio(after, before))
            table.add(what, text(before), text(after), ratio, asked if of == self.budget else "")

        add("parameters", self.parameters_before, self.parameters_after, "{:,}".format, "rate")
        add("file size", self.bytes_before, self.bytes_after, _megabytes, "")
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
                line += f"; the network's outputs change by {_percent(self.output_change)}"
            lines.append(line)
        if self.accuracy and self.accuracy_images is not None:
            shares = ", ".join(f"{which} {_percent(x)}" for which, x in self.accuracy.items())
            lines.append(f"accuracy on {self.accuracy_images:,} held-out images: {shares}")
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


@dataclass(frozen=True)
class LayerInspection:
    """Describes one layer and what a method could make of it.

    Attributes:
        name: qualified name in the model; "" for the model itself.
        kind: class of the layer.
        shape: shape of its weight.
        parameters: number of parameters, bias included; a parameter that is shared with an earlier
            layer is not counted.
        bytes: size in a checkpoint.
        multiply_adds: of one run on the example inputs; None where not known.
        smallest_rank: the smallest rank of the first of ``methods``; None if the layer stays as it
            is.
        largest_rank: the largest rank of that method that makes the layer smaller; None if the
            layer stays as it is.
        smallest_parameters: number of parameters at the smallest rank of the best of ``methods``;
            that of the layer, if it stays as it is.
        reason: why the layer stays as it is; None if it can be replaced.
        methods: names of the methods that take the layer: one, or those that "auto" chooses from.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    bytes: int
    multiply_adds: int | None
    smallest_rank: Rank | None
    largest_rank: Rank | None
    smallest_parameters: int
    reason: str | None
    methods: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as dict, list, str, int and None."""
        return _plain(self)


@dataclass(frozen=True, repr=False)
class Inspection(_Exported):
    """Tells what could be compressed; printed, it is a table of all layers.

    Attributes:
        method: name of the method.
        layers: every layer of the model in order of registration.
        other_parameters: number of parameters outside of the layers, such as those of
            normalisation.
        other_bytes: size of those in a checkpoint.
    """

    method: str
    layers: tuple[LayerInspection, ...]
    other_parameters: int
    other_bytes: int

    @property
    def parameters(self) -> int:
        """Number of parameters of the whole model."""
        return self.other_parameters + sum(row.parameters for row in self.layers)

    @property
    def bytes(self) -> int:
        """Size of a checkpoint of the model in bytes."""
        return self.other_bytes + sum(row.bytes for row in self.layers)

    @property
    def multiply_adds(self) -> int | None:
        """Multiply-adds of the convolutions and linear layers; None without example inputs."""
        return _sum_known(row.multiply_adds for row in self.layers)

    @property
    def compressible_parameters(self) -> int:
        """Number of parameters of the layers that can be replaced."""
        return sum(row.parameters for row in self.layers if row.reason is None)

    @property
    def smallest_parameters(self) -> int:
        """Number of parameters of the model with every layer at its smallest rank."""
        return self.other_parameters + sum(row.smallest_parameters for row in self.layers)

    @property
    def smallest_rate(self) -> float:
        """The smallest ``rate`` that `compress` can reach."""
        return _ratio(self.smallest_parameters, self.parameters)

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it as dict, list, str, int, float and None."""
        return {
            "method": self.method,
            "parameters": self.parameters,
            "compressible_parameters": self.compressible_parameters,
            "smallest_parameters": self.smallest_parameters,
            "smallest_rate": self.smallest_rate,
            "bytes": self.bytes,
            "multiply_adds": self.multiply_adds,
            "other_parameters": self.other_parameters,
            "other_bytes": self.other_bytes,
            "layers": [row.to_dict() for row in self.layers],
        }

    def __str__(self) -> str:
        reasons = Footnotes()
        counted = self.multiply_adds is not None
        several = any(len(row.methods) > 1 for row in self.layers)
        headers = ["layer", "kind", "shape", "methods" if several else "ranks"]
        headers += ["parameters", "share", "smallest", *["multiply-adds"] * counted, ""]
        table = Table(*(("", header) for header in headers), left=4)

        def add(of: LayerInspection | Inspection, *cells: str, last: str = "") -> None:
            share = f"{100 * _ratio(of.parameters, self.parameters):.1f} %"
            numbers = [f"{of.parameters:,}", share, f"{of.smallest_parameters:,}"]
            table.add(*cells, *numbers, *[quantity(of.multiply_adds)] * counted, last)

        for row in self.layers:
            sizes = ", ".join(row.methods) or "-" if several else _range_text(row)
            mark = reasons.mark(row.reason) if row.reason else ""
            add(row, _name(row.name), row.kind, joined(row.shape), sizes, last=mark)
        count, share = self.other_parameters, _ratio(self.other_parameters, self.parameters)
        numbers = [f"{count:,}", f"{100 * share:.1f} %", f"{count:,}", *[""] * counted]
        table.add("everything else", "", "", "", *numbers, "")
        table.rule()
        add(self, "whole model", "", "", "")
        share = 100 * _ratio(self.compressible_parameters, self.parameters)
        summary = (
            f"method {self.method} can replace {sum(row.reason is None for row in self.layers)} of "
            f"{len(self.layers)} layers, with {share:.1f} % of the parameters; "
            f"smallest rate {fraction(self.smallest_rate)}, file size {_megabytes(self.bytes)}"
        )
        unchanged = ["not replaced:", *reasons.lines()] if reasons.lines() else []
        legend = ['"-": the layer stays as it is'] if unchanged else []
        return "\n".join([str(table), "", wrapped(summary), *legend, *unchanged])


def _name(name: str) -> str:
    return name or "(the model)"


def _range_text(row: LayerInspection) -> str:
    """A family of ranks: "1-12", "1x1 to 16x24"; "-" for none."""
    if row.smallest_rank is None or row.largest_rank is None:
        return "-"
    between = "-" if isinstance(row.largest_rank, int) else " to "
    return f"{rank_text(row.smallest_rank)}{between}{rank_text(row.largest_rank)}"


def _plain(row: LayerReport | LayerInspection) -> dict[str, Any]:
    """The fields by name, with lists for tuples."""
    fields = dataclasses.asdict(row).items()
    return {name: _listed(value) for name, value in fields}


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _finite(value: float | None) -> float | None:
    """The number as JSON knows numbers."""
    return value if value is not None and math.isfinite(value) else None


def _error_text(error: float | None) -> str:
    if error is None:
        return ""
    return "<0.001" if 0 < error < 0.001 else f"{error:.3f}"


def _megabytes(count: float) -> str:
    """Three significant digits: "0.0593 MB", "46.8 MB", "1,234 MB"."""
    return f"{count / 1e6:,.0f} MB" if count >= 1e8 else f"{count / 1e6:.3g} MB"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g}" if seconds < 1 else f"{1000 * seconds:,.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _ratio(after: float, before: float) -> float:
    return after / before if before else 1.0


def _sum_known(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
