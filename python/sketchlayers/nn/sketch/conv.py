"""SK-CONV: a convolution whose weight is a tensor sketch (IJCAI 2018, arXiv 1710.07850)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Self, Unpack

from torch import Tensor, nn

from sketchlayers import ops
from sketchlayers.nn._export import exporting
from sketchlayers.nn._geometry import batch_and_size, output_size, pad
from sketchlayers.nn._layer import Conv2dLayer, stands_for_dense
from sketchlayers.nn.sketch import _onnx
from sketchlayers.nn.sketch._layer import Init, Plan, SketchLayer, SketchOptions
from sketchlayers.ops import Mixing


class SKConv2dOptions(SketchOptions, total=False):
    """Arguments of `SKConv2d` after those of ``nn.Conv2d``."""

    mixing: Mixing


@stands_for_dense
class SKConv2d(Conv2dLayer, SketchLayer):
    r"""Sketched convolution, in place of ``nn.Conv2d``.

    The weight of a group, as the matrix ``(d1 / groups, n)``, ``n = d2 / groups * h * w``, is::

        W_hat = 1/(2l) * sum_{i=1..l} ( U1_i^T S1_i + S2_i U2_i )          (equation 1)

    with trained ``S1_i (k, n)`` and ``S2_i (d1, k h w)`` and random signs ``U1_i (k, d1)`` and
    ``U2_i (k h w, n)`` that follow from ``seed`` and are never trained or saved. It has
    ``l k h w (d1 + d2)`` parameters and the bias, instead of ``d1 d2 h w``.

    Shapes are those of ``nn.Conv2d``: input ``(N, d2, H, W)`` or ``(d2, H, W)``. The factors start
    with the variance that gives ``W_hat`` Kaiming's, for any scale. Every group of channels has
    sketches of its own.

    Args:
        rank: ``k``, with ``1 <= l k <= min(d1, d2) / groups``. Give this or ``rate``.
        num_sketches: ``l``.
        rate: parameters of this layer over those of ``nn.Conv2d``, bias included, in (0, 1]; the
            nearest whole rank is taken, at least 1, and the attribute ``rate`` tells what it gives.
        mixing: ``"spatial"`` sketches channels and kernel positions together (Definition 3, the
            paper's layer); ``"channel"`` sketches channels alone (Definition 2), which needs
            ``h w`` times fewer operations and has the larger variance.

    Example:
        >>> layer = SKConv2d(96, 192, 5, padding=2, rate=0.1)
        >>> layer(torch.randn(8, 96, 16, 16)).shape
        torch.Size([8, 192, 16, 16])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(N, d2, H, W)`` or ``(d2, H, W)`` with ``W_hat``."""
        weight = self._kept_weight(input)
        if weight is not None:
            return self._convolved(input, weight)
        if exporting() and not self._exports_factors():
            return self._convolved(input, self.dense_weight())
        input, padding = pad(self, input)
        window = self.stride, padding, self.dilation, self.groups
        if exporting():
            return _onnx.conv2d(self._traced(), input, self.bias, *window)
        return ops.sk_conv2d(
            input,
            self.s1,
            self.s2,
            self.u1,
            self.u2,
            self.bias,
            *window,
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
        init: Init = "fit",
        second_moment: Tensor | None = None,
        sensitivity: Tensor | None = None,
        **options: Unpack[SKConv2dOptions],
    ) -> Self:
        """A sketched layer in place of ``conv``, which is left as it is.

        Second moment and sensitivity go with one block and without a frame.

        Args:
            init: ``"fit"`` takes the factors nearest to the weight
                (`sketchlayers.decompose.sketch_least_squares`), ``"unbiased"`` the paper's sketch
                of it, of use only with training afterwards, ``"random"`` those of a new layer.
        """
        return cls._from_dense(conv, options, init, second_moment, sensitivity)

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
