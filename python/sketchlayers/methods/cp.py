"""CP in the norm of the outputs (Kalle et al., NeurIPS 2025, arXiv 2511.04494)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import log2
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sketchlayers import decompose
from sketchlayers._runtime.threads import in_parallel
from sketchlayers.methods._curve import interpolated, spread, squared_errors
from sketchlayers.methods._factored import Factored, Parts
from sketchlayers.methods._method import register
from sketchlayers.methods._rank import Candidate, Rank, one_number
from sketchlayers.nn import CPConv2d, LowRankLinear
from sketchlayers.nn._checks import number_above, whole_number
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn._groups import Group
from sketchlayers.nn.factored.cp import cp_parts

_SMALL_PATCH, _LARGE_PATCH = 1000, 3000
"""Inputs of one output up to which a layer is small, and from which on it is large.

A sweep takes milliseconds in small ones and some tenths of a second in large ones.
"""
_CURVE_SWEEPS = (20, 12, 8)
"""Of the fits for a curve: in small layers, those between, and large ones."""
_MOST_SWEEPS = (None, 120, 40)
"""Of a fit, where the method's own number is larger; all but small layers have one start."""
_DAMPING = 0.5
"""Fraction of the last doubling's gain that each further doubling of sweeps is taken to bring."""


@register("cp")
@dataclass(frozen=True, kw_only=True)
class CP(Factored):
    """``W[t, s, i, j] = sum_r A[t, r] B[s, r] C[i, r] D[j, r]``: 1x1, h x 1, 1 x w, 1x1.

    There is one factor for each axis of the kernel.
    A 1x1 convolution becomes two, and a linear layer two, with the global optimum of that rank.
    Every group of a grouped convolution has the same rank.

    Attributes:
        starts: of a fit, of which the best is kept; one in layers of more than 1,000 inputs to an
            output. In a trained ResNet-20 at rate 0.5 one start changes the outputs by 8.3 %, two
            by 7.8 % and four by 7.7 %, in 1, 1.2 and 1.5 times the time of the whole compression.
        max_sweeps: over the factors, of each start; at most 120 in layers of more than 1,000 inputs
            to an output, 40 of more than 3,000.
        tolerance: change of the relative error at which a fit ends.
    """

    layers: ClassVar[tuple[type[nn.Module], ...]] = (CPConv2d, LowRankLinear)

    starts: int = 2
    max_sweeps: int = 240
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("starts", "max_sweeps"):
            object.__setattr__(self, name, whole_number("CP", name, getattr(self, name)))
        object.__setattr__(self, "tolerance", number_above("CP", "tolerance", self.tolerance, 0))

    def _parts(self, layer: nn.Module, rank: Rank) -> Parts:
        return cp_parts(Geometry.of(layer), one_number("CP", rank))

    def _arguments(self, layer: nn.Conv2d | nn.Linear, rank: Rank) -> dict[str, Any]:
        how = {} if isinstance(layer, nn.Linear) else self.options()
        size = _size(Geometry.of(layer).patch)
        if how and size:
            most = _MOST_SWEEPS[size] or self.max_sweeps
            how |= {"starts": 1, "max_sweeps": min(self.max_sweeps, most)}
        return super()._arguments(layer, rank) | how

    def curve(self, layer: nn.Module, **norm: Tensor | None) -> list[Candidate]:
        """See `Method.curve`: a few ranks are fitted, from one start in a few sweeps.

        The others are interpolated. Sweeps gain by powers: from the gain of the last few follows
        what all of a fit will bring.
        """
        if Geometry.of(layer).taps == 1:
            return super().curve(layer, **norm)
        family = self.ranks(layer)
        size = _size(Geometry.of(layer).patch)
        ranks = spread(family, coarse=size > 0)

        def errors(group: Group) -> Tensor:
            found = torch.empty(len(ranks), dtype=torch.float64)

            def fit(place: int) -> None:
                found[place] = self._error(group, one_number("CP", ranks[place]))

            fits = [partial(fit, place) for place in reversed(range(len(ranks)))]
            if group.weight.is_cpu and size == 0:
                in_parallel(fits)  # the largest first, so that no thread waits for it
            else:
                for one in fits:
                    one()
            return found

        squares = squared_errors(layer, norm, errors).tolist()
        return interpolated(
            family, partial(self.parameters, layer), dict(zip(ranks, squares, strict=True))
        )

    def _error(self, group: Group, rank: int) -> float:
        """Relative error that a fit of one group will have, nearly."""
        sweeps = min(_CURVE_SWEEPS[_size(group.weight[0].numel())], self.max_sweeps)
        fit = decompose.cp(group.weight, rank, **group.norm, starts=1, max_sweeps=sweeps)
        errors = fit.errors
        last, halfway = errors[-1], errors[(len(errors) - 1) // 2]
        if last == 0 or len(errors) < sweeps:
            return last
        return last * (last / halfway) ** (_DAMPING * log2(self.max_sweeps / sweeps))


def _size(patch: int) -> int:
    """0, 1 or 2 for a layer that is small, between, or large."""
    return (patch > _SMALL_PATCH) + (patch >= _LARGE_PATCH)
