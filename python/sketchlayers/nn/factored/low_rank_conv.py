"""A convolution of low rank: a vertical and a horizontal one (Tai et al., ICLR 2016)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sketchlayers import decompose
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn._groups import Group
from sketchlayers.nn._layer import Conv2dLayer, Factory, stands_for_dense
from sketchlayers.nn.factored._conv import FactoredConv, convolution
from sketchlayers.nn.factored._fused import Chain, OnePassConv2d
from sketchlayers.nn.factored._layer import Fit

_DOCUMENTED_FIT = """\
            init: ``"fit"`` approximates the weight in closed form
                (`sketchlayers.decompose.vertical_horizontal`), ``"random"`` starts as a new layer.
            seed: of the random start; ``None`` draws from PyTorch's generator. A fit has none.
"""


@stands_for_dense
class LowRankConv2d(OnePassConv2d, Conv2dLayer, FactoredConv):
    r"""Convolution as a vertical and a horizontal one, in place of ``nn.Conv2d``.

    The weight is::

        W[t, s, i, j] = sum_r V[r, s, i] H[t, r, j]          (Tai et al., ICLR 2016, equation 2)

    computed by two plain convolutions: ``vertical`` (h x 1, S to R channels) and ``horizontal``
    (1 x w, R to T, with the bias), with nothing between them. It has ``R (S h + T w)`` parameters
    and the bias. With groups both are grouped, S, T and R are those of one group. Tai et al. train
    it with batch norm behind it.

    Shapes are those of ``nn.Conv2d``: input ``(N, in, H, W)`` or ``(in, H, W)``. The vertical
    stride, padding and dilation are in ``vertical``, the horizontal ones in ``horizontal``.

    Args:
        rank: ``R``, at most ``min(S h, T w)``, which is enough for every weight.

    Example:
        >>> layer = LowRankConv2d(96, 192, 5, padding=2, rate=0.1)
        >>> layer(torch.randn(8, 96, 16, 16)).shape
        torch.Size([8, 192, 16, 16])
    """

    _documented_fit = _DOCUMENTED_FIT

    def _construct(
        self, bias: bool, factory: Factory, *, rank: int | None = None, rate: float | None = None
    ) -> None:
        nn.Module.__init__(self)
        geometry = Geometry.of(self)
        height, width = geometry.kernel_size
        full = min(geometry.group_inputs * height, geometry.group_outputs * width)
        self.rank = self._checked_rank(rank, rate, bias, full, low_rank_weights(geometry, 1))
        vertical, horizontal = low_rank_parts(geometry, self.rank)
        self.vertical = convolution(vertical, False, factory)
        self.horizontal = convolution(horizontal, bias, factory)
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(N, in, H, W)`` or ``(in, H, W)``."""
        if not torch.jit.is_scripting():
            fused = self._in_one_pass(input)
            if fused is not None:
                return fused
        return self.horizontal(self.vertical(input))

    def _chain(self) -> Chain:
        parts = self._modules
        return Chain(None, parts["vertical"], parts["horizontal"], None)

    def _product(self) -> Tensor:
        vertical = self._by_group(self.vertical)[..., 0]
        horizontal = self._by_group(self.horizontal)[..., 0, :]
        return torch.einsum("grsi,gtrj->gtsij", vertical, horizontal).flatten(0, 1)

    def _fit_group(self, group: Group, **how: Any) -> Fit:
        factors = decompose.vertical_horizontal(group.weight, self.rank, **group.norm)
        return Fit((factors.vertical, factors.horizontal), factors.relative_error)


def low_rank_parts(geometry: Geometry, rank: int) -> tuple[Geometry, Geometry]:
    """The vertical and the horizontal convolution of a `LowRankConv2d` of this rank."""
    inner = rank * geometry.groups
    return (
        geometry._replace(out_channels=inner).along([0]),
        geometry._replace(in_channels=inner).along([1]),
    )


def low_rank_weights(geometry: Geometry, rank: int) -> int:
    """Entries of both filters together, proportional to the rank."""
    return sum(part.weights for part in low_rank_parts(geometry, rank))
