"""Two factors of the weight as a matrix: the truncated SVD in the norm of the outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sketchlayers.methods._factored import Factored, Parts
from sketchlayers.methods._method import register
from sketchlayers.methods._rank import Candidate, Rank, one_number
from sketchlayers.nn import LowRankEmbedding
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn.factored.tucker import tucker_parts


@register("svd")
@dataclass(frozen=True, kw_only=True)
class SVD(Factored):
    """``W = A B`` of rank r, the global optimum in closed form.

    A convolution becomes an h x w one to r channels and a 1x1 one, a `TuckerConv2d` of ranks
    ``(None, r)``; a linear layer two. Every group of a grouped convolution has the same rank. An
    ``nn.Embedding`` becomes a smaller one and a linear layer; all of its vectors count alike.
    """

    layers: ClassVar[tuple[Any, ...]] = (*Factored.layers, LowRankEmbedding)

    def _parts(self, layer: nn.Module, rank: Rank) -> Parts:
        return tucker_parts(Geometry.of(layer), (None, one_number("SVD", rank)))

    def _arguments(self, layer: nn.Module, rank: Rank) -> dict[str, Any]:
        number = one_number("SVD", rank)
        return {"rank": number} if isinstance(layer, nn.Linear) else {"ranks": (None, number)}

    def multiply_adds(self, layer: nn.Module, rank: Rank, input_shape: Sequence[int]) -> int:
        """See `Method.multiply_adds`."""
        if isinstance(layer, nn.Embedding):
            return math.prod(input_shape) * one_number("SVD", rank) * layer.embedding_dim
        return super().multiply_adds(layer, rank, input_shape)

    def build(self, layer: nn.Module, rank: Rank, **how: Any) -> nn.Module:
        """See `Method.build`."""
        if not isinstance(layer, nn.Embedding):
            return super().build(layer, rank, **how)
        number = one_number("SVD", rank)
        given = {name: how[name] for name in ("init", "seed")}
        return LowRankEmbedding.from_embedding(layer, rank=number, **given)

    @torch.no_grad()
    def curve(self, layer: nn.Module, **norm: Tensor | None) -> list[Candidate]:
        """See `Method.curve`."""
        if not isinstance(layer, nn.Embedding):
            return super().curve(layer, **norm)
        table = layer.weight.double()
        squares = torch.linalg.eigvalsh(table.T @ table).clamp(min=0).flip(0)
        left = (1 - squares.cumsum(0) / squares.sum()).clamp(min=0).tolist()
        return [
            Candidate(rank, self.parameters(layer, rank), left[size])
            for size, rank in enumerate(self.ranks(layer))
        ]
