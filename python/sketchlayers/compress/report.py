"""What can be done to a model (`Inspection`) and what has been done (`Report`).

Both print as an aligned table and export as plain dict and JSON; a `Report` is drawn, too.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sketchlayers.compress._table import (
    Footnotes,
    Table,
    fraction,
    joined,
    quantity,
    shorten,
    wrapped,
)
from sketchlayers.methods import Rank
from sketchlayers.methods._rank import rank_text

_KIND_WIDTH = 18
_BUDGETS = {"flops_rate": "multiply-adds", "latency_rate": "seconds"}
_ERRORS = {
    ("output", True): "|change| / |output| of each layer, with its inputs as the layers before "
    "it leave them",
    ("output", False): "|change| / |output| of each layer, with its original inputs",
    ("weight", False): "|change| / |weight| of each layer",
}


@dataclass(frozen=True)
class LayerReport:
    """One layer before and after.

    Attributes:
        name: qualified name in the model; "" for the model itself.
        kind: class of the original layer.
        shape: shape of its weight.
        method: name of the method; None if the layer is left alone.
        rank: size of the replacement; None if the layer is left alone.
        parameters_before: parameters, bias included; one shared with an earlier layer not counted.
        parameters_after: the same of the new layer.
        bytes_before: what a checkpoint holds of it: parameters and persistent buffers.
        bytes_after: the same of the new layer, its seed included.
        multiply_adds_before: of one run on the example inputs; None where not known.
        multiply_adds_after: the same of the new layer.
        relative_error: after a fit to data, change of the layer's output on them, relative to it;
            after one without data ``|W_hat - W| / |W|`` (Frobenius); None if nothing was fitted.
        reason: why the layer is left alone, or stays dense with another weight; None if it is
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
        """Parameters after / before; 1 for a layer that brings none."""
        return _ratio(self.parameters_after, self.parameters_before)

    @property
    def becomes(self) -> str | None:
        """The method, or "dense" for a dense layer with another weight; None if left alone."""
        return "dense" if self.method is None and self.relative_error is not None else self.method

    def to_dict(self) -> dict[str, Any]:
        """All of it as dict, list, str, int, float and None."""
        return {**_plain(self), "rate": self.rate}


class _Exported:
    """Export as JSON; the table in place of a long ``repr``."""

    def to_dict(self) -> dict[str, Any]:
        """All of it as dict, list, str, int, float and None."""
        raise NotImplementedError

    def to_json(self, *, indent: int | None = 2) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True, repr=False)
