"""Layers that form their dense weight from fewer parameters at every call, then compute with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sketchlayers._runtime.parallel import check_whole
from sketchlayers.nn._cache import WeightCache
from sketchlayers.nn._checks import check_one_given, checked_rate, whole_number
from sketchlayers.nn._geometry import Geometry, batch_and_size, output_size
from sketchlayers.nn._groups import Group, groups_of
from sketchlayers.nn._layer import CompressedLayer, Conv2dLayer, LinearLayer, linear_rows

Init = Literal["fit", "random"]


class FormedFit(NamedTuple):
    """The parameter nearest to a weight, of the parameter's shape; and the relative error."""

    parameter: Tensor
    relative_error: float


class FormedLayer(WeightCache, CompressedLayer):
    """A layer whose weight is a linear function of one smaller parameter.

    In eval mode without gradients the dense weight is kept from call to call; see `WeightCache`.

    Attributes:
        seed: persistent buffer, decides what is random and fixed.
    """

    bias: nn.Parameter | None
    fit_error: float | None

    def _finish(
        self,
        parameter: Sequence[int],
        bias: bool,
        device: torch.device | str | int | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Finish the construction, once the sizes are known."""
        (name,) = self._trained
        made = torch.empty(tuple(parameter), device=device, dtype=dtype)
        self.register_parameter(name, nn.Parameter(made))
        outputs = self._weight_shape[0]
        made_bias = nn.Parameter(torch.empty(outputs, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", made_bias)
        self.reset_parameters()

    @property
    def _parameter(self) -> nn.Parameter:
        """The one that the weight is made from."""
        return self.get_parameter(self._trained[0])

    @property
    def weight(self) -> Tensor:
        """The dense weight, as `dense_weight` gives it. Read-only; train the parameters."""
        check_whole(type(self).__name__, self._parameter)
        return self.dense_weight()

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
        with torch.no_grad():
            self._parameter.normal_(0, self._initial_deviation())
            if self.bias is not None:
                bound = 1 / math.sqrt(self._patch)
                nn.init.uniform_(self.bias, -bound, bound)

    def _weight_parameters(self) -> list[nn.Parameter]:
        return [self._parameter]

    def _nearest(self, groups: Sequence[Group]) -> FormedFit:
        """The parameter whose weight is nearest to that of the groups, in their norm."""
        raise NotImplementedError

    def _fit(
        self,
        weight: Tensor,
        init: str,
        second_moment: Tensor | None,
        sensitivity: Tensor | None,
        **how: Any,
    ) -> float:
        owner = type(self).__name__
        groups = groups_of(owner, weight, self._groups, second_moment, sensitivity)
        fit = self._nearest(list(groups))
        self._parameter.detach().copy_(fit.parameter)
        return fit.relative_error

    def _forming_multiply_adds(self) -> int:
        """Multiply-adds of forming the weight once; looking values up is none."""
        return 0


class FormedConv2d(Conv2dLayer, FormedLayer):
    """A convolution with a weight that is formed."""

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(N, d2, H, W)`` or ``(d2, H, W)`` with the weight."""
        weight = self._kept_weight(input)
        return self._convolved(input, self.dense_weight() if weight is None else weight)

    def multiply_adds(self, input_shape: Sequence[int]) -> int:
        """Multiply-adds of a forward call on ``(N, d2, H, W)`` or ``(d2, H, W)``, without the bias.

        Those of the dense layer, and of forming its weight unless it is kept.

        Raises:
            RuntimeError: the shape does not fit the layer.
        """
        geometry = Geometry.of(self)
        forming = 0 if self._would_keep_weight() else self._forming_multiply_adds()
        return formed_conv_multiply_adds(type(self).__name__, geometry, forming, input_shape)


class FormedLinear(LinearLayer, FormedLayer):
    """A fully connected layer with a weight that is formed."""

    def forward(self, input: Tensor) -> Tensor:
        """``(*, d2)`` to ``(*, d1)``."""
        weight = self._kept_weight(input)
        return F.linear(input, self.dense_weight() if weight is None else weight, self.bias)

    def multiply_adds(self, input_shape: Sequence[int]) -> int:
        """Multiply-adds of a forward call on ``(*, d2)``, without the bias.

        Those of the dense layer, and of forming its weight unless it is kept.

        Raises:
            RuntimeError: the shape does not fit the layer.
        """
        forming = 0 if self._would_keep_weight() else self._forming_multiply_adds()
        return formed_linear_multiply_adds(
            type(self).__name__, self.in_features, self.out_features, forming, input_shape
        )


def formed_conv_multiply_adds(
    owner: str, geometry: Geometry, forming: int, input_shape: Sequence[int]
) -> int:
    """Multiply-adds of a convolution and of forming its weight.

    Raises:
        RuntimeError: the shape does not fit the convolution.
    """
    batch, size = batch_and_size(owner, geometry, input_shape)
    return batch * math.prod(output_size(geometry, size)) * geometry.weights + forming


def formed_linear_multiply_adds(
    owner: str, in_features: int, out_features: int, forming: int, input_shape: Sequence[int]
) -> int:
    """Multiply-adds of a fully connected layer and of forming its weight.

    Raises:
        RuntimeError: the shape does not fit the layer.
    """
    rows = linear_rows(owner, in_features, input_shape)
    return rows * in_features * out_features + forming


def number_or_rate(
    owner: str,
    name: str,
    number: int | None,
    rate: float | None,
    bounds: tuple[int, int],
    per_number: int,
    kept: int,
    dense: int,
) -> int:
    """The number of parameters' units that was given, checked, or that nearest to the rate.

    Args:
        owner: name of the caller, for messages.
        name: of the number.
        number: None if a rate is given.
        rate: None if the number is given.
        bounds: the smallest and the largest number.
        per_number: parameters for each.
        kept: further parameters.
        dense: parameters of the dense layer.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of its range, both or none of them.
    """
    check_one_given(owner, name, number, rate)
    least, most = bounds
    if number is not None:
        number = whole_number(owner, name, number, least)
        if number > most:
            raise ValueError(f"{owner}: {name} must be at most {most} (got {name}={number})")
        return number
    assert rate is not None
    wanted = round((checked_rate(owner, rate) * dense - kept) / per_number)
    return min(max(least, wanted), most)
