"""CP: a convolution as 1x1, h x 1, 1 x w and 1x1 ones (Lebedev et al., ICLR 2015, 1412.6553)."""

from __future__ import annotations

from math import prod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from sketchlayers import decompose
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn._groups import Group
from sketchlayers.nn._layer import Conv2dLayer, Factory, stands_for_dense
from sketchlayers.nn.factored._layer import FactoredLayer, Fit, convolution

_DOCUMENTED_FIT = """\
            init: ``"fit"`` approximates the weight (`sketchlayers.decompose.cp`; the global optimum
                `sketchlayers.decompose.svd` for a 1x1 kernel), ``"random"`` starts as a new layer.
            seed: of the starts of the fit (``None`` is 0) or of the random start (``None`` draws
                from PyTorch's generator).
            start: a layer of this class and rank, fitted to a similar weight, from which the fit
                goes on; in place of ``starts``.
            starts: of the fit, of which the best is kept.
            max_sweeps: of each start.
            tolerance: change of the relative error at which the fit ends.
"""


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
        rank: ``R``, at most ``h w min(S, T)``, which is enough for every weight.

    Example:
        >>> layer = CPConv2d(96, 192, 3, padding=1, rank=120)
        >>> layer(torch.randn(8, 96, 16, 16)).shape
        torch.Size([8, 192, 16, 16])
    """

    _fit_options: ClassVar[dict[str, Any]] = {
        "seed": None,
        "start": None,
        "starts": 4,
        "max_sweeps": 240,
        "tolerance": 1e-6,
    }
    _documented_fit = _DOCUMENTED_FIT

    def _construct(
        self, bias: bool, factory: Factory, *, rank: int | None = None, rate: float | None = None
    ) -> None:
        nn.Module.__init__(self)
        geometry = Geometry.of(self)
        full = min(geometry.patch, geometry.group_outputs * prod(geometry.kernel_size))
        self.rank = self._checked_rank(rank, rate, bias, full, cp_weights(geometry, 1))
        parts = cp_parts(geometry, self.rank)
        # Absent parts are modules too, so that no other code takes them for attributes of a user.
        self.rows: nn.Conv2d | None
        self.columns: nn.Conv2d | None
        self.input = convolution(parts.input, False, factory)
        self.add_module("rows", parts.rows and convolution(parts.rows, False, factory))
        self.add_module("columns", parts.columns and convolution(parts.columns, False, factory))
        self.output = convolution(parts.output, bias, factory)
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
        filters: Tensor = self._weight_of(self.input)
        for part in (self.rows, self.columns):
            if part is not None:
                filters = filters * self._weight_of(part)
        by_group = filters.unflatten(0, (self.groups, self.rank))
        outputs = self._weight_of(self.output).unflatten(0, (self.groups, -1))[..., 0, 0]
        return torch.einsum("gtr,grshw->gtshw", outputs, by_group).flatten(0, 1)

    def _starts(self) -> list[tuple[Tensor, ...]]:
        inputs, *spatial, outputs = (
            self._weight_of(part).detach().unflatten(0, (self.groups, -1)).flatten(2)
            for part in self.parts()
        )
        kernel = [
            next(axes) if size > 1 else outputs.new_ones(self.groups, self.rank, 1)
            for axes in [iter(spatial)]
            for size in self.kernel_size
        ]
        factors = (outputs, inputs.mT, *(part.mT for part in kernel))
        return list(zip(*factors, strict=True))

    def _fit_group(self, group: Group, *, seed: int | None = None, **how: Any) -> Fit:
        h, w = self.kernel_size
        if (h, w) == (1, 1):
            pair = decompose.svd(group.weight, self.rank, **group.norm)
            return Fit((pair.right, pair.left), pair.relative_error)
        factors = decompose.cp(group.weight, self.rank, **group.norm, seed=seed or 0, **how)
        outputs, inputs, *kernel = factors.factors
        rows, columns = (part.mT for part in kernel)
        spatial = (rows, columns) if h > 1 and w > 1 else (rows * columns,)
        return Fit((inputs.mT, *spatial, outputs), factors.relative_error)


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
