"""SK-FC: a fully connected layer whose weight is a tensor sketch (IJCAI 2018, arXiv 1710.07850)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self, Unpack

import torch.nn.functional as F
from torch import Tensor, nn

from sketchlayers import ops
from sketchlayers.nn._export import exporting
from sketchlayers.nn._layer import LinearLayer, linear_rows, stands_for_dense
from sketchlayers.nn.sketch import _onnx
from sketchlayers.nn.sketch._layer import Init, Plan, SketchLayer, SketchOptions


@stands_for_dense
class SKLinear(LinearLayer, SketchLayer):
    """Sketched fully connected layer, in place of ``nn.Linear``.

    The weight is::

        W_hat = 1/(2l) * sum_{i=1..l} ( U1_i^T S1_i + S2_i U2_i )          (equation 1)

    with trained ``S1_i (k, d2)`` and ``S2_i (d1, k)`` and random signs ``U1_i (k, d1)`` and
    ``U2_i (k, d2)`` that follow from ``seed`` and are never trained or saved. It has
    ``l k (d1 + d2)`` parameters and the bias, instead of ``d1 d2``. Input ``(*, d2)``, output
    ``(*, d1)``.

    Args:
        rank: ``k``, with ``1 <= l k <= min(d1, d2)``. Give this or ``rate``.
        num_sketches: ``l``.
        rate: parameters of this layer over those of ``nn.Linear``, bias included, in (0, 1]; the
            nearest whole rank is taken, at least 1, and the attribute ``rate`` tells what it gives.

    Example:
        >>> layer = SKLinear(768, 768, rate=0.25)
        >>> layer(torch.randn(8, 768)).shape
        torch.Size([8, 768])
    """

    _without = ("mixing",)  # both are the same without kernel positions

    def forward(self, input: Tensor) -> Tensor:
        """``(*, d2)`` to ``(*, d1)``."""
        weight = self._kept_weight(input)
        if weight is None and exporting():
            if self._exports_factors():
                return _onnx.linear(self._traced(), input, self.bias)
            weight = self.dense_weight()
        if weight is not None:
            return F.linear(input, weight, self.bias)
        return ops.sk_linear(
            input,
            self.s1,
            self.s2,
            self.u1,
            self.u2,
            self.bias,
            num_sketches=self.num_sketches,
            scale=self.scale,
            frame=self.frame_signs,
            path=self.path,
        )

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        init: Init = "fit",
        second_moment: Tensor | None = None,
        sensitivity: Tensor | None = None,
        **options: Unpack[SketchOptions],
    ) -> Self:
        """A sketched layer in place of ``linear``, which is left as it is.

        Second moment and sensitivity go with one block and without a frame.

        Args:
            init: ``"fit"`` takes the factors nearest to the weight
                (`sketchlayers.decompose.sketch_least_squares`), ``"unbiased"`` the paper's sketch
                of it, of use only with training afterwards, ``"random"`` those of a new layer.
        """
        return cls._from_dense(linear, options, init, second_moment, sensitivity)

    def plan(self, input_shape: Sequence[int], *, channels_last: bool = False) -> Plan:
        """Which path would run for an input ``(*, d2)``, and why.

        Args:
            input_shape: of the input.
            channels_last: makes no difference here.

        Raises:
            RuntimeError: the shape does not fit the layer.
        """
        return self._plan(input_shape, channels_last=False)

    def _sizes(self, input_shape: Sequence[int]) -> tuple[int, int, int]:
        return linear_rows(type(self).__name__, self.in_features, input_shape), 1, 1
