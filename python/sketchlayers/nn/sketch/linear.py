"""SK-FC: a fully connected layer whose weight is a tensor sketch (IJCAI 2018, arXiv 1710.07850)."""

from __future__ import annotations

from torch import Tensor

from sketchlayers import ops
from sketchlayers.nn._layer import LinearLayer, parameter_of, stands_for_dense
from sketchlayers.nn.sketch import _onnx
from sketchlayers.nn.sketch._layer import SketchLayer


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
        rank: ``k``, with ``1 <= l k <= min(d1, d2)``.
        num_sketches: ``l``.

    Example:
        >>> layer = SKLinear(768, 768, rate=0.25)
        >>> layer(torch.randn(8, 768)).shape
        torch.Size([8, 768])
    """

    _without = ("mixing",)  # both are the same without kernel positions

    def _from_factors(self, input: Tensor) -> Tensor:
        return ops.sk_linear(
            input,
            parameter_of(self, "s1"),
            parameter_of(self, "s2"),
            self.u1,
            self.u2,
            parameter_of(self, "bias"),
            num_sketches=self.num_sketches,
            scale=self.scale,
            frame=self.frame_signs,
            path=self._path,
        )

    def _exported_factors(self, input: Tensor) -> Tensor:
        return _onnx.linear(self, input)
