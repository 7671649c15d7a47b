"""What the methods of this package share that replace convolutions and fully connected layers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.utils import skip_init

from sketchlayers.methods._method import Method
from sketchlayers.methods._rank import Rank
from sketchlayers.nn import dense_arguments
from sketchlayers.nn._config import dense_class
from sketchlayers.nn._geometry import Geometry, is_depthwise
from sketchlayers.nn._layer import CompressedLayer


class DenseMethod(Method):
    """Convolutions and ``nn.Linear`` become layers of the classes in `layers` for their kind.

    A fully connected layer has the sizes of a 1x1 convolution.
    """

    layers: ClassVar[tuple[type[CompressedLayer], ...]]

    _takes_depthwise: ClassVar[bool] = False

    def refusal(self, layer: nn.Module) -> str | None:
        """See `Method.refusal`: takes the layers that one of `layers` stands for."""
        if self._replacement(layer) is None:
            return f"{type(layer).__name__} is not a layer that {self.name} takes"
        refused = is_depthwise(layer) and not self._takes_depthwise
        return "depthwise convolution" if refused else None

    @classmethod
    def _replacement(cls, layer: nn.Module) -> type[CompressedLayer] | None:
        """The class that takes the layer's place; None for a layer of another kind."""
        return next((kind for kind in cls.layers if isinstance(layer, kind._dense_class)), None)

    def ranks(self, layer: nn.Module) -> Sequence[Rank]:
        """See `Method.ranks`."""
        return Geometry.of(layer).shrinking_ranks(self._weights(layer, 1))

    def parameters(self, layer: nn.Module, rank: Rank) -> int:
        """See `Method.parameters`."""
        has_bias = getattr(layer, "bias", None) is not None
        bias = Geometry.of(layer).out_channels if has_bias else 0
        return self._weights(layer, rank) + bias

    @abstractmethod
    def _weights(self, layer: nn.Module, rank: Rank) -> int:
        """Parameters of the replacement without the bias."""

    @torch.no_grad()
    def multiply_adds(self, layer: nn.Module, rank: Rank, input_shape: Sequence[int]) -> int:
        """See `Method.multiply_adds`: of a replacement without memory."""
        shape: nn.Module = skip_init(dense_class(layer), **dense_arguments(layer), device="meta")
        built: Any = self.build(shape.train(layer.training), rank, init="random", seed=0)
        return int(built.multiply_adds(input_shape))

    def build(
        self, layer: nn.Module, rank: Rank, *, start: nn.Module | None = None, **how: Any
    ) -> nn.Module:
        """See `Method.build`."""
        made: Any = self._replacement(layer)
        if made is None:
            kinds = [f"nn.{kind._dense_class.__name__}" for kind in self.layers]
            raise TypeError(
                f"{type(self).__name__}: the layer must be {', '.join(kinds[:-1])} or {kinds[-1]} "
                f"(got {type(layer).__name__})"
            )
        convert = made.from_linear if isinstance(layer, nn.Linear) else made.from_conv
        arguments = self._arguments(layer, rank)
        if start is not None:
            arguments = self._from_start(arguments) | {"start": start}
        built: nn.Module = convert(layer, **arguments, **how)
        return built

    @abstractmethod
    def _arguments(self, layer: nn.Module, rank: Rank) -> dict[str, Any]:
        """Arguments of ``from_conv`` or ``from_linear``: the size, and this method's options."""

    def _from_start(self, how: dict[str, Any]) -> dict[str, Any]:
        """These arguments for a fit that goes on from another one."""
        return how
