"""A convolution of low rank: a vertical and a horizontal one (Tai et al., ICLR 2016)."""

from __future__ import annotations

from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from sketchlayers import decompose
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn._groups import Group
from sketchlayers.nn._layer import Conv2dLayer, Device, stands_for_dense
from sketchlayers.nn.factored._layer import FactoredLayer, Fit, Init, convolution, resolved_rank


@stands_for_dense
class LowRankConv2d(Conv2dLayer, FactoredLayer):
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
        rank: ``R``, at most ``min(S h, T w)``, which is enough for every weight. Give this or
            ``rate``.
        rate: parameters of this layer over those of ``nn.Conv2d``, bias included, in (0, 1]; the
            nearest whole rank is taken, at least 1, and the attribute ``rate`` tells what it gives.

    Example:
        >>> layer = LowRankConv2d(96, 192, 5, padding=2, rate=0.1)
        >>> layer(torch.randn(8, 96, 16, 16)).shape
        torch.Size([8, 192, 16, 16])
    """

    def _construct(
        self,
        bias: bool,
        device: Device,
        dtype: torch.dtype | None,
        *,
        rank: int | None = None,
        rate: float | None = None,
    ) -> None:
        owner = type(self).__name__
        nn.Module.__init__(self)
        geometry = Geometry.of(self)
        self.rank = _resolved_rank(owner, geometry, bias, rank, rate)
        vertical, horizontal = low_rank_parts(geometry, self.rank)
        make = partial(convolution, device=device, dtype=dtype)
        self.vertical = make(vertical, bias=False)
        self.horizontal = make(horizontal, bias=bias)
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(N, in, H, W)`` or ``(in, H, W)``."""
        return self.horizontal(self.vertical(input))

    def dense_weight(self) -> Tensor:
        """``(out, in / groups, h, w)``, differentiable in the filters."""
        vertical = self._by_group(self.vertical)[..., 0]
        horizontal = self._by_group(self.horizontal)[..., 0, :]
        return torch.einsum("grsi,gtrj->gtsij", vertical, horizontal).flatten(0, 1)

    @classmethod
    def from_conv(
        cls,
        conv: nn.Conv2d,
        rank: int | None = None,
        *,
        rate: float | None = None,
        init: Init = "fit",
        second_moment: Tensor | None = None,
        sensitivity: Tensor | None = None,
        seed: int | None = None,
    ) -> Self:
        """Two convolutions in place of ``conv``, which is left as it is.

        Args:
            init: ``"fit"`` approximates the weight in closed form
                (`sketchlayers.decompose.vertical_horizontal`), ``"random"`` starts as a new layer.
            seed: of the random start; ``None`` draws from PyTorch's generator. A fit has none.
        """
        options = {"rank": rank, "rate": rate}
        return cls._replacing(conv, options, init, second_moment, sensitivity, seed)

    def _fit_group(self, group: Group, **how: Any) -> Fit:
        weight, moment, weights = group
        factors = decompose.vertical_horizontal(
            weight, self.rank, second_moment=moment, sensitivity=weights
        )
        return Fit((factors.vertical, factors.horizontal), factors.relative_error)

    def options(self) -> dict[str, Any]:
        """As `Configured.options`."""
        return {"rank": self.rank}


def low_rank_parts(geometry: Geometry, rank: int) -> tuple[Geometry, Geometry]:
    """The vertical and the horizontal convolution of a `LowRankConv2d` of this rank."""
    inner = rank * geometry.groups
    return (
        geometry._replace(out_channels=inner).one_way(0),
        geometry._replace(in_channels=inner).one_way(1),
    )


def low_rank_weights(geometry: Geometry, rank: int) -> int:
    """Entries of both filters together, proportional to the rank."""
    return sum(part.weights for part in low_rank_parts(geometry, rank))


def uniform_ranks(geometry: Geometry) -> range:
    """The ranks at which the layer gets smaller."""
    if not geometry.weights:
        return range(0)
    return range(1, (geometry.weights - 1) // low_rank_weights(geometry, 1) + 1)


def _resolved_rank(
    owner: str, geometry: Geometry, bias: bool, rank: int | None, rate: float | None
) -> int:
    height, width = geometry.kernel_size
    full = min(geometry.group_inputs * height, geometry.group_outputs * width)
    return resolved_rank(
        owner,
        geometry,
        bias,
        rank,
        rate,
        full=full,
        ranks=uniform_ranks(geometry),
        weights=partial(low_rank_weights, geometry),
    )
