"""The arguments of ``nn.Conv2d`` without bias, device and dtype, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from sketchlayers.nn._checks import one_of, pair, whole_number

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

# What PyTorch's convolutions can hold, as in csrc/ops/sk_conv2d.h: channels, height and width with
# padding; and stride, padding and dilation, with which PyTorch multiplies in 32 bits.
_LARGEST_SIZE = 2**31 - 1
_LARGEST_STEP = 2**15

Sides = tuple[int, int]


class Geometry(NamedTuple):
    """Arguments of ``nn.Conv2d`` in its order, without the bias; pairs are whole."""

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: str | tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    padding_mode: PaddingMode = "zeros"

    @classmethod
    def of(cls, layer: Any) -> Self:
        """Those of a layer, compressed or not; a fully connected one is a 1x1 convolution."""
        if hasattr(layer, "in_features"):
            return cls(layer.in_features, layer.out_features)
        return cls(*(getattr(layer, name) for name in cls._fields))

    @classmethod
    def checked(
        cls,
        owner: str,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int],
        padding: int | Sequence[int] | str,
        dilation: int | Sequence[int],
        groups: int,
        padding_mode: PaddingMode,
    ) -> Self:
        """From the arguments of a constructor.

        Raises:
            TypeError: an argument of another type.
            ValueError: an argument out of its range.
        """
        in_channels = whole_number(owner, "in_channels", in_channels, most=_LARGEST_SIZE)
        out_channels = whole_number(owner, "out_channels", out_channels, most=_LARGEST_SIZE)
        groups = whole_number(owner, "groups", groups)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(
                    f"{owner}: {name} must be divisible by groups "
                    f"(got {name}={channels}, groups={groups})"
                )
        kernel = pair(owner, "kernel_size", kernel_size, 1, _LARGEST_SIZE)
        strides = pair(owner, "stride", stride, 1, _LARGEST_STEP)
        dilations = pair(owner, "dilation", dilation, 1, _LARGEST_STEP)
        paddings: str | tuple[int, int]
        if isinstance(padding, str):
            one_of(owner, "padding", padding, ("same", "valid"))
            if padding == "same" and strides != (1, 1):
                raise ValueError(
                    f"{owner}: stride must be 1 with padding='same' (got stride={strides})"
                )
            paddings = padding
        else:
            paddings = pair(owner, "padding", padding, 0, _LARGEST_STEP)
        one_of(owner, "padding_mode", padding_mode, _PADDING_MODES)
        geometry = cls(
            in_channels, out_channels, kernel, strides, paddings, dilations, groups, padding_mode
        )
        for _, after in padding_amounts(geometry):
            whole_number(owner, "padding='same' of a side", after, 0, _LARGEST_STEP)
        return geometry

    @property
    def group_inputs(self) -> int:
        """Input channels of one group."""
        return self.in_channels // self.groups

    @property
    def group_outputs(self) -> int:
        """Output channels of one group."""
        return self.out_channels // self.groups

    @property
    def taps(self) -> int:
        """Positions of the kernel."""
        return math.prod(self.kernel_size)

    @property
    def patch(self) -> int:
        """``n``, the number of inputs of one output."""
        return self.group_inputs * self.taps

    @property
    def weights(self) -> int:
        """Entries of the weight."""
        return self.out_channels * self.patch

    def one_way(self, axis: int) -> Self:
        """The vertical (0) or horizontal (1) half of a separable convolution."""

        def half(values: tuple[int, int], other: int) -> tuple[int, int]:
            return (values[0], other) if axis == 0 else (other, values[1])

        return self._replace(
            kernel_size=half(self.kernel_size, 1),
            stride=half(self.stride, 1),
            dilation=half(self.dilation, 1),
            padding=self.padding if isinstance(self.padding, str) else half(self.padding, 0),
        )

    def shrinking_ranks(self, weights_per_rank: int) -> range:
        """The whole ranks at which a replacement, with so many weights for each, is smaller."""
        if not self.weights:
            return range(0)
        return range(1, (self.weights - 1) // weights_per_rank + 1)


def padding_amounts(conv: Any) -> list[Sides]:
    """Padding before and after each axis."""
    if conv.padding == "valid":
        return [(0, 0)] * len(conv.kernel_size)
    if isinstance(conv.padding, str):
        taps = zip(conv.dilation, conv.kernel_size, strict=True)
        return [_halves(dilation * (kernel - 1)) for dilation, kernel in taps]
    return [(amount, amount) for amount in conv.padding]


def effective_dilation(conv: Any) -> tuple[int, ...]:
    """The dilation for PyTorch's convolutions: 1 along an axis with one tap.

    Any other changes nothing there, and crashes some of them (PyTorch 2.14 in float16 on CPUs).
    """
    taps = zip(conv.dilation, conv.kernel_size, strict=True)
    return tuple(dilation if kernel > 1 else 1 for dilation, kernel in taps)


def pad(conv: Any, input: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Pads as an operator cannot; what is left to it are zeros, as many on either side."""
    sides = padding_amounts(conv)
    if conv.padding_mode != "zeros":
        amounts = [amount for both in reversed(sides) for amount in both]
        return F.pad(input, amounts, mode=conv.padding_mode), (0,) * len(sides)
    more = [after - before for before, after in sides]
    if any(more):  # "same" with an even kernel
        input = F.pad(input, [amount for rest in reversed(more) for amount in (0, rest)])
    return input, tuple(before for before, _ in sides)


