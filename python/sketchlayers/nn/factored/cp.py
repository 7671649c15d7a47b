"""CP: a convolution as 1x1, h x 1, 1 x w and 1x1 ones (Lebedev et al., ICLR 2015, 1412.6553)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from sketchlayers import decompose
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn._groups import Group
from sketchlayers.nn._layer import Conv2dLayer, Factory, stands_for_dense
from sketchlayers.nn.factored._conv import FactoredConv, convolution, sizes_along
from sketchlayers.nn.factored._fused import Chain, OnePassConv2d
from sketchlayers.nn.factored._layer import Fit, chain_multiply_adds

MOST_TAPS = 36
"""Of a depthwise filter that is multiplied out of its rows and columns for one operator."""

AXES = ("planes", "rows", "columns")
"""Names of the depthwise parts; those of fewer axes have the last ones."""

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


class CPConv(FactoredConv):
    """A convolution of any number of axes whose weight is a CP decomposition."""

    _fit_options: ClassVar[dict[str, Any]] = {
        "seed": None,
        "start": None,
        "starts": 4,
        "max_sweeps": 240,
        "tolerance": 1e-6,
    }
    _documented_fit = _DOCUMENTED_FIT
    if TYPE_CHECKING:  # None in classes of fewer axes, and a constant for TorchScript there
        planes: Any
        rows: Any
        columns: Any

    def _construct(
        self, bias: bool, factory: Factory, *, rank: int | None = None, rate: float | None = None
    ) -> None:
        nn.Module.__init__(self)
        geometry = Geometry.of(self)
        full = min(geometry.patch, geometry.group_outputs * geometry.taps)
        self.rank = self._checked_rank(rank, rate, bias, full, cp_weights(geometry, 1))
        parts = cp_parts(geometry, self.rank)
        # Absent parts are modules too, so that no other code takes them for attributes of a user.
        self.input = convolution(parts.input, False, factory)
        for name, part in zip(AXES[-self._axes :], parts.kernel, strict=True):
            self.add_module(name, part and convolution(part, False, factory))
        self.output = convolution(parts.output, bias, factory)
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(N, in, *size)`` or ``(in, *size)``."""
        if not torch.jit.is_scripting():
            fused = self._in_one_pass(input)
            if fused is not None:
                return fused
        input = self.input(input)
        if self.planes is not None:
            input = self.planes(input)
        if self.rows is not None:
            input = self.rows(input)
        if self.columns is not None:
            input = self.columns(input)
        return self.output(input)

    def _product(self) -> Tensor:
        first, *kernel, last = self.parts()
        filters = self._ordinary(first)
        for part in kernel:
            filters = filters * self._ordinary(part)
        by_group = filters.unflatten(0, (self.groups, self.rank))
        outputs = self._by_group(last).flatten(2)
        return torch.einsum("gtr,grs...->gts...", outputs, by_group).flatten(0, 1)

    def _starts(self) -> list[tuple[Tensor, ...]]:
        inputs, *spatial, outputs = (
            self._by_group(part).detach().flatten(2) for part in self.parts()
        )
        kernel = [
            next(axes) if size > 1 else outputs.new_ones(self.groups, self.rank, 1)
            for axes in [iter(spatial)]
            for size in self.kernel_size
        ]
        factors = (outputs, inputs.mT, *(part.mT for part in kernel))
        return list(zip(*factors, strict=True))

    def _fit_group(self, group: Group, *, seed: int | None = None, **how: Any) -> Fit:
        if math.prod(self.kernel_size) == 1:
            pair = decompose.svd(group.weight, self.rank, **group.norm)
            return Fit((pair.right, pair.left), pair.relative_error)
        fitted = decompose.cp(group.weight, self.rank, **group.norm, seed=seed or 0, **how)
        outputs, inputs, *kernel = (factor.mT for factor in fitted.factors)
        # A factor of one position is part of another.
        single = [part for part in kernel if part.shape[1] == 1]
        first, *others = [part for part in kernel if part.shape[1] > 1]
        filters = (math.prod(single, start=first), *others)
        return Fit((inputs, *filters, outputs.mT), fitted.relative_error)


