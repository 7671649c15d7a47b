"""Two factors of the weight as a matrix: the truncated SVD in the norm of the outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sketchlayers.methods._factored import Factored
from sketchlayers.methods._method import register
from sketchlayers.methods._rank import Candidate, Rank, one_number
from sketchlayers.nn import TuckerConv2d
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn.factored.low_rank import uniform_ranks
from sketchlayers.nn.factored.tucker import checked_ranks, tucker_parts


@register("svd")
@dataclass(frozen=True, kw_only=True)
class SVD(Factored):
    """``W = A B`` of rank r, the global optimum in closed form.

    A convolution becomes an h x w one to r channels and a 1x1 one, a `TuckerConv2d` of ranks
    ``(None, r)``; a linear layer two. Every group of a grouped convolution has the same rank.
    """

    def _conv_ranks(self, geometry: Geometry) -> Sequence[Rank]:
        return uniform_ranks(geometry.patch, geometry.group_outputs)

    def _conv_parts(self, geometry: Geometry, rank: Rank) -> list[Geometry]:
        ranks = checked_ranks("SVD", geometry, (None, one_number("SVD", rank)))
        return [part for part in tucker_parts(geometry, ranks) if part is not None]

    def _build_conv(self, layer: nn.Conv2d, rank: Rank, **arguments: Any) -> TuckerConv2d:
        return TuckerConv2d.from_conv(layer, (None, one_number("SVD", rank)), **arguments)

    def _conv_curve(
        self, layer: nn.Conv2d, second_moment: Tensor | None, sensitivity: Tensor | None
    ) -> list[Candidate]:
        return self._low_rank_curve(layer, second_moment, sensitivity)
