"""Layers that form their dense weight from fewer parameters at every call, then compute with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from sketchlayers.nn._cache import WeightCache
from sketchlayers.nn._geometry import Geometry, batch_and_size, output_size
from sketchlayers.nn._groups import Group, groups_of
from sketchlayers.nn._layer import CompressedLayer, Factory, Norm, draw_normal


class FormedLayer(WeightCache, CompressedLayer):
    """A layer whose weight is a linear function of one smaller parameter.

    In eval mode without gradients the dense weight is kept from call to call; see `WeightCache`.

    Attributes:
        seed: decides what is random and fixed. The state dict has it as ``seed_bits``.
    """

    bias: nn.Parameter | None
    fit_error: float | None

    def _finish(self, parameter: Sequence[int], bias: bool, factory: Factory) -> None:
        """Finish the construction, once the sizes are known."""
        (name,) = self._trained
        made = torch.empty(tuple(parameter), **factory)
        self.register_parameter(name, nn.Parameter(made))
        self._add_bias(bias, factory)
        self.reset_parameters()

    @property
    def _parameter(self) -> nn.Parameter:
        """The one that the weight is made from; computed if it is pruned or parametrised."""
        parameter: nn.Parameter = getattr(self, self._trained[0])
        return parameter

    def _initial_deviation(self) -> float:
        """Of the parameter's entries, so that the weight has the Kaiming variance ``2 / n``."""
        return math.sqrt(2 / self._patch)

    def reset_parameters(self) -> None:
        """Draw a new parameter and bias from PyTorch's generator; what is fixed stays the seed's.

        The parameter is normal, with the deviation that gives the weight the Kaiming variance
        ``2 / n``. The bias is drawn as ``nn.Conv2d`` draws it.
        """
        self.reset_signs()
        self.fit_error = None
        if self._parameter.is_meta:
            return
        draw_normal(self._parameter, self._initial_deviation())
        self._draw_bias()

    def _weight_parameters(self) -> list[nn.Parameter]:
        return [self._parameter]

    def _nearest(self, groups: Sequence[Group]) -> tuple[Tensor, float]:
        """The parameter whose weight is nearest to the groups' in their norm, and the error."""
        raise NotImplementedError

    def _fit(self, weight: Tensor, init: str, norm: Norm, **how: Any) -> float:
        owner = type(self).__name__
        groups = groups_of(owner, weight, self._groups, *norm)
        parameter, relative_error = self._nearest(list(groups))
        self._parameter.detach().copy_(parameter)
        return relative_error

    def _forming_multiply_adds(self) -> int:
        """Multiply-adds of forming the weight once; looking values up is none."""
        return 0

    def forward(self, input: Tensor) -> Tensor:
        """What the dense layer with this weight makes of an input."""
        weight = None if is_compiling() else self._current_weight(input)
        return self._applied(input, self.dense_weight() if weight is None else weight)

    def multiply_adds(self, input_shape: Sequence[int]) -> int:
        """Multiply-adds of a forward call on an input of this shape, without the bias.

        Those of the dense layer, and of forming its weight unless it is kept.

        Raises:
            RuntimeError: the shape does not fit the layer.
        """
        batch, size = batch_and_size(type(self).__name__, self, input_shape)
        positions = batch * math.prod(output_size(Geometry.of(self), size))
        forming = 0 if self._would_keep_weight() else self._forming_multiply_adds()
        return positions * math.prod(self._weight_shape) + forming