class CPConvTranspose(CPConv):
    """A transposed convolution whose weight is a CP decomposition."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Convolve ``(N, in, *size)`` or ``(in, *size)``; the size is as of PyTorch's layer."""
        if output_size is None:
            return super().forward(input)
        wanted = output_size[-self._axes :]
        *parts, last = self.parts()
        for part, axes in zip(parts, _axes_of_parts(self.kernel_size), strict=True):
            input = part(input, sizes_along(axes, wanted, input)) if axes else part(input)
        return last(input)


@stands_for_dense
class CPConv2d(OnePassConv2d, Conv2dLayer, CPConv):
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

    planes = None
    __constants__: ClassVar[list[str]] = ["planes"]

    def multiply_adds(self, input_shape: Sequence[int]) -> int:
        """Multiply-adds of a forward call on an input of this shape, without the bias.

        Of a kernel of up to 36 positions ``rows`` and ``columns`` count as their product, by which
        a call on a CPU computes both at once.

        Raises:
            RuntimeError: the shape does not fit the layer.
        """
        parts = cp_parts(Geometry.of(self), self.rank).run
        return chain_multiply_adds(type(self).__name__, self, parts, input_shape)

    def _chain(self) -> Chain | None:
        height, width = self.kernel_size
        if height * width > MOST_TAPS:
            return None
        parts = self._modules
        first, rows, columns, last = (parts[name] for name in ("input", *AXES[1:], "output"))
        if rows is None and columns is None:  # a 1x1 kernel
            return Chain(None, first, None, last)
        if rows is None or columns is None:
            return Chain(first, rows or columns, None, last)
        return Chain(first, rows, columns, last)


class CPParts(NamedTuple):
    """The convolutions of the chain.

    Attributes:
        input: from the input's channels to the components.
        kernel: depthwise, one for each axis of the kernel; None where it has one position.
        output: from the components to the output's channels.
        depthwise: the product of those of an image, rows and columns.
    """

    input: Geometry
    kernel: tuple[Geometry | None, ...]
    output: Geometry
    depthwise: Geometry | None = None

    @property
    def chain(self) -> list[Geometry]:
        """All that there are, in order."""
        return [self.input, *(part for part in self.kernel if part is not None), self.output]

    @property
    def run(self) -> list[Geometry]:
        """What a call computes: depthwise ones of an image are multiplied out, if that is small."""
        if self.depthwise is None or self.depthwise.taps > MOST_TAPS:
            return self.chain
        return [self.input, self.depthwise, self.output]


def cp_parts(geometry: Geometry, rank: int) -> CPParts:
    """The convolutions that a CP layer of this rank is made of."""
    inner = rank * geometry.groups
    output = geometry.pointwise(inner, geometry.out_channels)
    if geometry.taps == 1:
        absent = (None,) * len(geometry.kernel_size)
        return CPParts(geometry._replace(out_channels=inner), absent, output)
    input = geometry.pointwise(geometry.in_channels, inner)
    depthwise = geometry._replace(in_channels=inner, out_channels=inner, groups=inner)
    kernel: list[Geometry | None] = [None] * len(geometry.kernel_size)
    for axes in _axes_of_parts(geometry.kernel_size)[1:]:
        own = next(axis for axis in axes if geometry.kernel_size[axis] > 1)
        kernel[own] = depthwise.along(axes)
    is_image = len(kernel) == 2 and geometry.output_padding is None
    both = depthwise if is_image and None not in kernel else None
    return CPParts(input, tuple(kernel), output, both)


def _axes_of_parts(kernel_size: Sequence[int]) -> list[list[int]]:
    """Which axes of the kernel the parts before the last one have, of the parts that there are.

    An axis of one position, which may have a stride and padding, is the first other one's too, or
    that of the input where there is no other.
    """
    single = [axis for axis, size in enumerate(kernel_size) if size == 1]
    others = [[axis] for axis, size in enumerate(kernel_size) if size > 1]
    if not others:
        return [single]
    others[0] += single
    return [[], *others]


def cp_weights(geometry: Geometry, rank: int) -> int:
    """Entries of all factors together, proportional to the rank."""
    return sum(part.weights for part in cp_parts(geometry, rank).chain)
