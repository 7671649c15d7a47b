"""What a report has a row for: a layer, a parameter outside of the layers, a time."""

from __future__ import annotations

from dataclasses import dataclass

from sketchlayers.methods import Rank
from sketchlayers.reports.export import Exported, ratio


@dataclass(frozen=True)
class LayerReport(Exported):
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
        bits: of its numbers; None where they are not rounded.
    """

    _derived = ("rate",)

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
    bits: int | None = None

    @property
    def rate(self) -> float:
        """Parameters after / before; 1 for a layer without parameters of its own."""
        return ratio(self.parameters_after, self.parameters_before)

    @property
    def becomes(self) -> str | None:
        """The method, or "dense" for a dense layer with another weight; None if unchanged."""
        return "dense" if self.method is None and self.relative_error is not None else self.method


@dataclass(frozen=True)
class OtherParameter(Exported):
    """A parameter that is in no layer: of a normalisation, or a module's own `nn.Parameter`.

    Attributes:
        name: qualified name in the model.
        kind: class of the module that holds it.
        shape: its shape; () for a lazy one.
        parameters: number of its values.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int


@dataclass(frozen=True)
class Latency(Exported):
    """How long one call of the original and of the smaller network takes.

    The networks are called in turns in one process, in evaluation mode, without gradients and
    uncompiled.

    Attributes:
        images: that one call is for; None where that is not known, as with a function that calls
            the model.
        before: median seconds of the original network.
        after: the same of the smaller network.
        calls: how many calls of each network were timed.
        threads: of PyTorch on the CPU.
        device: where the networks are.
    """

    _derived = ("rate",)

    images: int | None
    before: float
    after: float
    calls: int
    threads: int
    device: str

    @property
    def rate(self) -> float:
        """Seconds after / before."""
        return ratio(self.after, self.before)
