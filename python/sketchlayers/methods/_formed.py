"""What the methods share whose layers form their dense weight at every call."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from sketchlayers.methods._method import Init, Method
from sketchlayers.methods._rank import Rank, one_number
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn.generated._layer import (
    FormedLayer,
    formed_conv_multiply_adds,
    formed_linear_multiply_adds,
)


class Formed(Method):
    """``nn.Conv2d`` and ``nn.Linear`` become layers that compute what they do, less freely."""

    def refusal(self, layer: nn.Module) -> str | None:
        """See `Method.refusal`: takes ``nn.Conv2d`` and ``nn.Linear``, depthwise ones too."""
        if isinstance(layer, nn.Conv2d | nn.Linear):
            return None
        return f"{type(layer).__name__} is not a layer that {self.name} takes"

    def ranks(self, layer: nn.Module) -> Sequence[Rank]:
        """See `Method.ranks`."""
        geometry = self._geometry(layer)
        return range(
            self._least_rank(geometry),
            (geometry.weights - 1) // self._parameters_per_rank(geometry) + 1,
        )

    def parameters(self, layer: nn.Module, rank: Rank) -> int:
        """See `Method.parameters`."""
        geometry = self._geometry(layer)
        kept = 0 if layer.bias is None else geometry.out_channels
        return one_number(type(self).__name__, rank) * self._parameters_per_rank(geometry) + kept

    def multiply_adds(self, layer: nn.Module, rank: Rank, input_shape: Sequence[int]) -> int:
        """See `Method.multiply_adds`: in eval mode the weight is kept from call to call."""
        owner, geometry = type(self).__name__, self._geometry(layer)
        number = one_number(owner, rank)
        forming = self._forming_multiply_adds(layer, geometry, number) if layer.training else 0
        if isinstance(layer, nn.Linear):
            sizes = layer.in_features, layer.out_features
            return formed_linear_multiply_adds(owner, *sizes, forming, input_shape)
        return formed_conv_multiply_adds(owner, geometry, forming, input_shape)

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
        self._geometry(layer)
        arguments: dict[str, Any] = {
            "init": init,
            "seed": seed,
            "second_moment": second_moment,
            "sensitivity": sensitivity,
        }
        return self._build(layer, one_number(type(self).__name__, rank), **arguments)

    def _geometry(self, layer: nn.Module) -> Geometry:
        """That of a convolution; a fully connected layer has the kernel size (1, 1).

        Raises:
            TypeError: another layer.
        """
        if isinstance(layer, nn.Conv2d):
            return Geometry.of(layer)
        if isinstance(layer, nn.Linear):
            return Geometry(layer.in_features, layer.out_features)
        raise TypeError(
            f"{type(self).__name__}: the layer must be nn.Conv2d or nn.Linear "
            f"(got {type(layer).__name__})"
        )

    def _least_rank(self, geometry: Geometry) -> int:
        return 1

    def _parameters_per_rank(self, geometry: Geometry) -> int:
        return 1

    def _forming_multiply_adds(self, layer: nn.Module, geometry: Geometry, rank: int) -> int:
        return 0

    @abstractmethod
    def _build(self, layer: nn.Module, rank: int, **arguments: Any) -> FormedLayer:
        """`Method.build`; the arguments are those of ``from_conv`` and ``from_linear``."""
