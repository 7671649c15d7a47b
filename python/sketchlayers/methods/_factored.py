"""What the methods that replace a layer by a chain of plain layers share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from sketchlayers import decompose
from sketchlayers.methods._curve import squared_errors
from sketchlayers.methods._dense import DenseMethod
from sketchlayers.methods._rank import Candidate, Rank, one_number
from sketchlayers.nn import LowRankLinear
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn._groups import Group
from sketchlayers.nn._layer import CompressedLayer
from sketchlayers.nn.factored._layer import chain_multiply_adds
from sketchlayers.nn.factored.other_axes import TUCKER_LAYERS

MOST_INPUTS = 10_000
"""Inputs of one output of a convolution up to which its second moment is factorised in a fit."""

Parts = Iterable[Geometry | None]


class Factored(DenseMethod):
    """A linear layer becomes two of low rank, and so does a convolution but for subclasses."""

    layers: ClassVar[tuple[type[CompressedLayer], ...]] = (*TUCKER_LAYERS, LowRankLinear)

    _most_inputs: ClassVar[int | None] = None
    """Inputs of one output of a convolution above which fits would take too long; None for all."""

    def refusal(self, layer: nn.Module) -> str | None:
        """See `Method.refusal`."""
        reason = super().refusal(layer)
        if reason is not None or self._most_inputs is None:
            return reason
        geometry = Geometry.of(layer)
        if geometry.taps == 1 or geometry.patch <= self._most_inputs:
            return None
        return (
            f"{geometry.patch:,} inputs to an output, more than {self.name} fits "
            f"({self._most_inputs:,}); method 'svd' takes it"
        )

    @abstractmethod
    def _parts(self, layer: nn.Module, rank: Rank) -> Parts:
        """The plain layers that one becomes, in order, those of a linear layer as convolutions."""

    def _weights(self, layer: nn.Module, rank: Rank) -> int:
        return sum(part.weights for part in self._parts(layer, rank) if part is not None)

    def multiply_adds(self, layer: nn.Module, rank: Rank, input_shape: Sequence[int]) -> int:
        """See `Method.multiply_adds`."""
        parts = [part for part in self._parts(layer, rank) if part is not None]
        return chain_multiply_adds(type(self).__name__, layer, parts, input_shape)

    def _arguments(self, layer: nn.Module, rank: Rank) -> dict[str, Any]:
        return {"rank": one_number(type(self).__name__, rank)}

    def curve(self, layer: nn.Module, **norm: Tensor | None) -> list[Candidate]:
        """See `Method.curve`: of two factors of the weight as a matrix, exact at every rank."""

        def errors(group: Group) -> Tensor:
            return decompose.svd_errors(group.weight, **group.norm)

        squares = squared_errors(layer, norm, errors).tolist()
        return [
            Candidate(rank, self.parameters(layer, rank), squares[size])
            for size, rank in enumerate(self.ranks(layer), 1)
        ]
