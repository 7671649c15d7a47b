"""What can be done to a model: what ``inspect`` returns."""

from __future__ import annotations

from dataclasses import dataclass

from sketchlayers.methods import Rank
from sketchlayers.methods._rank import rank_text
from sketchlayers.reports.export import Exported, Printed, ratio, sum_known
from sketchlayers.reports.rows import OtherParameter
from sketchlayers.reports.table import (
    Table,
    fraction,
    joined,
    layer_name,
    megabytes,
    percent,
    quantity,
    wrapped,
)
from sketchlayers.reports.unchanged import (
    Kept,
    kept_layers,
    kept_lines,
    marks_of,
    other_lines,
)


@dataclass(frozen=True)
class LayerInspection(Exported):
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


@dataclass(frozen=True, repr=False)
class Inspection(Printed):
    """Tells what could be compressed; printed, it is a table of all layers.

    Attributes:
        method: name of the method.
        layers: every layer of the model in order of registration.
        others: parameters outside of the layers, such as those of normalisation.
        other_bytes: size of those in a checkpoint, running statistics included.
    """

    _derived = (
        "parameters",
        "other_parameters",
        "compressible_parameters",
        "smallest_parameters",
        "smallest_rate",
        "bytes",
        "multiply_adds",
    )

    method: str
    layers: tuple[LayerInspection, ...]
    others: tuple[OtherParameter, ...]
    other_bytes: int

    @property
    def parameters(self) -> int:
        """Number of parameters of the whole model."""
        return self.other_parameters + sum(row.parameters for row in self.layers)

    @property
    def other_parameters(self) -> int:
        """Number of parameters outside of the layers."""
        return sum(one.parameters for one in self.others)

    @property
    def kept(self) -> tuple[Kept, ...]:
        """The layers that stay as they are, by reason, with their share of all parameters."""
        rows = ((row.name, row.reason, row.parameters) for row in self.layers)
        return kept_layers(rows, self.parameters)

    @property
    def bytes(self) -> int:
        """Size of a checkpoint of the model in bytes."""
        return self.other_bytes + sum(row.bytes for row in self.layers)

    @property
    def multiply_adds(self) -> int | None:
        """Multiply-adds of the convolutions and linear layers; None without example inputs."""
        return sum_known(row.multiply_adds for row in self.layers)

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
        return ratio(self.smallest_parameters, self.parameters)

    def __str__(self) -> str:
        marks = marks_of(self.kept)
        counted = self.multiply_adds is not None
        several = any(len(row.methods) > 1 for row in self.layers)
        headers = ["layer", "kind", "shape", "methods" if several else "ranks"]
        headers += ["parameters", "share", "smallest", *["multiply-adds"] * counted, ""]
        table = Table(*headers, left=4)

        def add(of: LayerInspection | Inspection, *cells: str, last: str = "") -> None:
            share = percent(ratio(of.parameters, self.parameters))
            numbers = [f"{of.parameters:,}", share, f"{of.smallest_parameters:,}"]
            table.add(*cells, *numbers, *[quantity(of.multiply_adds)] * counted, last)

        for row in self.layers:
            sizes = ", ".join(row.methods) or "-" if several else _range_text(row)
            cells = [layer_name(row.name), row.kind, joined(row.shape), sizes]
            add(row, *cells, last=marks.get(row.reason or "", ""))
        count = self.other_parameters
        numbers = [f"{count:,}", percent(ratio(count, self.parameters)), f"{count:,}"]
        table.add("everything else", "", "", "", *numbers, *[""] * counted, "")
        table.rule()
        add(self, "whole model", "", "", "")
        share = percent(ratio(self.compressible_parameters, self.parameters))
        summary = (
            f"method {self.method} can replace {sum(row.reason is None for row in self.layers)} of "
            f"{len(self.layers)} layers, with {share} of the parameters; "
            f"smallest rate {fraction(self.smallest_rate)}, file size {megabytes(self.bytes)}"
        )
        unchanged = kept_lines(self.kept)
        legend = ['"-": the layer stays as it is'] if unchanged else []
        unchanged += other_lines(self.others, self.parameters)
        return "\n".join([str(table), "", wrapped(summary), *legend, *unchanged])


def _range_text(row: LayerInspection) -> str:
    """A family of ranks: "1-12", "1x1 to 16x24"; "-" for none."""
    if row.smallest_rank is None or row.largest_rank is None:
        return "-"
    between = "-" if isinstance(row.largest_rank, int) else " to "
    return f"{rank_text(row.smallest_rank)}{between}{rank_text(row.largest_rank)}"
