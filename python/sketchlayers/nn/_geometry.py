"""The arguments of a convolution without bias, device and dtype, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sketchlayers.nn._checks import one_of, whole_number, whole_numbers

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

# What PyTorch's convolutions can hold, as in csrc/ops/sk_conv2d.h: channels, height and width with
# padding; and stride, padding and dilation, with which PyTorch multiplies in 32 bits.
_LARGEST_SIZE = 2**31 - 1
_LARGEST_STEP = 2**15

_AXES = ("D", "H", "W")

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""The memory format with the channels innermost, by the dimensions of a tensor."""

Sides = tuple[int, int]
DenseConv = (
    nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
)
CONVOLUTIONS: tuple[type[DenseConv], ...] = get_args(DenseConv)
"""PyTorch's convolutions: ordinary ones by the number of their axes, then transposed ones."""


class Geometry(NamedTuple):
    """Arguments of ``nn.Conv2d`` in its order, without the bias, or those of another convolution.

    Those with a number for each axis are whole tuples.

    Attributes:
        output_padding: of a transposed convolution; None for an ordinary one.
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...] = (1, 1)
    stride: tuple[int, ...] = (1, 1)
    padding: str | tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1
    padding_mode: PaddingMode = "zeros"
    output_padding: tuple[int, ...] | None = None

    @classmethod
    def of(cls, layer: Any) -> Self:
        """Those of a layer, compressed or not; a matrix or a table is a 1x1 convolution."""
        if hasattr(layer, "in_features"):
            return cls(layer.in_features, layer.out_features)
        if hasattr(layer, "num_embeddings"):
            return cls(layer.num_embeddings, layer.embedding_dim)
        *names, output_padding = cls._fields
        more = getattr(layer, output_padding) if getattr(layer, "transposed", False) else None
        arguments: dict[str, Any] = {name: getattr(layer, name) for name in names}
        return cls(**arguments, output_padding=more)

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
        output_padding: int | Sequence[int] | None = None,
        *,
        axes: int = 2,
    ) -> Self:
        """From the arguments of a constructor, of a layer with so many axes.

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
        kernel = whole_numbers(owner, "kernel_size", kernel_size, axes, 1, _LARGEST_SIZE)
        strides = whole_numbers(owner, "stride", stride, axes, 1, _LARGEST_STEP)
        dilations = whole_numbers(owner, "dilation", dilation, axes, 1, _LARGEST_STEP)
        paddings: str | tuple[int, ...]
        if isinstance(padding, str):
            if output_padding is not None:
                raise TypeError(
                    f"{owner}: padding must be an int or a sequence of them (got {padding!r})"
                )
            one_of(owner, "padding", padding, ("same", "valid"))
            if padding == "same" and set(strides) != {1}:
                raise ValueError(
                    f"{owner}: stride must be 1 with padding='same' (got stride={strides})"
                )
            paddings = padding
        else:
            paddings = whole_numbers(owner, "padding", padding, axes, 0, _LARGEST_STEP)
        modes = _PADDING_MODES if output_padding is None else ("zeros",)
        one_of(owner, "padding_mode", padding_mode, modes)
        geometry = cls(
            in_channels, out_channels, kernel, strides, paddings, dilations, groups, padding_mode
        )
        for _, after in padding_amounts(geometry):
            whole_number(owner, "padding='same' of a side", after, 0, _LARGEST_STEP)
        if output_padding is None:
            return geometry
        more = whole_numbers(owner, "output_padding", output_padding, axes, 0, _LARGEST_STEP)
        if any(extra >= max(by) for extra, *by in zip(more, strides, dilations, strict=True)):
            raise ValueError(
                f"{owner}: output_padding must be smaller than stride or dilation "
                f"(got output_padding={more}, stride={strides}, dilation={dilations})"
            )
        return geometry._replace(output_padding=more)

    @property
    def dense_class(self) -> type[DenseConv]:
        """PyTorch's convolution of this geometry."""
        ordinary, transposed = CONVOLUTIONS[:3], CONVOLUTIONS[3:]
        kinds = ordinary if self.output_padding is None else transposed
        return kinds[len(self.kernel_size) - 1]

    def arguments(self) -> dict[str, Any]:
        """Those of PyTorch's convolution, by name."""
        arguments = self._asdict()
        if self.output_padding is None:
            del arguments["output_padding"]
        return arguments

    def pointwise(self, in_channels: int, out_channels: int) -> Self:
        """An ordinary convolution, of as many axes and groups, whose kernel is one position."""
        ones, zeros = (1,) * len(self.kernel_size), (0,) * len(self.kernel_size)
        sizes = in_channels, out_channels
        return type(self)(*sizes, ones, ones, zeros, ones, self.groups)

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

    def along(self, axes: Collection[int]) -> Self:
        """The part of a separable convolution along some of its axes."""

        def part(values: tuple[int, ...], other: int) -> tuple[int, ...]:
            return tuple(own if axis in axes else other for axis, own in enumerate(values))

        more = self.output_padding
        return self._replace(
            kernel_size=part(self.kernel_size, 1),
            stride=part(self.stride, 1),
            dilation=part(self.dilation, 1),
            padding=self.padding if isinstance(self.padding, str) else part(self.padding, 0),
            output_padding=None if more is None else part(more, 0),
        )

    def shrinking_ranks(self, weights_per_rank: int) -> range:
        """The whole ranks at which a replacement, with so many weights for each, is smaller."""
        if not self.weights:
            return range(0)
        return range(1, (self.weights - 1) // weights_per_rank + 1)


def is_depthwise(layer: Any) -> bool:
    """Whether this is a convolution with a group for each of several input channels."""
    return 1 < getattr(layer, "groups", 1) == layer.in_channels


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
    if max(conv.dilation) == 1:
        return conv.dilation
    taps = zip(conv.dilation, conv.kernel_size, strict=True)
    return tuple(dilation if kernel > 1 else 1 for dilation, kernel in taps)


def pad(conv: Any, input: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Pads as an operator cannot; what is left to it are zeros, as many on either side."""
    if conv.padding_mode == "zeros" and not isinstance(conv.padding, str):
        return input, conv.padding
    sides = padding_amounts(conv)
    if conv.padding_mode != "zeros":
        amounts = [amount for both in reversed(sides) for amount in both]
        return F.pad(input, amounts, mode=conv.padding_mode), (0,) * len(sides)
    more = [after - before for before, after in sides]
    if any(more):  # "same" with an even kernel
        input = F.pad(input, [amount for rest in reversed(more) for amount in (0, rest)])
    return input, tuple(before for before, _ in sides)


def output_size(conv: Geometry, size: Sequence[int]) -> list[int]:
    """Sizes of the output's axes for those of the input."""
    spans = [
        dilation * (kernel - 1) + 1
        for dilation, kernel in zip(conv.dilation, conv.kernel_size, strict=True)
    ]
    sides = padding_amounts(conv)
    if conv.output_padding is not None:
        return [
            (length - 1) * stride - before - after + span + more
            for length, stride, (before, after), span, more in zip(
                size, conv.stride, sides, spans, conv.output_padding, strict=True
            )
        ]
    return [
        (length + before + after - span) // stride + 1
        for length, (before, after), span, stride in zip(
            size, sides, spans, conv.stride, strict=True
        )
    ]


def batch_and_size(
    owner: str, layer: Any, input_shape: Sequence[int]
) -> tuple[int, tuple[int, ...]]:
    """Number of images, and the sizes of their axes, for an input with or without a batch axis.

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
    geometry = Geometry.of(layer)
    axes, channels = len(geometry.kernel_size), geometry.in_channels
    shape = (1, *input_shape) if len(input_shape) == axes + 1 else tuple(input_shape)
    fits = len(shape) == axes + 2 and shape[1] == channels and min(shape[2:]) >= 1
    if min(output_size(geometry, shape[2:]) if fits else [0]) < 1:
        size = ", ".join(_AXES[-axes:])
        raise RuntimeError(
            f"{owner}: input_shape must be (N, {channels}, {size}) or "
            f"({channels}, {size}), at least as large as the kernel "
            f"(got input_shape={tuple(input_shape)})"
        )
    for length, sides in zip(shape[2:], padding_amounts(geometry), strict=True):
        if length + sum(sides) > _LARGEST_SIZE:
            raise RuntimeError(
                f"{owner}: sizes in input_shape must be below 2^31 with padding "
                f"(got input_shape={tuple(input_shape)})"
            )
    return shape[0], shape[2:]


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
    geometry = Geometry.of(conv)
    given = geometry._asdict() | {"bias": conv.bias is not None}
    zeros = (0,) * len(geometry.kernel_size)
    defaults = geometry.pointwise(1, 1)._asdict() | {"groups": 1, "bias": True}
    defaults["output_padding"] = None if geometry.output_padding is None else zeros
    names = ("padding", "output_padding", "dilation", "groups", "bias", "padding_mode")
    return parts + [f"{name}={given[name]}" for name in names if given[name] != defaults[name]]


def memory_format(tensor: Tensor) -> torch.memory_format:
    """Channels-last where the strides say so and cannot mean contiguous, also for 1x1 kernels."""
    last = CHANNELS_LAST.get(tensor.dim())
    shape = torch.empty(tensor.shape, device="meta")
    if last is None or tensor.stride() == shape.stride():
        return torch.contiguous_format
    shape = torch.empty(tensor.shape, device="meta", memory_format=last)
    return last if tensor.stride() == shape.stride() else torch.contiguous_format


def _halves(total: int) -> tuple[int, int]:
    return total // 2, total - total // 2
