"""What the layers of factors share that stand for convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from sketchlayers.nn._geometry import DenseConv, Geometry, exchanged_weight
from sketchlayers.nn._layer import ConvLayer, Factory, Norm
from sketchlayers.nn.factored._layer import FactoredLayer


class FactoredConv(ConvLayer, FactoredLayer):
    """A convolution, ordinary or transposed, of any number of axes, as a chain of such.

    Weights are multiplied as those of ordinary convolutions (`ordinary_weight`): what is transposed
    is so in its parts and in the whole.
    """

    def dense_weight(self) -> Tensor:
        """``(out, in / groups, *kernel)``, ``(in, out / groups, *kernel)`` where transposed.

        Differentiable in the factors.
        """
        weight = self._product()
        return exchanged_weight(weight, self.groups) if self.transposed else weight

    def _fit(self, weight: Tensor, init: str, norm: Norm, **how: Any) -> float:
        ordinary = exchanged_weight(weight, self.groups) if self.transposed else weight
        return super()._fit(ordinary, init, norm, **how)

    def _in_one_pass(self, input: Tensor) -> Tensor | None:
        """The output by one operator; None where the parts must compute it."""
        return None

    def _product(self) -> Tensor:
        """The weight ``(out, in / groups, *kernel)``, of the parts' weights."""
        raise NotImplementedError

    def _ordinary(self, part: nn.Module) -> Tensor:
        """The weight of a part, as of an ordinary convolution."""
        weight = self._weight_of(part)
        own: Any = part
        return exchanged_weight(weight, own.groups) if own.transposed else weight

    def _by_group(self, part: nn.Module) -> Tensor:
        """The same with the group in front: ``(groups, outputs, inputs, *kernel)``."""
        return self._ordinary(part).unflatten(0, (self._groups, -1))


def convolution(geometry: Geometry, bias: bool, factory: Factory) -> DenseConv:
    """The plain convolution of this geometry."""
    return geometry.dense_class(**geometry.arguments(), bias=bias, **factory)


def sizes_along(axes: Sequence[int], wanted: Sequence[int], input: Tensor) -> list[int]:
    """The output's size that is wanted along some axes, and the input's along the others."""
    count = len(wanted)
    own = input.shape[-count:]
    return [wanted[axis] if axis in axes else own[axis] for axis in range(count)]