def output_size(conv: Any, size: Sequence[int]) -> list[int]:
    """Sizes of the output's axes for those of the input."""
    if getattr(conv, "transposed", False):
        return [
            (length - 1) * stride - 2 * padding + dilation * (kernel - 1) + more + 1
            for length, stride, padding, dilation, kernel, more in zip(
                size,
                conv.stride,
                conv.padding,
                conv.dilation,
                conv.kernel_size,
                conv.output_padding,
                strict=True,
            )
        ]
    return [
        (length + before + after - dilation * (kernel - 1) - 1) // stride + 1
        for length, (before, after), kernel, stride, dilation in zip(
            size, padding_amounts(conv), conv.kernel_size, conv.stride, conv.dilation, strict=True
        )
    ]


def batch_and_size(
    owner: str, layer: Any, input_shape: Sequence[int]
) -> tuple[int, tuple[int, int]]:
    """Number of images, and their height and width, for an input with or without a batch axis.

    The rows of a fully connected layer's input are images of one pixel.

    Raises:
        RuntimeError: the shape does not fit the layer.
    """
    if hasattr(layer, "in_features"):
        if len(input_shape) < 1 or input_shape[-1] != layer.in_features:
            raise RuntimeError(
                f"{owner}: input_shape must be (*, {layer.in_features}) "
                f"(got input_shape={tuple(input_shape)})"
            )
        return math.prod(input_shape[:-1]), (1, 1)
    shape = (1, *input_shape) if len(input_shape) == 3 else tuple(input_shape)
    fits = len(shape) == 4 and shape[1] == layer.in_channels and min(shape[2:]) >= 1
    if min(output_size(layer, shape[2:]) if fits else [0]) < 1:
        raise RuntimeError(
            f"{owner}: input_shape must be (N, {layer.in_channels}, H, W) or "
            f"({layer.in_channels}, H, W), at least as large as the kernel "
            f"(got input_shape={tuple(input_shape)})"
        )
    for length, sides in zip(shape[2:], padding_amounts(layer), strict=True):
        if length + sum(sides) > _LARGEST_SIZE:
            raise RuntimeError(
                f"{owner}: height and width of input_shape must be below 2^31 with padding "
                f"(got input_shape={tuple(input_shape)})"
            )
    return shape[0], (shape[2], shape[3])


def ordinary_weight(layer: Any) -> Tensor:
    """The weight ``(out, in / groups, *kernel)`` of a layer, which multiplies patches.

    A transposed convolution is an ordinary one of its input with zeros between the pixels, and this
    is the weight of that.
    """
    weight: Tensor = layer.weight
    if not getattr(layer, "transposed", False):
        return weight
    return exchanged_weight(weight, layer.groups)


def own_weight(layer: Any, weight: Tensor) -> Tensor:
    """The same in the shape of the layer's own weight, from any shape with these entries."""
    if not getattr(layer, "transposed", False):
        shape: tuple[int, ...] = layer.weight.shape
        return weight.reshape(shape)
    ordinary = weight.reshape(
        layer.out_channels, layer.in_channels // layer.groups, *layer.kernel_size
    )
    return exchanged_weight(ordinary, layer.groups)


def exchanged_weight(weight: Tensor, groups: int) -> Tensor:
    """The weight of a transposed convolution as that of the ordinary one, and the other way round.

    ``(groups A, B, *kernel)`` becomes ``(groups B, A, *kernel)``, with the kernel flipped.
    """
    by_group = weight.unflatten(0, (groups, weight.shape[0] // groups))
    return by_group.transpose(1, 2).flatten(0, 1).flip(list(range(2, weight.dim())))


def geometry_repr(conv: Any) -> list[str]:
    """Arguments of the constructor that are not the default ones, for ``extra_repr``."""
    parts = [
        f"{conv.in_channels}, {conv.out_channels}",
        f"kernel_size={conv.kernel_size}",
        f"stride={conv.stride}",
    ]
    given = Geometry.of(conv)._asdict() | {"bias": conv.bias is not None}
    defaults = Geometry._field_defaults | {"bias": True}
    names = ("padding", "dilation", "groups", "bias", "padding_mode")
    return parts + [f"{name}={given[name]}" for name in names if given[name] != defaults[name]]


def memory_format(tensor: Tensor) -> torch.memory_format:
    """Channels-last where the strides say so and cannot mean contiguous, also for 1x1 kernels."""
    shape = torch.empty(tensor.shape, device="meta")
    if tensor.dim() != 4 or tensor.stride() == shape.stride():
        return torch.contiguous_format
    shape = torch.empty(tensor.shape, device="meta", memory_format=torch.channels_last)
    same = tensor.stride() == shape.stride()
    return torch.channels_last if same else torch.contiguous_format


def _halves(total: int) -> tuple[int, int]:
    return total // 2, total - total // 2
