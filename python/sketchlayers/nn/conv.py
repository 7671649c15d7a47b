"""SK-CONV: a convolution whose weight is a tensor sketch (IJCAI 2018, arXiv 1710.07850)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sketchlayers import ops
from sketchlayers.ops import Mixing

from ._sketch import (
    Base,
    Frame,
    Init,
    Plan,
    Scale,
    SketchLayer,
    one_of,
    refuse_other_layers,
    whole_number,
)

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class SKConv2d(SketchLayer):
    r"""Sketched convolution, in place of ``nn.Conv2d``.

    The weight of a group, as the matrix ``(d1 / groups, n)``, ``n = d2 / groups * h * w``, is

        W_hat = 1/(2l) * sum_{i=1..l} ( U1_i^T S1_i + S2_i U2_i )          (equation 1)

    with trained ``S1_i (k, n)`` and ``S2_i (d1, k h w)`` and random signs ``U1_i (k, d1)`` and
    ``U2_i (k h w, n)`` that follow from ``seed`` and are never trained or saved. It has
    ``l k h w (d1 + d2)`` parameters and the bias, instead of ``d1 d2 h w``.

    Shapes are those of ``nn.Conv2d``: input ``(N, d2, H, W)`` or ``(d2, H, W)``. The factors start
    with the variance that gives ``W_hat`` Kaiming's, for any scale.

    Args:
        in_channels: ``d2``.
        out_channels: ``d1``.
        kernel_size: ``(h, w)`` or one number for both.
        stride: as in ``nn.Conv2d``.
        padding: number, pair, ``"same"`` or ``"valid"``.
        dilation: as in ``nn.Conv2d``.
        groups: independent sketches, one for each group of channels.
        bias: learn a bias.
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``.
        device: of parameters and signs; may be ``"meta"``.
        dtype: of the parameters.
        rank: ``k``, with ``1 <= l k <= min(d1, d2) / groups``. Give this or ``rate``.
        num_sketches: ``l``.
        rate: parameters of this layer over those of ``nn.Conv2d``, bias included, in (0, 1]; the
            nearest whole rank is taken, at least 1, and the attribute ``rate`` tells what it gives.
        mixing: ``"spatial"`` sketches channels and kernel positions together (Definition 3, the
            paper's layer); ``"channel"`` sketches channels alone (Definition 2), which needs
            ``h w`` times fewer operations and has the larger variance.
        scale: the factor of the sum: ``"paper"`` is ``1/(2l)``; ``"normalized"`` is ``1/sqrt(2l)``,
            for which a step of SGD moves ``W_hat`` as far as it moves a dense weight; or a number.
        base: ``"random"`` adds a fixed random weight of Kaiming variance, made from the seed; the
            factors then start at zero.
        frame: ``"signs"`` multiplies the sum by fixed random signs, made from the seed.
        seed: decides all signs; ``None`` draws it from PyTorch's default generator.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of its range.

    Example:
        >>> layer = SKConv2d(96, 192, 5, padding=2, rate=0.1)
        >>> layer(torch.randn(8, 96, 16, 16)).shape
        torch.Size([8, 192, 16, 16])
    """

    # Never other than these; tools that count operations or export read them of any convolution.
    transposed: ClassVar[bool] = False
    output_padding: ClassVar[tuple[int, int]] = (0, 0)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | Literal["same", "valid"] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        rank: int | None = None,
        num_sketches: int = 1,
        rate: float | None = None,
        mixing: Mixing = "spatial",
        scale: Scale = "paper",
        base: Base = None,
        frame: Frame = None,
        seed: int | None = None,
    ) -> None:
        owner = type(self).__name__
        in_channels = whole_number(owner, "in_channels", in_channels)
        out_channels = whole_number(owner, "out_channels", out_channels)
        groups = whole_number(owner, "groups", groups)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(
                    f"{owner}: {name} must be divisible by groups "
                    f"(got {name}={channels}, groups={groups})"
                )
        kernel = _pair(owner, "kernel_size", kernel_size)
        strides = _pair(owner, "stride", stride)
        if isinstance(padding, str):
            one_of(owner, "padding", padding, ("same", "valid"))
            if padding == "same" and strides != (1, 1):
                raise ValueError(
                    f"{owner}: stride must be 1 with padding='same' (got stride={strides})"
                )
        one_of(owner, "padding_mode", padding_mode, _PADDING_MODES)
        paddings = padding if isinstance(padding, str) else _pair(owner, "padding", padding, 0)
        dilations = _pair(owner, "dilation", dilation)
        super().__init__(
            in_channels,
            out_channels,
            kernel,
            groups,
            bias,
            rank=rank,
            num_sketches=num_sketches,
            rate=rate,
            mixing=mixing,
            scale=scale,
            base=base,
            frame=frame,
            seed=seed,
            device=device,
            dtype=dtype,
        )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel
        self.stride = strides
        self.padding: str | tuple[int, int] = paddings
        self.dilation = dilations
        self.groups = groups
        self.padding_mode: PaddingMode = padding_mode

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(N, d2, H, W)`` or ``(d2, H, W)`` with ``W_hat``."""
        weight = self._kept_weight(input)
        input, padding = self._pad(input)
        if weight is not None:
            return F.conv2d(
                input, weight, self.bias, self.stride, padding, self.dilation, self.groups
            )
        return ops.sk_conv2d(
            input,
            self.s1,
            self.s2,
            self.u1,
            self.u2,
            self.bias,
            self.stride,
            padding,
            self.dilation,
            self.groups,
            mixing=self.mixing,
            num_sketches=self.num_sketches,
            scale=self.scale,
            base=self.base_signs,
            frame=self.frame_signs,
            path=self.path,
        )

    def _pad(self, input: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Pad as the operator cannot; what is left to it are zeros, as many on either side."""
        (top, bottom), (left, right) = self._padding_amounts()
        if self.padding_mode != "zeros":
            return F.pad(input, (left, right, top, bottom), mode=self.padding_mode), (0, 0)
        if (top, left) != (bottom, right):  # "same" with an even kernel
            input = F.pad(input, (0, right - left, 0, bottom - top))
        return input, (top, left)

    def _padding_amounts(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Padding before and after, for height and for width."""
        if self.padding == "valid":
            return (0, 0), (0, 0)
        if isinstance(self.padding, str):
            (dilation_h, dilation_w), (h, w) = self.dilation, self.kernel_size
            return _halves(dilation_h * (h - 1)), _halves(dilation_w * (w - 1))
        vertical, horizontal = self.padding
        return (vertical, vertical), (horizontal, horizontal)

    @classmethod
    def from_conv(
        cls,
        conv: nn.Conv2d,
        *,
        rank: int | None = None,
        num_sketches: int = 1,
        rate: float | None = None,
        mixing: Mixing = "spatial",
        scale: Scale = "paper",
        base: Base = None,
        frame: Frame = None,
        seed: int | None = None,
        init: Init = "fit",
        second_moment: Tensor | None = None,
    ) -> Self:
        """A sketched layer in place of ``conv``, which is left as it is.

        Device, type, memory format, the bias, ``requires_grad`` and the training flag carry over.
        The attribute ``fit_error`` holds the relative error of the weight. On the meta device there
        are no values to fit, and the result is a meta layer.

        Args:
            conv: the layer; a subclass must compute its output as ``nn.Conv2d`` does.
            rank: see the class.
            num_sketches: see the class.
            rate: see the class.
            mixing: see the class.
            scale: see the class.
            base: see the class.
            frame: see the class.
            seed: see the class.
            init: ``"fit"`` takes the factors nearest to the weight
                (`sketchlayers.decompose.sketch_least_squares`), ``"unbiased"`` the paper's sketch
                of it, of use only with training afterwards, ``"random"`` those of a new layer.
            second_moment: ``E[x x^T]`` of the input patches in the order of ``F.unfold``,
                ``(n, n)`` or ``(groups, n, n)``: the fit is in the norm of the output's change.

        Raises:
            RuntimeError: a second moment of another shape.
            TypeError: not a convolution of this kind.
            ValueError: NaN or infinite weights or moments, a second moment together with a frame or
                without a fit, or arguments that the class refuses.
        """
        refuse_other_layers(cls.__name__, conv, nn.Conv2d)
        arguments = _geometry(conv) | {
            "rank": rank,
            "num_sketches": num_sketches,
            "rate": rate,
            "mixing": mixing,
            "scale": scale,
            "base": base,
            "frame": frame,
            "seed": seed,
        }
        return cls._from_dense(conv, arguments, init, second_moment)

    def fold(self) -> nn.Conv2d:
        """The plain convolution with this layer's weight, of the same device, type and format."""
        return self._fold_into(nn.Conv2d, _geometry(self))

    def plan(self, input_shape: Sequence[int]) -> Plan:
        """Which path would run for an input ``(N, d2, H, W)`` or ``(d2, H, W)``, and why.

        Raises:
            RuntimeError: the shape does not fit the layer.
        """
        return self._plan(input_shape)

    def _sizes(self, input_shape: Sequence[int]) -> tuple[int, int, int]:
        shape = (1, *input_shape) if len(input_shape) == 3 else tuple(input_shape)
        fits = len(shape) == 4 and shape[1] == self.in_channels
        size = self._output_size(shape[2:]) if fits else [0]
        if min(size) < 1:
            raise RuntimeError(
                f"{type(self).__name__}: input_shape must be (N, {self.in_channels}, H, W) or "
                f"({self.in_channels}, H, W), at least as large as the kernel "
                f"(got input_shape={tuple(input_shape)})"
            )
        return shape[0], shape[2] * shape[3], math.prod(size)

    def _output_size(self, size: Sequence[int]) -> list[int]:
        return [
            (length + before + after - dilation * (kernel - 1) - 1) // stride + 1
            for length, (before, after), kernel, stride, dilation in zip(
                size,
                self._padding_amounts(),
                self.kernel_size,
                self.stride,
                self.dilation,
                strict=True,
            )
        ]

    def extra_repr(self) -> str:
        """Arguments of the constructor that are not the default ones, and the rate."""
        parts = [
            f"{self.in_channels}, {self.out_channels}",
            f"kernel_size={self.kernel_size}",
            f"stride={self.stride}",
        ]
        if self.padding != (0, 0):
            parts.append(f"padding={self.padding}")
        if self.dilation != (1, 1):
            parts.append(f"dilation={self.dilation}")
        if self.groups != 1:
            parts.append(f"groups={self.groups}")
        if self.bias is None:
            parts.append("bias=False")
        if self.padding_mode != "zeros":
            parts.append(f"padding_mode={self.padding_mode}")
        return ", ".join([*parts, self._sketch_repr()])


def _geometry(conv: nn.Conv2d | SKConv2d) -> dict[str, Any]:
    """The constructor arguments that both kinds of convolution share, without the bias."""
    return {
        "in_channels": conv.in_channels,
        "out_channels": conv.out_channels,
        "kernel_size": conv.kernel_size,
        "stride": conv.stride,
        "padding": conv.padding,
        "dilation": conv.dilation,
        "groups": conv.groups,
        "padding_mode": conv.padding_mode,
    }


def _halves(total: int) -> tuple[int, int]:
    return total // 2, total - total // 2


def _pair(owner: str, name: str, value: int | Sequence[int], least: int = 1) -> tuple[int, int]:
    values = tuple(value) if isinstance(value, Sequence) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{owner}: {name} must be an int or two of them (got {name}={value!r})")
    first, second = (whole_number(owner, name, number, least) for number in values)
    return first, second
