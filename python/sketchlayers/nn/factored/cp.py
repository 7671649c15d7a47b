"""CP: a convolution as 1x1, h x 1, 1 x w and 1x1 ones (Lebedev et al., ICLR 2015, 1412.6553)."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from sketchlayers import decompose
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn._groups import Group
from sketchlayers.nn._layer import Conv2dLayer, Device, stands_for_dense
from sketchlayers.nn.factored._layer import FactoredLayer, Fit, Init, convolution, resolved_rank


@stands_for_dense
class CPConv2d(Conv2dLayer, FactoredLayer):
    r"""Convolution whose weight is a CP decomposition, in place of ``nn.Conv2d``.

    The weight is::

        W[t, s, i, j] = sum_r A[t, r] B[s, r] C[i, r] D[j, r]

    computed by up to four plain convolutions: ``input`` (1x1, S to R channels), ``rows`` (depthwise
    h x 1), ``columns`` (depthwise 1 x w) and ``output`` (1x1, R to T, with the bias). It has
    ``R (S + T + h + w)`` parameters and the bias. A kernel of height or width 1 has no ``rows`` or
    ``columns``: such a factor could be absorbed in another. With groups each part is grouped, S, T
    and R are those of one group.

    Shapes are those of ``nn.Conv2d``: input ``(N, in, H, W)`` or ``(in, H, W)``. The vertical
    stride, padding and dilation are in ``rows``, the horizontal ones in ``columns``; where one is
    missing its share is in the other, or in ``input``. Padding of any mode commutes with that, so
    the edges are those of the dense layer.

    Args:
        rank: ``R``, at most ``h w min(S, T)``, which is enough for every weight. Give this or
            ``rate``.
        rate: parameters of this layer over those of ``nn.Conv2d``, bias included, in (0, 1]; the
            nearest whole rank is taken, at least 1, and the attribute ``rate`` tells what it gives.

    Example:
        >>> layer = CPConv2d(96, 192, 3, padding=1, rank=120)
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
        parts = cp_parts(geometry, self.rank)
        make = partial(convolution, device=device, dtype=dtype)
        # Absent parts are modules too, so that no other code takes them for attributes of a user.
        self.rows: nn.Conv2d | None
        self.columns: nn.Conv2d | None
        self.input = make(parts.input, bias=False)
        self.add_module("rows", parts.rows and make(parts.rows, bias=False))
        self.add_module("columns", parts.columns and make(parts.columns, bias=False))
        self.output = make(parts.output, bias=bias)
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(N, in, H, W)`` or ``(in, H, W)``."""
        input = self.input(input)
        if self.rows is not None:
            input = self.rows(input)
        if self.columns is not None:
            input = self.columns(input)
        return self.output(input)

    def dense_weight(self) -> Tensor:
        """``(out, in / groups, h, w)``, differentiable in the factors."""
        filters = self.input.weight
        for part in (self.rows, self.columns):
            if part is not None:
                filters = filters * part.weight
        by_group = filters.unflatten(0, (self.groups, self.rank))
        outputs = self.output.weight.unflatten(0, (self.groups, -1))[..., 0, 0]
        return torch.einsum("gtr,grshw->gtshw", outputs, by_group).flatten(0, 1)

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
        starts: int = 4,
        max_sweeps: int = 240,
        tolerance: float = 1e-6,
    ) -> Self:
        """A factored layer in place of ``conv``, which is left as it is.

        Args:
            init: ``"fit"`` approximates the weight (`sketchlayers.decompose.cp`; the global optimum
                `sketchlayers.decompose.svd` for a 1x1 kernel), ``"random"`` starts as a new layer.
            seed: of the starts of the fit (``None`` is 0) or of the random start (``None`` draws
                from PyTorch's generator).
            starts: of the fit, of which the best is kept.
            max_sweeps: of each start.
            tolerance: change of the relative error at which the fit ends.
        """
        options = {"rank": rank, "rate": rate}
        how: dict[str, Any] = {"starts": starts, "max_sweeps": max_sweeps, "tolerance": tolerance}
        norm = second_moment, sensitivity
        return cls._replacing(conv, options, init, *norm, seed, start_seed=seed or 0, **how)

    def _fit_group(self, group: Group, *, start_seed: int = 0, **how: Any) -> Fit:
        return fit_group(group, self.rank, seed=start_seed, **how)

    def options(self) -> dict[str, Any]:
        """As `Configured.options`."""
        return {"rank": self.rank}


class CPParts(NamedTuple):
    """The convolutions of the chain."""

    input: Geometry
    rows: Geometry | None
    columns: Geometry | None
    output: Geometry


def cp_parts(geometry: Geometry, rank: int) -> CPParts:
    """The convolutions that a `CPConv2d` of this rank is made of."""
    groups, (h, w) = geometry.groups, geometry.kernel_size
    inner = rank * groups
    depthwise = geometry._replace(in_channels=inner, out_channels=inner, groups=inner)
    output = Geometry(inner, geometry.out_channels, groups=groups)
    if (h, w) == (1, 1):
        return CPParts(geometry._replace(out_channels=inner), None, None, output)
    input = Geometry(geometry.in_channels, inner, groups=groups)
    if w == 1:
        return CPParts(input, depthwise, None, output)
    if h == 1:
        return CPParts(input, None, depthwise, output)
    return CPParts(input, depthwise.one_way(0), depthwise.one_way(1), output)


def cp_weights(geometry: Geometry, rank: int) -> int:
    """Entries of all factors together, proportional to the rank."""
    return sum(part.weights for part in cp_parts(geometry, rank) if part is not None)


def uniform_ranks(geometry: Geometry) -> range:
    """The ranks at which the layer gets smaller."""
    if not geometry.weights:
        return range(0)
    return range(1, (geometry.weights - 1) // cp_weights(geometry, 1) + 1)


def fit_group(
    group: Group, rank: int, *, starts: int, seed: int, max_sweeps: int, tolerance: float
) -> Fit:
    """Weights of the parts that approximate one group's."""
    weight, second_moment, sensitivity = group
    h, w = weight.shape[2:]
    if (h, w) == (1, 1):
        pair = decompose.svd(weight, rank, second_moment=second_moment, sensitivity=sensitivity)
        return Fit((pair.right, pair.left), pair.relative_error)
    factors = decompose.cp(
        weight,
        rank,
        second_moment=second_moment,
        sensitivity=sensitivity,
        starts=starts,
        seed=seed,
        max_sweeps=max_sweeps,
        tolerance=tolerance,
    )
    rows, columns = factors.rows.mT, factors.columns.mT
    spatial = (rows, columns) if h > 1 and w > 1 else (rows * columns,)
    return Fit((factors.inputs.mT, *spatial, factors.outputs), factors.relative_error)


def _resolved_rank(
    owner: str, geometry: Geometry, bias: bool, rank: int | None, rate: float | None
) -> int:
    full = min(geometry.patch, geometry.group_outputs * prod(geometry.kernel_size))
    return resolved_rank(
        owner,
        geometry,
        bias,
        rank,
        rate,
        full=full,
        ranks=uniform_ranks(geometry),
        weights=partial(cp_weights, geometry),
    )
