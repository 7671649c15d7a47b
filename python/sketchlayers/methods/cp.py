"""CP in the norm of the outputs (Kalle et al., NeurIPS 2025, arXiv 2511.04494)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from sketchlayers import decompose
from sketchlayers.decompose._separable import SMALL_PATCH
from sketchlayers.decompose.cp import QUICK_SWEEPS, QUICK_SWEEPS_WITH_MOMENT
from sketchlayers.methods._curve import interpolated, spread, squared_errors
from sketchlayers.methods._factored import MOST_INPUTS, Factored, Parts
from sketchlayers.methods._method import register
from sketchlayers.methods._rank import Candidate, Rank, one_number
from sketchlayers.methods._work import Work
from sketchlayers.nn import LowRankLinear
from sketchlayers.nn._checks import number_above, whole_number
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn._groups import Group
from sketchlayers.nn._layer import CompressedLayer
from sketchlayers.nn.factored._layer import chain_multiply_adds
from sketchlayers.nn.factored.cp import cp_parts
from sketchlayers.nn.factored.other_axes import CP_LAYERS

_MOST_SWEEPS = ((3000, 24), (SMALL_PATCH, 60))
"""Of a fit, above so many inputs of one output, where the method's own number is larger: a sweep
takes tenths of a second there. With twice as many the error is about 5 % lower."""
_SWEEPS_FROM_START = 30
"""Of a fit that goes on from another one."""


@register("cp")
@dataclass(frozen=True, kw_only=True)
class CP(Factored):
    """``W[t, s, i, j] = sum_r A[t, r] B[s, r] C[i, r] D[j, r]``: 1x1, h x 1, 1 x w, 1x1.

    There is one factor for each axis of the kernel.
    A 1x1 convolution becomes two, and a linear layer two, with the global optimum of that rank.
    Every group of a grouped convolution has the same rank.

    Attributes:
        starts: of a fit, of which the best is kept. In a trained ResNet-20 one start and more
            change the outputs alike.
        max_sweeps: over the factors, of each start, with and without calibration each; at most 60
            in layers of more than 1,200 inputs to an output, 24 of more than 3,000.
        tolerance: change of the relative error at which a fit ends.
    """

    layers: ClassVar[tuple[type[CompressedLayer], ...]] = (*CP_LAYERS, LowRankLinear)

    _most_inputs: ClassVar[int | None] = MOST_INPUTS

    starts: int = 1
    max_sweeps: int = 80
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("starts", "max_sweeps"):
            object.__setattr__(self, name, whole_number("CP", name, getattr(self, name)))
        object.__setattr__(self, "tolerance", number_above("CP", "tolerance", self.tolerance, 0))

    def _parts(self, layer: nn.Module, rank: Rank) -> Parts:
        return cp_parts(Geometry.of(layer), one_number("CP", rank)).chain

    def multiply_adds(self, layer: nn.Module, rank: Rank, input_shape: Sequence[int]) -> int:
        """See `Method.multiply_adds`."""
        if isinstance(layer, nn.Linear):
            return super().multiply_adds(layer, rank, input_shape)
        parts = cp_parts(Geometry.of(layer), one_number("CP", rank)).run
        return chain_multiply_adds("CP", layer, parts, input_shape)

    def iterates(self, layer: nn.Module) -> bool:
        """See `Method.iterates`."""
        return Geometry.of(layer).taps > 1

    def _arguments(self, layer: nn.Module, rank: Rank) -> dict[str, Any]:
        how = {} if isinstance(layer, nn.Linear) else self.options()
        if how:
            how["max_sweeps"] = self._most_sweeps(layer)
        return super()._arguments(layer, rank) | how

    def _from_start(self, how: dict[str, Any]) -> dict[str, Any]:
        return how | {"max_sweeps": min(how["max_sweeps"], _SWEEPS_FROM_START)}

    def _most_sweeps(self, layer: nn.Module) -> int:
        inputs = Geometry.of(layer).patch
        return min([self.max_sweeps, *(most for above, most in _MOST_SWEEPS if inputs > above)])

    def curve(self, layer: nn.Module, **norm: Tensor | None) -> list[Candidate]:
        """See `Method.curve`: errors are estimated at a few ranks and interpolated."""
        geometry = Geometry.of(layer)
        if geometry.taps == 1:
            return super().curve(layer, **norm)
        family = self.ranks(layer)
        ranks = spread(family, coarse=geometry.patch > SMALL_PATCH)

        def errors(group: Group) -> Tensor:
            numbers = [one_number("CP", rank) for rank in ranks]
            sweeps = self._most_sweeps(layer)
            return decompose.cp_errors(group.weight, numbers, **group.norm, max_sweeps=sweeps)

        squares = squared_errors(layer, norm, errors).tolist()
        known = dict(zip(ranks, squares, strict=True))
        return interpolated(family, partial(self.parameters, layer), known)

    def fit_work(self, layer: nn.Module) -> Work:
        """See `Method.fit_work`: sweeps without and with second moment."""
        if not self.iterates(layer):
            return super().fit_work(layer)
        plain, with_moment = _sweeps(layer, 0.5)
        return plain.plus(with_moment).times(self._most_sweeps(layer) * self.starts)

    def curve_work(self, layer: nn.Module) -> Work:
        """See `Method.curve_work`: a few sweeps at each rank."""
        if not self.iterates(layer):
            return super().curve_work(layer)
        plain, with_moment = _sweeps(layer, 0.3)
        ranks = spread(self.ranks(layer), coarse=Geometry.of(layer).patch > SMALL_PATCH)
        quick = plain.times(QUICK_SWEEPS).plus(with_moment.times(QUICK_SWEEPS_WITH_MOMENT))
        return quick.times(len(ranks))


def _sweeps(layer: nn.Module, rate: float) -> tuple[Work, Work]:
    """A sweep without and one with second moment, where the factors have this rate."""
    sizes = Geometry.of(layer)
    inputs, outputs = sizes.patch, sizes.group_outputs
    rank = rate * inputs * outputs / (sizes.group_inputs + outputs)
    plain = 4 * inputs * outputs * rank + 3 * rank**3
    moment = 2 * inputs**2 * rank + 4 * inputs * rank**2
    steps = sizes.groups
    return Work(steps * plain, steps), Work(steps * (plain + moment), steps)
