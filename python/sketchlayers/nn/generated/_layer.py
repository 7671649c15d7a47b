"""Layers that form their dense weight from fewer parameters at every call, then compute with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from sketchlayers._runtime.parallel import check_whole
from sketchlayers.decompose._checks import check_finite
from sketchlayers.nn._cache import WeightCache
from sketchlayers.nn._checks import checked_rate, one_of, whole_number
from sketchlayers.nn._geometry import (
    Geometry,
    PaddingMode,
    batch_and_size,
    effective_dilation,
    geometry_repr,
    output_size,
    pad,
)
from sketchlayers.nn._groups import Group, groups_of

Init = Literal["fit", "random"]


class FormedFit(NamedTuple):
    """The parameter nearest to a weight, of the parameter's shape; and the relative error."""

    parameter: Tensor
    relative_error: float


class FormedLayer(WeightCache):
    """A layer whose weight is a linear function of one smaller parameter.

    In eval mode without gradients the dense weight is kept from call to call; see `WeightCache`.

    Attributes:
        seed: persistent buffer, decides what is random and fixed.
        rate: parameters of this layer over those of the dense one, biases included.
        fit_error: relative error of the weight this layer was made from, in the norm of the fit;
            ``None`` for a layer that was not made from another. Not part of the state dict.
    """

    bias: nn.Parameter | None
    fit_error: float | None

    # The plain layer that this one stands for.
    _dense_class: ClassVar[type[nn.Conv2d] | type[nn.Linear]]

    def _build(
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
    def _weight_shape(self) -> tuple[int, ...]:
        """Of the dense weight."""
        raise NotImplementedError

    @property
    def _patch(self) -> int:
        """``n``, the number of inputs of one output."""
        return math.prod(self._weight_shape[1:])

    @property
    def _parameter(self) -> nn.Parameter:
        """The one that the weight is made from."""
        return self.get_parameter(self._trained[0])

    @property
    def rate(self) -> float:
        """Parameters of this layer over those of the dense one, biases included."""
        kept = 0 if self.bias is None else len(self.bias)
        return (self._parameter.numel() + kept) / (math.prod(self._weight_shape) + kept)

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

    def _fill_stored(self, arguments: Mapping[str, Any]) -> None:
        """Write what is fixed but not made from the seed, into memory that was not initialised."""

    def _fit(self, groups: Sequence[Group]) -> FormedFit:
        """The parameter whose weight is nearest to that of the groups, in their norm."""
        raise NotImplementedError

    @classmethod
    def _from_dense(
        cls,
        dense: nn.Conv2d | nn.Linear,
        arguments: Mapping[str, Any],
        init: Init,
        second_moment: Tensor | None,
        sensitivity: Tensor | None,
    ) -> Self:
        """A layer in place of ``dense``; ``arguments`` are those of the constructor."""
        owner = cls.__name__
        one_of(owner, "init", init, ("fit", "random"))
        for name, tensor in (("second_moment", second_moment), ("sensitivity", sensitivity)):
            if tensor is not None and init != "fit":
                raise ValueError(
                    f"{owner}: {name} must be None unless init is 'fit' (got init={init!r})"
                )
        bias = dense.bias
        weight = dense.weight.detach()
        layer = skip_init(
            cls, **arguments, bias=bias is not None, device=weight.device, dtype=weight.dtype
        )
        layer._fill_stored(arguments)
        if init == "random":
            layer.reset_parameters()
        elif not weight.is_meta:  # without values there is nothing to fit
            check_finite(owner, f"weight of {type(dense).__name__}", weight)
            number = arguments.get("groups", 1)
            groups = list(groups_of(owner, weight, number, second_moment, sensitivity))
            fit = layer._fit(groups)
            layer._parameter.detach().copy_(fit.parameter)
            layer.fit_error = fit.relative_error
        if layer.bias is not None and bias is not None:
            layer.bias.detach().copy_(bias.detach())
            layer.bias.requires_grad_(bias.requires_grad)
        layer._parameter.requires_grad_(dense.weight.requires_grad)
        return layer.train(dense.training)

    def _fold_into(self, arguments: Mapping[str, Any]) -> Any:
        """The dense layer with this layer's weight; ``arguments`` are those of its constructor."""
        parameter, bias = self._parameter, self.bias
        check_whole(type(self).__name__, parameter)
        dense = skip_init(
            self._dense_class,
            **arguments,
            bias=bias is not None,
            device=parameter.device,
            dtype=parameter.dtype,
        )
        with torch.no_grad():
            dense.weight.copy_(self.dense_weight())
            dense.weight.requires_grad_(parameter.requires_grad)
            if bias is not None:
                dense.bias.copy_(bias)
                dense.bias.requires_grad_(bias.requires_grad)
        return dense.train(self.training)

    def _forming_multiply_adds(self) -> int:
        """Multiply-adds of forming the weight once; looking values up is none."""
        return 0


class FormedConv2d(FormedLayer):
    """A convolution with a weight that is formed; has the attributes of ``nn.Conv2d``."""

    # Never other than these; tools that count operations or export read them of any convolution.
    transposed: ClassVar[bool] = False
    output_padding: ClassVar[tuple[int, int]] = (0, 0)
    _dense_class = nn.Conv2d

    def __init__(
        self, geometry: Geometry, seed: int | None, device: torch.device | str | int | None
    ) -> None:
        super().__init__(seed, device)
        self.in_channels = geometry.in_channels
        self.out_channels = geometry.out_channels
        self.kernel_size = geometry.kernel_size
        self.stride = geometry.stride
        self.padding = geometry.padding
        self.dilation = geometry.dilation
        self.groups = geometry.groups
        self.padding_mode: PaddingMode = geometry.padding_mode

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(N, d2, H, W)`` or ``(d2, H, W)`` with the weight."""
        weight = self._kept_weight(input)
        if weight is None:
            weight = self.dense_weight()
        input, padding = pad(self, input)
        dilation = effective_dilation(self)
        return F.conv2d(input, weight, self.bias, self.stride, padding, dilation, self.groups)

    def fold(self) -> nn.Conv2d:
        """The plain convolution with this layer's weight, of the same device and type."""
        folded: nn.Conv2d = self._fold_into(Geometry.of(self).arguments())
        return folded

    def multiply_adds(self, input_shape: Sequence[int]) -> int:
        """Multiply-adds of a forward call on ``(N, d2, H, W)`` or ``(d2, H, W)``, without the bias.

        Those of the dense layer, and of forming its weight unless it is kept.

        Raises:
            RuntimeError: the shape does not fit the layer.
        """
        geometry = Geometry.of(self)
        return formed_conv_multiply_adds(
            type(self).__name__, geometry, self._forming_now(), input_shape
        )

    def _forming_now(self) -> int:
        return 0 if self._would_keep_weight() else self._forming_multiply_adds()

    @property
    def _weight_shape(self) -> tuple[int, ...]:
        return (self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    def extra_repr(self) -> str:
        """Arguments of the constructor that are not the default ones, and the rate."""
        return ", ".join([*geometry_repr(self), *self._options_repr(), f"rate={self.rate:.3g}"])


class FormedLinear(FormedLayer):
    """A fully connected layer with a weight that is formed."""

    _dense_class = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        seed: int | None,
        device: torch.device | str | int | None,
    ) -> None:
        owner = type(self).__name__
        inputs = whole_number(owner, "in_features", in_features)
        outputs = whole_number(owner, "out_features", out_features)
        super().__init__(seed, device)
        self.in_features = inputs
        self.out_features = outputs

    def forward(self, input: Tensor) -> Tensor:
        """``(*, d2)`` to ``(*, d1)``."""
        weight = self._kept_weight(input)
        return F.linear(input, self.dense_weight() if weight is None else weight, self.bias)

    def fold(self) -> nn.Linear:
        """The plain layer with this layer's weight, of the same device and type."""
        arguments = {"in_features": self.in_features, "out_features": self.out_features}
        folded: nn.Linear = self._fold_into(arguments)
        return folded

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

    @property
    def _weight_shape(self) -> tuple[int, ...]:
        return (self.out_features, self.in_features)

    def extra_repr(self) -> str:
        """Arguments of the constructor, and the rate."""
        parts = [
            f"in_features={self.in_features}",
            f"out_features={self.out_features}",
            f"bias={self.bias is not None}",
        ]
        return ", ".join([*parts, *self._options_repr(), f"rate={self.rate:.3g}"])


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
    if len(input_shape) < 1 or input_shape[-1] != in_features:
        raise RuntimeError(
            f"{owner}: input_shape must be (*, {in_features}) "
            f"(got input_shape={tuple(input_shape)})"
        )
    return math.prod(input_shape[:-1]) * in_features * out_features + forming


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
    if (number is None) == (rate is None):
        raise ValueError(
            f"{owner}: exactly one of {name} and rate must be given "
            f"(got {name}={number}, rate={rate})"
        )
    least, most = bounds
    if number is not None:
        number = whole_number(owner, name, number, least)
        if number > most:
            raise ValueError(f"{owner}: {name} must be at most {most} (got {name}={number})")
        return number
    assert rate is not None
    wanted = round((checked_rate(owner, rate) * dense - kept) / per_number)
    return min(max(least, wanted), most)
