"""CP in the norm of the outputs (Kalle et al., NeurIPS 2025, arXiv 2511.04494)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from sketchlayers.methods._curve import fitted_curve
from sketchlayers.methods._factored import Factored
from sketchlayers.methods._method import register
from sketchlayers.methods._rank import Candidate, Rank, one_number
from sketchlayers.nn import CPConv2d, LowRankLinear
from sketchlayers.nn._checks import number_above, whole_number
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn.cp import cp_parts, uniform_ranks

_CURVE_SWEEPS = 10


@register("cp")
@dataclass(frozen=True, kw_only=True)
class CP(Factored):
    """``W[t, s, i, j] = sum_r A[t, r] B[s, r] C[i, r] D[j, r]``: 1x1, h x 1, 1 x w, 1x1.

    A 1x1 convolution becomes two, and a linear layer two, with the global optimum of that rank.
    Every group of a grouped convolution has the same rank.

    Attributes:
        starts: of a fit, of which the best is kept.
        max_sweeps: over the factors, of each start.
        tolerance: change of the relative error at which a fit ends.
    """

    layers: ClassVar[tuple[type[nn.Module], ...]] = (CPConv2d, LowRankLinear)

    starts: int = 3
    max_sweeps: int = 200
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("starts", "max_sweeps"):
            object.__setattr__(self, name, whole_number("CP", name, getattr(self, name)))
        object.__setattr__(self, "tolerance", number_above("CP", "tolerance", self.tolerance, 0))

    def _conv_ranks(self, geometry: Geometry) -> Sequence[Rank]:
        return uniform_ranks(geometry)

    def _conv_parts(self, geometry: Geometry, rank: Rank) -> list[Geometry]:
        parts = cp_parts(geometry, one_number("CP", rank))
        return [part for part in parts if part is not None]

    def _build_conv(self, layer: nn.Conv2d, rank: Rank, **arguments: Any) -> CPConv2d:
        return CPConv2d.from_conv(
            layer,
            one_number("CP", rank),
            starts=self.starts,
            max_sweeps=self.max_sweeps,
            tolerance=self.tolerance,
            **arguments,
        )

    def _conv_curve(
        self, layer: nn.Conv2d, second_moment: Tensor | None, sensitivity: Tensor | None
    ) -> list[Candidate]:
        """A few ranks, roughly fitted, and the others interpolated."""
        if layer.kernel_size == (1, 1):
            return self._low_rank_curve(layer, second_moment, sensitivity)
        rough = dataclasses.replace(self, starts=1, max_sweeps=min(_CURVE_SWEEPS, self.max_sweeps))
        return fitted_curve(rough, layer, second_moment, sensitivity)
