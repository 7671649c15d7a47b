"""SK-CONV: convolutions whose weight is a tensor sketch (IJCAI 2018, arXiv 1710.07850)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from sketchlayers import ops
from sketchlayers.nn._geometry import pad
from sketchlayers.nn._layer import (
    Conv1dLayer,
    Conv2dLayer,
    Conv3dLayer,
    parameter_of,
    stands_for_dense,
)
from sketchlayers.nn.sketch import _onnx
from sketchlayers.nn.sketch._layer import SketchLayer


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
        rank: ``k``, with ``1 <= l k <= min(d1, d2) / groups``.
        num_sketches: ``l``.
        mixing: ``"spatial"`` sketches channels and kernel positions together (Definition 3, the
            paper's layer); ``"channel"`` sketches channels alone (Definition 2), which needs
            ``h w`` times fewer operations and has the larger variance.

    Example:
        >>> layer = SKConv2d(96, 192, 5, padding=2, rate=0.1)
        >>> layer(torch.randn(8, 96, 16, 16)).shape
        torch.Size([8, 192, 16, 16])
    """

    def _from_factors(self, input: Tensor) -> Tensor:
        input, padding = pad(self, input)
        return ops.sk_conv2d(
            input,
            parameter_of(self, "s1"),
            parameter_of(self, "s2"),
            self.u1,
            self.u2,
            parameter_of(self, "bias"),
            self.stride,
            padding,
            self.dilation,
            self.groups,
            mixing=self.mixing,
            num_sketches=self.num_sketches,
            scale=self.scale,
            frame=self.frame_signs,
            path=self._path,
        )

    def _exported_factors(self, input: Tensor) -> Tensor:
        input, padding = pad(self, input)
        return _onnx.conv2d(self, input, self.stride, padding, self.dilation, self.groups)


@stands_for_dense
class SKConv1d(Conv1dLayer, SketchLayer):
    r"""Sketched convolution of signals, in place of ``nn.Conv1d``.

    It is an `SKConv2d` of signals with one row, and is computed so. It has ``l k w (d1 + d2)``
    parameters and the bias. Input ``(N, d2, L)`` or ``(d2, L)``.

    Args:
        rank: ``k``, with ``1 <= l k <= min(d1, d2) / groups``.
        num_sketches: ``l``.
        mixing: as for `SKConv2d`.

    Example:
        >>> layer = SKConv1d(96, 192, 5, padding=2, rate=0.1)
        >>> layer(torch.randn(8, 96, 64)).shape
        torch.Size([8, 192, 64])
    """

    def _planar(self, factor: Tensor) -> Tensor:
        return factor.unsqueeze(2)

    def _exports_factors(self) -> bool:
        return False

    def _from_factors(self, input: Tensor) -> Tensor:
        input, padding = pad(self, input)
        output = ops.sk_conv2d(
            input.unsqueeze(-2),
            self._planar(self.s1),
            self._planar(self.s2),
            self.u1,
            self.u2,
            self.bias,
            (1, *self.stride),
            (0, *padding),
            (1, *self.dilation),
            self.groups,
            mixing=self.mixing,
            num_sketches=self.num_sketches,
            scale=self.scale,
            frame=self.frame_signs,
            path=self.path,
        )
        return output.squeeze(-2)


@stands_for_dense
class SKConv3d(Conv3dLayer, SketchLayer):
    r"""Sketched convolution of volumes, in place of ``nn.Conv3d``.

    Its weight is that of an `SKConv2d` with as many positions, formed for each call and multiplied
    by PyTorch's convolution: it saves parameters, and no time. It has ``l k d h w (d1 + d2)``
    parameters and the bias. Input ``(N, d2, D, H, W)`` or ``(d2, D, H, W)``.

    Args:
        rank: ``k``, with ``1 <= l k <= min(d1, d2) / groups``.
        num_sketches: ``l``.
        mixing: as for `SKConv2d`.

    Example:
        >>> layer = SKConv3d(96, 192, 3, padding=1, rate=0.1)
        >>> layer(torch.randn(2, 96, 4, 8, 8)).shape
        torch.Size([2, 192, 4, 8, 8])
    """

    _why_folded: ClassVar[str] = "for a convolution of three axes "

    @property
    def _needs_folded(self) -> bool:
        return True

    def _planar(self, factor: Tensor) -> Tensor:
        return factor.flatten(2, 3)

    def _from_factors(self, input: Tensor) -> Tensor:
        return self._applied(input, self.dense_weight())
