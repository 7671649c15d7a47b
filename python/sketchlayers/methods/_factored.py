"""What the methods that replace a layer by a chain of plain layers share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from sketchlayers import decompose
from sketchlayers.methods._curve import squared_errors
from sketchlayers.methods._method import Init, Method
from sketchlayers.methods._rank import Candidate, Rank, one_number
from sketchlayers.nn import LowRankLinear, TuckerConv2d
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn._groups import Group
from sketchlayers.nn._layer import Conv2dLayer
from sketchlayers.nn.factored._layer import chain_multiply_adds
from sketchlayers.nn.factored.low_rank import low_rank_multiply_adds, uniform_ranks


class Factored(Method):
    """A linear layer becomes two of low rank; a subclass says what a convolution becomes."""

    layers: ClassVar[tuple[type[nn.Module], ...]] = (TuckerConv2d, LowRankLinear)

    def refusal(self, layer: nn.Module) -> str | None:
        """See `Method.refusal`: takes ``nn.Conv2d`` and ``nn.Linear``, but no depthwise layers."""
        if isinstance(layer, nn.Linear):
            return None
        if not isinstance(layer, nn.Conv2d):
            return f"{type(layer).__name__} is not a layer that {self.name} takes"
        if layer.groups > 1 and layer.groups == layer.in_channels:
            return "depthwise convolution"
        return None

    def ranks(self, layer: nn.Module) -> Sequence[Rank]:
        """See `Method.ranks`."""
        if isinstance(layer, nn.Linear):
            return uniform_ranks(layer.in_features, layer.out_features)
        return self._conv_ranks(Geometry.of(layer))

    def parameters(self, layer: nn.Module, rank: Rank) -> int:
        """See `Method.parameters`."""
        if isinstance(layer, nn.Linear):
            count = one_number(type(self).__name__, rank) * (layer.in_features + layer.out_features)
            return count + (0 if layer.bias is None else layer.out_features)
        geometry = Geometry.of(layer)
        bias = 0 if layer.bias is None else geometry.out_channels
        return sum(part.weights for part in self._conv_parts(geometry, rank)) + bias

    def multiply_adds(self, layer: nn.Module, rank: Rank, input_shape: Sequence[int]) -> int:
        """See `Method.multiply_adds`."""
        owner = type(self).__name__
        if isinstance(layer, nn.Linear):
            return low_rank_multiply_adds(
                owner,
                layer.in_features,
                layer.out_features,
                one_number(type(self).__name__, rank),
                input_shape,
            )
        geometry = Geometry.of(layer)
        return chain_multiply_adds(owner, geometry, self._conv_parts(geometry, rank), input_shape)

    def build(
        self,
        layer: nn.Module,
        rank: Rank,
        *,
        init: Init,
        seed: int,
        second_moment: Tensor | None = None,
        sensitivity: Tensor | None = None,
    ) -> nn.Module:
        """See `Method.build`."""
        arguments: dict[str, Any] = {
            "init": init,
            "seed": seed,
            "second_moment": second_moment,
            "sensitivity": sensitivity,
        }
        if isinstance(layer, nn.Linear):
            size = one_number(type(self).__name__, rank)
            return LowRankLinear.from_linear(layer, size, **arguments)
        if isinstance(layer, nn.Conv2d):
            return self._build_conv(layer, rank, **arguments)
        raise TypeError(
            f"{type(self).__name__}: the layer must be nn.Conv2d or nn.Linear "
            f"(got {type(layer).__name__})"
        )

    def curve(
        self,
        layer: nn.Module,
        *,
        second_moment: Tensor | None = None,
        sensitivity: Tensor | None = None,
    ) -> list[Candidate]:
        """See `Method.curve`."""
        if isinstance(layer, nn.Conv2d):
            return self._conv_curve(layer, second_moment, sensitivity)
        return self._low_rank_curve(layer, second_moment, sensitivity)

    @abstractmethod
    def _conv_ranks(self, geometry: Geometry) -> Sequence[Rank]:
        """`Method.ranks` of a convolution."""

    @abstractmethod
    def _conv_parts(self, geometry: Geometry, rank: Rank) -> list[Geometry]:
        """The plain convolutions that one becomes, in order."""

    @abstractmethod
    def _build_conv(self, layer: nn.Conv2d, rank: Rank, **arguments: Any) -> Conv2dLayer:
        """`Method.build` of a convolution; the arguments are those of ``from_conv``."""

    @abstractmethod
    def _conv_curve(
        self, layer: nn.Conv2d, second_moment: Tensor | None, sensitivity: Tensor | None
    ) -> list[Candidate]:
        """`Method.curve` of a convolution."""

    def _low_rank_curve(
        self,
        layer: nn.Module,
        second_moment: Tensor | None,
        sensitivity: Tensor | None,
        as_rank: Callable[[int], Rank] = int,
    ) -> list[Candidate]:
        """Of two factors of the weight as a matrix ``(T, n)``: exact at every rank."""

        def errors(group: Group) -> Tensor:
            weight, moment, weights = group
            return decompose.svd_errors(weight, second_moment=moment, sensitivity=weights)

        squares = squared_errors(layer, second_moment, sensitivity, errors).tolist()
        sizes = range(1, len(self.ranks(layer)) + 1)
        return [
            Candidate(as_rank(size), self.parameters(layer, as_rank(size)), squares[size])
            for size in sizes
        ]
