"""Vertical and horizontal filters (Tai, Xiao, Zhang, Wang, E, ICLR 2016, arXiv 1511.06067)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from sketchlayers.methods._factored import Factored, Parts
from sketchlayers.methods._method import Method, register
from sketchlayers.methods._rank import Candidate, Rank, one_number
from sketchlayers.nn import LowRankConv2d, LowRankLinear
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn._layer import CompressedLayer
from sketchlayers.nn.factored.low_rank_conv import low_rank_parts


@register("lowrank")
@dataclass(frozen=True, kw_only=True)
class LowRank(Factored):
    """``W[t, s, i, j] = sum_r V[r, s, i] H[t, r, j]``: an h x 1 convolution and a 1 x w one.

    Every group of a grouped convolution has the same rank. A linear layer becomes two.
    """

    layers: ClassVar[tuple[type[CompressedLayer], ...]] = (LowRankConv2d, LowRankLinear)

    def _parts(self, layer: nn.Module, rank: Rank) -> Parts:
        return low_rank_parts(Geometry.of(layer), one_number("LowRank", rank))

    def curve(self, layer: nn.Module, **norm: Tensor | None) -> list[Candidate]:
        """See `Method.curve`."""
        is_linear = isinstance(layer, nn.Linear)
        return super().curve(layer, **norm) if is_linear else Method.curve(self, layer, **norm)
