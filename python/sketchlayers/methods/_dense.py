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
from sketchlayers.nn._geometry import Geometry


class DenseMethod(Method):
    """``nn.Conv2d`` and ``nn.Linear`` become layers of the two classes in `layers`, in this order.

    A fully connected layer has the sizes of a 1x1 convolution.
    """

    _takes_depthwise: ClassVar[bool] = False

    def refusal(self, layer: nn.Module) -> str | None:
        """See `Method.refusal`: takes ``nn.Conv2d`` and ``nn.Linear``."""
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            return f"{type(layer).__name__} is not a layer that {self.name} takes"
        is_depthwise = isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels
        return "depthwise convolution" if is_depthwise and not self._takes_depthwise else None

    def ranks(self, layer: nn.Module) -> Sequence[Rank]:
        """See `Method.ranks`."""
        return Geometry.of(layer).shrinking_ranks(self._weights(layer, 1))

    def parameters(self, layer: nn.Module, rank: Rank) -> int:
        """See `Method.parameters`."""
        bias = 0 if layer.bias is None else Geometry.of(layer).out_channels
        return self._weights(layer, rank) + bias

    @abstractmethod
    def _weights(self, layer: nn.Module, rank: Rank) -> int:
        """Parameters of the replacement without the bias."""

    @torch.no_grad()
    def multiply_adds(self, layer: nn.Module, rank: Rank, input_shape: Sequence[int]) -> int:
        """See `Method.multiply_adds`: of a replacement without memory."""
        kind: type[nn.Module] = nn.Linear if isinstance(layer, nn.Linear) else nn.Conv2d
        shape: nn.Module = skip_init(kind, **dense_arguments(layer), device="meta")
        built: Any = self.build(shape.train(layer.training), rank, init="random", seed=0)
        return int(built.multiply_adds(input_shape))

    def build(
        self, layer: nn.Module, rank: Rank, *, start: nn.Module | None = None, **how: Any
    ) -> nn.Module:
        """See `Method.build`."""
        convolution, linear = self.layers
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            raise TypeError(
                f"{type(self).__name__}: the layer must be nn.Conv2d or nn.Linear "
                f"(got {type(layer).__name__})"
            )
        made: Any = linear if isinstance(layer, nn.Linear) else convolution
        convert = made.from_linear if isinstance(layer, nn.Linear) else made.from_conv
        arguments = self._arguments(layer, rank)
        if start is not None:
            arguments = self._from_start(arguments) | {"start": start}
        built: nn.Module = convert(layer, **arguments, **how)
        return built

    @abstractmethod
    def _arguments(self, layer: nn.Conv2d | nn.Linear, rank: Rank) -> dict[str, Any]:
        """Arguments of ``from_conv`` or ``from_linear``: the size, and this method's options."""

    def _from_start(self, how: dict[str, Any]) -> dict[str, Any]:
        """These arguments for a fit that goes on from another one."""
        return how
