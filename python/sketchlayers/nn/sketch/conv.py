"""SK-CONV: a convolution whose weight is a tensor sketch (IJCAI 2018, arXiv 1710.07850)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sketchlayers import ops
from sketchlayers.nn._checks import refuse_other_layers
from sketchlayers.nn._export import exporting
from sketchlayers.nn._geometry import (
    Geometry,
    PaddingMode,
    batch_and_size,
    effective_dilation,
    geometry_repr,
    output_size,
    pad,
)
from sketchlayers.nn.sketch import _onnx
from sketchlayers.nn.sketch._layer import Frame, Init, Plan, Scale, Signs, SketchLayer
from sketchlayers.ops import Mixing


class SKConv2d(SketchLayer):
    r"""Sketched convolution, in place of ``nn.Conv2d``.

    The weight of a group, as the matrix ``(d1 / groups, n)``, ``n = d2 / groups * h * w``, is::

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
        blocks: equal parts of the inputs and of the outputs of each group that have signs of their
            own: ``U1_i`` for each block of the inputs, ``U2_i`` for each block of the outputs. It
            has the same parameters and the same variance, but the rank of ``W_hat`` may be
            ``blocks`` times ``2 l k``, and it trains much better, for ``blocks`` times the
            operations with signs. 1 is the paper's layer.
        signs: ``"rademacher"``, independent random signs, or ``"hadamard"``, rows of a randomised
            Hadamard transform, which are orthogonal (named in the paper as a possible gain).
        frame: ``"signs"`` multiplies the sum by fixed random signs, made from the seed.
        seed: decides all signs; ``None`` draws it from PyTorch's default generator.

    Raises:
        ImportError: the compiled extension is missing, or was built for another PyTorch.
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
        blocks: int = 1,
        signs: Signs = "rademacher",
        frame: Frame = None,
        seed: int | None = None,
    ) -> None:
        owner = type(self).__name__
        geometry = Geometry.checked(
            owner,
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            padding_mode,
        )
        super().__init__(
            geometry.in_channels,
            geometry.out_channels,
            geometry.kernel_size,
            geometry.groups,
            bias,
            rank=rank,
            num_sketches=num_sketches,
            rate=rate,
            mixing=mixing,
            scale=scale,
            blocks=blocks,
            signs=signs,
            frame=frame,
            seed=seed,
            device=device,
            dtype=dtype,
        )
        self.in_channels = geometry.in_channels
        self.out_channels = geometry.out_channels
        self.kernel_size = geometry.kernel_size
        self.stride = geometry.stride
        self.padding = geometry.padding
        self.dilation = geometry.dilation
        self.groups = geometry.groups
        self.padding_mode = geometry.padding_mode

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(N, d2, H, W)`` or ``(d2, H, W)`` with ``W_hat``."""
        weight = self._kept_weight(input)
        input, padding = pad(self, input)
        if weight is None and exporting():
            if self._exports_factors():
                return _onnx.conv2d(
                    self._traced(),
                    input,
                    self.bias,
                    self.stride,
                    padding,
                    self.dilation,
                    self.groups,
                )
            weight = self.dense_weight()
        if weight is not None:
            dilation = effective_dilation(self)
            return F.conv2d(input, weight, self.bias, self.stride, padding, dilation, self.groups)
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
            frame=self.frame_signs,
            path=self.path,
        )

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
        blocks: int = 1,
        signs: Signs = "rademacher",
        frame: Frame = None,
        seed: int | None = None,
        init: Init = "fit",
        second_moment: Tensor | None = None,
        sensitivity: Tensor | None = None,
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
            blocks: see the class.
            signs: see the class.
            frame: see the class.
            seed: see the class.
            init: ``"fit"`` takes the factors nearest to the weight
                (`sketchlayers.decompose.sketch_least_squares`), ``"unbiased"`` the paper's sketch
                of it, of use only with training afterwards, ``"random"`` those of a new layer.
            second_moment: ``E[x x^T]`` of the input patches in the order of ``F.unfold``,
                ``(n, n)`` or ``(groups, n, n)``: the fit is in the norm of the output's change.
            sensitivity: weight of the output's errors, ``(d1,)``, or a matrix for each group
                ``(groups, T, T)`` with ``T = d1 / groups``, ``(T, T)`` for one.

        Raises:
            RuntimeError: a second moment or a sensitivity of another shape.
            TypeError: not a convolution of this kind.
            ValueError: NaN or infinite weights or moments, moments together with a frame, several
                blocks or without a fit, or arguments that the class refuses.
        """
        refuse_other_layers(cls.__name__, conv, nn.Conv2d)
        arguments = Geometry.of(conv).arguments() | {
            "rank": rank,
            "num_sketches": num_sketches,
            "rate": rate,
            "mixing": mixing,
            "scale": scale,
            "blocks": blocks,
            "signs": signs,
            "frame": frame,
            "seed": seed,
        }
        return cls._from_dense(conv, arguments, init, second_moment, sensitivity)

    def fold(self) -> nn.Conv2d:
        """The plain convolution with this layer's weight, of the same device, type and format."""
        return self._fold_into(nn.Conv2d, Geometry.of(self).arguments())

    def plan(self, input_shape: Sequence[int], *, channels_last: bool = False) -> Plan:
        """Which path would run for an input ``(N, d2, H, W)`` or ``(d2, H, W)``, and why.

        Args:
            input_shape: of the input.
            channels_last: whether it lies in memory with the channels innermost.

        Raises:
            RuntimeError: the shape does not fit the layer.
        """
        return self._plan(input_shape, channels_last)

    def _sizes(self, input_shape: Sequence[int]) -> tuple[int, int, int]:
        batch, size = batch_and_size(type(self).__name__, self, input_shape)
        return batch, math.prod(size), math.prod(output_size(self, size))

    def extra_repr(self) -> str:
        """Arguments of the constructor that are not the default ones, and the rate."""
        return ", ".join([*geometry_repr(self), *self._options_repr(), f"rate={self.rate:.3g}"])
