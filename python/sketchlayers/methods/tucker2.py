"""Tucker-2 in the norm of the outputs (Kalle et al., NeurIPS 2025, arXiv 2511.04494)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sketchlayers import decompose
from sketchlayers.methods._curve import pareto, squared_errors
from sketchlayers.methods._factored import Factored
from sketchlayers.methods._method import register
from sketchlayers.methods._rank import Candidate, Rank
from sketchlayers.nn import TuckerConv2d
from sketchlayers.nn._checks import number_above, whole_number
from sketchlayers.nn._factored import Group
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn.tucker import Ranks, checked_ranks, tucker_parts, uniform_ranks

_INPUT_SHARES = (0.04, 0.08, 0.12, 0.18, 0.25, 0.33, 0.45, 0.6, 0.8)
"""Input ranks of a curve over input channels; and no input factor."""


@register("tucker2")
@dataclass(frozen=True, kw_only=True)
class Tucker2(Factored):
    """``W[t, s, p] = sum_ab U_T[t, a] G[a, b, p] U_S[s, b]``: 1x1, h x w and 1x1 convolutions.

    The rank of a convolution is ``(RS, RT)``, None where a side has no factor. A 1x1 convolution
    becomes two, of rank ``(None, RT)``, and a linear layer two of rank ``RT``: nothing of three
    factors is closer, and these are the global optimum. Every group of a grouped convolution has
    the same rank.

    Attributes:
        max_sweeps: over the factors, of a fit.
        tolerance: change of the relative error at which a fit ends.
    """

    max_sweeps: int = 100
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "max_sweeps", whole_number("Tucker2", "max_sweeps", self.max_sweeps)
        )
        tolerance = number_above("Tucker2", "tolerance", self.tolerance, 0)
        object.__setattr__(self, "tolerance", tolerance)

    def _conv_ranks(self, geometry: Geometry) -> Sequence[Rank]:
        return uniform_ranks(geometry)

    def _conv_parts(self, geometry: Geometry, rank: Rank) -> list[Geometry]:
        parts = tucker_parts(geometry, checked_ranks("Tucker2", geometry, rank))
        return [part for part in parts if part is not None]

    def _build_conv(self, layer: nn.Conv2d, rank: Rank, **arguments: Any) -> TuckerConv2d:
        ranks = checked_ranks("Tucker2", Geometry.of(layer), rank)
        return TuckerConv2d.from_conv(
            layer, ranks, max_sweeps=self.max_sweeps, tolerance=self.tolerance, **arguments
        )

    def _conv_curve(
        self, layer: nn.Conv2d, second_moment: Tensor | None, sensitivity: Tensor | None
    ) -> list[Candidate]:
        """About ten input ranks, each with every output rank; the input factor nearly fitted."""
        geometry = Geometry.of(layer)
        if layer.kernel_size == (1, 1):
            return self._low_rank_curve(
                layer, second_moment, sensitivity, lambda rank: (None, rank)
            )
        channels, outputs = geometry.group_inputs, geometry.group_outputs
        inputs = sorted({max(1, round(share * channels)) for share in _INPUT_SHARES} - {channels})
        columns = [*inputs, None]

        def errors(group: Group) -> Tensor:
            weight, moment, weights = group
            return decompose.tucker2_errors(
                weight, columns, second_moment=moment, sensitivity=weights
            )

        squares = squared_errors(layer, second_moment, sensitivity, errors).tolist()
        dense = sum(parameter.numel() for parameter in layer.parameters())
        candidates = []
        for input_rank, row in zip(columns, squares, strict=True):
            for output_rank in range(1, outputs + 1):
                ranks: Ranks = (input_rank, None if output_rank == outputs else output_rank)
                if ranks == (None, None):
                    continue
                size = self.parameters(layer, ranks)
                if size < dense:
                    candidates.append(Candidate(ranks, size, row[output_rank]))
        return pareto(candidates)