class Report(_Exported):
    """What ``compress`` has done.

    Attributes:
        method: name of the method.
        options: its options.
        init: "fit" or "random".
        seed: what the layers' seeds were derived from, together with their names.
        rate_asked: of the whole model, or the rate of each named layer or pattern.
        layers: every layer of the model, replaced or left alone, in order of registration.
        other_parameters: parameters outside of the layers, such as those of normalisation.
        other_bytes: what a checkpoint holds of that, running statistics included.
        notes: what one must know besides, such as why a rate was not met.
        budget: what ``rate_asked`` is a rate of: "rate" parameters, "flops_rate" multiply-adds,
            "latency_rate" seconds.
        budget_rate: what was got of it; seconds as measured layer by layer. None where layers have
            rates of their own.
        allocation: how the budget became ranks; None where layers have rates of their own.
        images: that the layers' moments were taken on; None without data.
        sequential: whether layers were fitted one after the other.
        output_change: of the network on calibration images, relative to its outputs
            (root mean square), before any training with labels; None without images.
        accuracy: of networks on held-out images with labels, such as "original" and "compressed":
            the share whose class has the highest score.
        accuracy_images: how many those are.
        seconds: that each stage took.
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
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def parameters_before(self) -> int:
        """Parameters of the whole original model."""
        return self.other_parameters + sum(row.parameters_before for row in self.layers)

    @property
    def parameters_after(self) -> int:
        """Parameters of the whole smaller model."""
        return self.other_parameters + sum(row.parameters_after for row in self.layers)

    @property
    def rate(self) -> float:
        """Parameters after / before, of the whole model."""
        return _ratio(self.parameters_after, self.parameters_before)

    @property
    def bytes_before(self) -> int:
        """Bytes that a checkpoint of the original model holds."""
        return self.other_bytes + sum(row.bytes_before for row in self.layers)

    @property
    def bytes_after(self) -> int:
        """Bytes that a checkpoint of the smaller model holds."""
        return self.other_bytes + sum(row.bytes_after for row in self.layers)

    @property
    def multiply_adds_before(self) -> int | None:
        """Of the convolutions and linear layers together; None without example inputs."""
        return _sum_known(row.multiply_adds_before for row in self.layers)

    @property
    def multiply_adds_after(self) -> int | None:
        """The same of the smaller model."""
        return _sum_known(row.multiply_adds_after for row in self.layers)

    @property
    def replaced(self) -> tuple[LayerReport, ...]:
        """The layers that were replaced."""
        return tuple(row for row in self.layers if row.method is not None)

    @property
    def error_of(self) -> str | None:
        """What the errors are errors of, "output" or "weight"; None if nothing was fitted.

        A layer without moments is fitted in the norm of its weight all the same; a note says so.
        """
        if all(row.relative_error is None for row in self.layers):
            return None
        return "weight" if self.images is None else "output"

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws the parameters and the error of every layer.

        Args:
            path: of a picture; its ending says what kind, such as ``.png`` or ``.svg``.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: matplotlib draws no files of this kind.
        """
        from sketchlayers.compress.plot import picture  # most have no use for matplotlib

        Path(path).write_bytes(picture(self, Path(path)))

    def to_dict(self) -> dict[str, Any]:
        """All of it as dict, list, str, int, float and None."""
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
        for what in ["parameters", "stored bytes"] + ["multiply-adds"] * counted:
            headers += [(what, "before"), (what, "after")]
        errors = [] if self.error_of is None else [(self.error_of, "error")]
        table = Table(*headers, *errors, ("", ""), left=3)

        def add(of: LayerReport | Report, *cells: str, error: str = "", mark: str = "") -> None:
            pairs = [f"{of.parameters_before:,}", f"{of.parameters_after:,}"]
            pairs += [quantity(of.bytes_before, "B"), quantity(of.bytes_after, "B")]
            if counted:
                pairs += [quantity(of.multiply_adds_before), quantity(of.multiply_adds_after)]
            table.add(*cells, *pairs, *[error for _ in errors], mark)

        for row in self.layers:
            rank = "-" if row.rank is None else rank_text(row.rank)
            add(
                row,
                _name(row.name),
                row.becomes or "-",
                joined(row.shape),
                rank,
                error=_error_text(row.relative_error),
                mark=reasons.mark(row.reason) if row.reason else "",
            )
        add(self._other, "everything else", "-", "-", "-")
        table.rule()
        add(self, "whole model", "", "", "")
        lines = [*self._summary(), *self._of_data(), *self._of_time()]
        notes = [wrapped(f"note: {note}") for note in self.notes]
        others = ["not replaced:", *reasons.lines()] if reasons.lines() else []
        return "\n".join([str(table), "", *lines, *notes, *others])

    @property
    def _other(self) -> LayerReport:
        count, size = self.other_parameters, self.other_bytes
        return LayerReport("", "", (), None, None, count, count, size, size)

    def _summary(self) -> list[str]:
        rate = self.rate_asked
        asked = "" if isinstance(rate, Mapping) else f" (asked: {fraction(rate)})"
        rates = [f"rate {fraction(self.rate)}{asked if self.budget == 'rate' else ''}"]
        if self.budget != "rate":
            got = "-" if self.budget_rate is None else fraction(self.budget_rate)
            rates.append(f"{_BUDGETS[self.budget]} {got}{asked}")
        rates.append(f"stored bytes {fraction(_ratio(self.bytes_after, self.bytes_before))}")
        refitted = sum(row.becomes == "dense" for row in self.layers)
        dense = f", {refitted} dense with new weights" if refitted else ""
        return [
            ", ".join(rates),
            f"{len(self.replaced)} of {len(self.layers)} layers replaced{dense}; seed {self.seed}",
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
        return lines

    def _of_time(self) -> list[str]:
        if not self.seconds:
            return []
        stages = ", ".join(f"{stage} {seconds:.3g}" for stage, seconds in self.seconds.items())
        return [f"seconds: {stages}; {sum(self.seconds.values()):.3g} in all"]


@dataclass(frozen=True)
class LayerInspection:
    """One layer and what a method could make of it.

    Attributes:
        name: qualified name in the model; "" for the model itself.
        kind: class of the layer.
        shape: shape of its weight.
        parameters: parameters, bias included; one shared with an earlier layer not counted.
        bytes: what a checkpoint holds of it.
        multiply_adds: of one run on the example inputs; None where not known.
        smallest_rank: the smallest rank; None if it must be left alone.
        largest_rank: the largest rank that makes it smaller; None if it must be left alone.
        smallest_parameters: parameters at the smallest rank; as they are, if it must be left alone.
        reason: why it must be left alone; None if it can be replaced.
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

    def to_dict(self) -> dict[str, Any]:
        """All of it as dict, list, str, int and None."""
        return _plain(self)


@dataclass(frozen=True, repr=False)
class Inspection(_Exported):
    """What could be compressed.

    Attributes:
        method: name of the method.
        layers: every layer of the model in order of registration.
        other_parameters: parameters outside of the layers, such as those of normalisation.
        other_bytes: what a checkpoint holds of that.
    """

    method: str
    layers: tuple[LayerInspection, ...]
    other_parameters: int
    other_bytes: int

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        return self.other_parameters + sum(row.parameters for row in self.layers)

    @property
    def bytes(self) -> int:
        """Bytes that a checkpoint of the model holds."""
        return self.other_bytes + sum(row.bytes for row in self.layers)

    @property
    def multiply_adds(self) -> int | None:
        """Of the convolutions and linear layers together; None without example inputs."""
        return _sum_known(row.multiply_adds for row in self.layers)

    @property
    def compressible_parameters(self) -> int:
        """Parameters of the layers that can be replaced."""
        return sum(row.parameters for row in self.layers if row.reason is None)

    @property
    def smallest_parameters(self) -> int:
        """Parameters of the whole model when each layer that can be replaced has its least rank."""
        return self.other_parameters + sum(row.smallest_parameters for row in self.layers)

    @property
    def smallest_rate(self) -> float:
        """Those over the parameters of the whole model."""
        return _ratio(self.smallest_parameters, self.parameters)

    def to_dict(self) -> dict[str, Any]:
        """All of it as dict, list, str, int, float and None."""
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
        headers = ["layer", "kind", "shape", "ranks", "parameters", "share", "smallest"]
        headers += ["stored bytes"] + ["multiply-adds"] * counted + [""]
        table = Table(*(("", header) for header in headers), left=4)

        def add(of: LayerInspection | Inspection, *cells: str, last: str = "") -> None:
            share = f"{100 * _ratio(of.parameters, self.parameters):.1f} %"
            numbers = [f"{of.parameters:,}", share, f"{of.smallest_parameters:,}"]
            numbers += [quantity(of.bytes, "B"), *[quantity(of.multiply_adds)] * counted]
            table.add(*cells, *numbers, last)

        for row in self.layers:
            ranks = _range_text(row.smallest_rank, row.largest_rank)
            mark = reasons.mark(row.reason) if row.reason else ""
            kind = shorten(row.kind, _KIND_WIDTH)
            add(row, _name(row.name), kind, joined(row.shape), ranks, last=mark)
        count, size = self.other_parameters, self.other_bytes
        other = LayerInspection("", "", (), count, size, None, None, None, count, None)
        add(other, "everything else", "-", "-", "-")
        table.rule()
        add(self, "whole model", "", "", "")
        share = 100 * _ratio(self.compressible_parameters, self.parameters)
        summary = (
            f"{sum(row.reason is None for row in self.layers)} of {len(self.layers)} layers, "
            f"{share:.1f} % of the parameters, can be compressed; "
            f"smallest rate {fraction(self.smallest_rate)}"
        )
        left_alone = ["cannot be compressed:", *reasons.lines()] if reasons.lines() else []
        return "\n".join([str(table), "", summary, *left_alone])


def _name(name: str) -> str:
    return name or "(the model)"


def _range_text(smallest: Rank | None, largest: Rank | None) -> str:
    """A family of ranks: "1-12", "1x1 to 16x24"; "-" for none."""
    if smallest is None or largest is None:
        return "-"
    between = "-" if isinstance(largest, int) else " to "
    return f"{rank_text(smallest)}{between}{rank_text(largest)}"


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


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _ratio(after: int, before: int) -> float:
    return after / before if before else 1.0


def _sum_known(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
