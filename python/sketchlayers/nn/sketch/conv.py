"""SK-CONV: a convolution whose weight is a tensor sketch (IJCAI 2018, arXiv 1710.07850)."""

from __future__ import annotations

from torch import Tensor

from sketchlayers import ops
from sketchlayers.nn._export import exporting
from sketchlayers.nn._geometry import pad
from sketchlayers.nn._layer import Conv2dLayer, stands_for_dense
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
        window = self.stride, padding, self.dilation, self.groups
        if exporting():
            return _onnx.conv2d(self, input, *window)
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
