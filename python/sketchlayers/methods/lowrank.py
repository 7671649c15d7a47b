"""Vertical and horizontal filters (Tai, Xiao, Zhang, Wang, E, ICLR 2016, arXiv 1511.06067)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from sketchlayers.methods._factored import Factored
from sketchlayers.methods._method import Method, register
from sketchlayers.methods._rank import Candidate, Rank, one_number
from sketchlayers.nn import LowRankConv2d, LowRankLinear
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn.factored.low_rank_conv import low_rank_parts, uniform_ranks


@register("lowrank")
@dataclass(frozen=True, kw_only=True)
class LowRank(Factored):
    """``W[t, s, i, j] = sum_r V[r, s, i] H[t, r, j]``: an h x 1 convolution and a 1 x w one.

    Every group of a grouped convolution has the same rank. A linear layer becomes two.
    """

    layers: ClassVar[tuple[type[nn.Module], ...]] = (LowRankConv2d, LowRankLinear)

    def _conv_ranks(self, geometry: Geometry) -> Sequence[Rank]:
        return uniform_ranks(geometry)

    def _conv_parts(self, geometry: Geometry, rank: Rank) -> list[Geometry]:
        return list(low_rank_parts(geometry, one_number("LowRank", rank)))

    def _build_conv(self, layer: nn.Conv2d, rank: Rank, **arguments: Any) -> LowRankConv2d:
        return LowRankConv2d.from_conv(layer, one_number("LowRank", rank), **arguments)

    def _conv_curve(
        self, layer: nn.Conv2d, second_moment: Tensor | None, sensitivity: Tensor | None
    ) -> list[Candidate]:
        return Method.curve(self, layer, second_moment=second_moment, sensitivity=sensitivity)
