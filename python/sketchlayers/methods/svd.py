"""Two factors of the weight as a matrix: the truncated SVD in the norm of the outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from sketchlayers.methods._factored import Factored, Parts
from sketchlayers.methods._method import register
from sketchlayers.methods._rank import Rank, one_number
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn.factored.tucker import tucker_parts


@register("svd")
@dataclass(frozen=True, kw_only=True)
class SVD(Factored):
    """``W = A B`` of rank r, the global optimum in closed form.

    A convolution becomes an h x w one to r channels and a 1x1 one, a `TuckerConv2d` of ranks
    ``(None, r)``; a linear layer two. Every group of a grouped convolution has the same rank.
    """

    def _parts(self, layer: nn.Module, rank: Rank) -> Parts:
        return tucker_parts(Geometry.of(layer), (None, one_number("SVD", rank)))

    def _arguments(self, layer: nn.Module, rank: Rank) -> dict[str, Any]:
        number = one_number("SVD", rank)
        return {"rank": number} if isinstance(layer, nn.Linear) else {"ranks": (None, number)}
