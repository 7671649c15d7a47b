"""Tucker-2: a convolution as 1x1, h x w and 1x1 ones (Kim et al., ICLR 2016, 1511.06530)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from sketchlayers import decompose
from sketchlayers.nn._checks import check_one_given, whole_number
from sketchlayers.nn._geometry import DenseConv, Geometry
from sketchlayers.nn._groups import Group
from sketchlayers.nn._layer import Conv2dLayer, Factory, stands_for_dense
from sketchlayers.nn.factored._conv import FactoredConv, convolution
from sketchlayers.nn.factored._fused import Chain, OnePassConv2d
from sketchlayers.nn.factored._layer import Fit

Ranks = tuple[int | None, int | None]

_DOCUMENTED_FIT = """\
            init: ``"fit"`` approximates the weight (`sketchlayers.decompose.tucker2`; the global
                optimum `sketchlayers.decompose.svd` for ``ranks=(None, RT)``), ``"random"`` starts
                as a new layer.
            seed: of the random start; ``None`` draws from PyTorch's generator. A fit has none.
            start: a layer of this class and ranks, fitted to a similar weight, from which the fit
                goes on.
            max_sweeps: of the fit.
            tolerance: change of the relative error at which the fit ends.
"""


class TuckerConv(FactoredConv):
    """A convolution of any number of axes whose weight is a Tucker-2 decomposition."""

    _fit_options: ClassVar[dict[str, Any]] = {
        "seed": None,
        "start": None,
        "max_sweeps": 100,
        "tolerance": 1e-6,
    }
    _documented_fit = _DOCUMENTED_FIT

    def _construct(
        self, bias: bool, factory: Factory, *, ranks: Ranks | None = None, rate: float | None = None
    ) -> None:
        owner = type(self).__name__
        nn.Module.__init__(self)
        geometry = Geometry.of(self)
        check_one_given(owner, "ranks", ranks, rate)
        if ranks is None:
            weights = partial(tucker_weights, geometry)
            self.ranks = self._nearest_rank(rate, bias, uniform_ranks(geometry), weights)
        else:
            self.ranks = checked_ranks(owner, geometry, ranks)
        parts = tucker_parts(geometry, self.ranks)
        # Absent parts are modules too, so that no other code takes them for attributes of a user.
        self.input: DenseConv | None
        self.output: DenseConv | None
        self.add_module("input", parts.input and convolution(parts.input, False, factory))
        self.core = convolution(parts.core, bias and parts.output is None, factory)
        self.add_module("output", parts.output and convolution(parts.output, bias, factory))
        self.reset_parameters()

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``(N, in, *size)`` or ``(in, *size)``."""
        if not torch.jit.is_scripting():
            fused = self._in_one_pass(input)
            if fused is not None:
                return fused
        if self.input is not None:
            input = self.input(input)
        input = self.core(input)
        if self.output is not None:
            input = self.output(input)
        return input

    def _product(self) -> Tensor:
        weight = self._by_group(self.core)
        if self.input is not None:
            inputs = self._by_group(self.input).flatten(2)
            weight = torch.einsum("gab...,gbs->gas...", weight, inputs)
        if self.output is not None:
            outputs = self._by_group(self.output).flatten(2)
            weight = torch.einsum("gas...,gta->gts...", weight, outputs)
        return weight.flatten(0, 1)

    def _starts(self) -> list[Tensor | None]:
        if self.input is None:
            return [None] * self.groups
        return list(self._by_group(self.input).detach().flatten(2))

    def _fit_group(self, group: Group, *, seed: int | None = None, **how: Any) -> Fit:
        return _fit(group, self.ranks, how)


class TuckerConvTranspose(TuckerConv):
    """A transposed convolution whose weight is a Tucker-2 decomposition."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Convolve ``(N, in, *size)`` or ``(in, *size)``; the size is as of PyTorch's layer."""
        if self.input is not None:
            input = self.input(input)
        input = self.core(input, output_size)
        if self.output is not None:
            input = self.output(input)
        return input


@stands_for_dense
class TuckerConv2d(OnePassConv2d, Conv2dLayer, TuckerConv):
    r"""Convolution whose weight is a Tucker-2 decomposition, in place of ``nn.Conv2d``.

    The weight is::

        W[t, s, p] = sum_ab U_T[t, a] G[a, b, p] U_S[s, b],        p over the h w kernel positions

    computed by up to three plain convolutions: ``input`` (1x1, S to RS channels), ``core`` (h x w,
    RS to RT; stride, padding and dilation are here) and ``output`` (1x1, RT to T, with the bias).
    It has ``S RS + h w RS RT + T RT`` parameters and the bias. A side of rank ``None`` has no
    factor, and the core takes its channels as they are: ``ranks=(None, RT)`` is a low-rank
    factorisation of the weight as a ``T x (S h w)`` matrix. With groups each part is grouped, S, T
    and the ranks are those of one group.

    Shapes are those of ``nn.Conv2d``: input ``(N, in, H, W)`` or ``(in, H, W)``. A factor without
    kernel positions commutes with padding of any mode, so the edges are those of the dense layer.

    Args:
        ranks: ``(RS, RT)``, each at most the channels of its side of a group, or ``None``; not both
            ``None``. A rate takes the nearest of `uniform_ranks`.

    Example:
        >>> layer = TuckerConv2d(96, 192, 3, padding=1, ranks=(24, 48))
        >>> layer(torch.randn(8, 96, 16, 16)).shape
        torch.Size([8, 192, 16, 16])
    """

    def _chain(self) -> Chain:
        parts = self._modules
        return Chain(parts["input"], parts["core"], None, parts["output"])


class TuckerParts(NamedTuple):
    """The convolutions of the chain."""

    input: Geometry | None
    core: Geometry
    output: Geometry | None


def tucker_parts(geometry: Geometry, ranks: Ranks) -> TuckerParts:
    """The convolutions that a Tucker layer of these ranks is made of."""
    groups, first, last, core = geometry.groups, None, None, geometry
    inputs, outputs = ranks
    if inputs is not None:
        first = geometry.pointwise(geometry.in_channels, inputs * groups)
        core = core._replace(in_channels=inputs * groups)
    if outputs is not None:
        last = geometry.pointwise(outputs * groups, geometry.out_channels)
        core = core._replace(out_channels=outputs * groups)
    return TuckerParts(first, core, last)


def tucker_weights(geometry: Geometry, ranks: Ranks) -> int:
    """Entries of all factors together."""
    return sum(part.weights for part in tucker_parts(geometry, ranks) if part is not None)


def uniform_ranks(geometry: Geometry) -> list[Ranks]:
    """The ranks ``(beta S, beta T)``, rounded, at which the layer gets smaller, by size.

    A rank is at least 1 and never more than the other side can make use of, ``RS <= h w RT`` and
    ``RT <= h w RS``; one that is a whole side is ``None``. Where another pair has no smaller rank
    on either side and not more parameters, a pair is left out. A 1x1 convolution has the
    factorisations in two, ``(None, RT)``: they hold every weight of a rank with fewer parameters.
    """
    inputs, outputs = geometry.group_inputs, geometry.group_outputs
    taps = geometry.taps
    dense = geometry.weights
    if not dense:
        return []
    if taps == 1:
        largest = (inputs * outputs - 1) // (inputs + outputs)
        return [(None, rank) for rank in range(1, largest + 1)]
    # Where beta S or beta T rounds to the next number, in units of 1 / (2 S T).
    steps = {(2 * rank - 1) * outputs for rank in range(1, inputs + 1)}
    steps |= {(2 * rank - 1) * inputs for rank in range(1, outputs + 1)}
    ranks: list[Ranks] = []
    least = dense
    for step in sorted(steps, reverse=True):
        first, second = (
            max(1, (step + other) // (2 * other)) for other in (outputs, inputs)
        )  # step / (2 S T) * S and * T, halves rounded up
        first, second = min(first, taps * second), min(second, taps * first)
        pair = (
            None if first == inputs else first,
            None if second == outputs else second,
        )
        if pair == (None, None):
            continue
        size = tucker_weights(geometry, pair)
        if size < least:
            least = size
            ranks.append(pair)
    return ranks[::-1]


def checked_ranks(owner: str, geometry: Geometry, ranks: object) -> Ranks:
    """``(RS, RT)``, possible for a layer of this geometry.

    Raises:
        TypeError: anything else than two of int or None.
        ValueError: out of range, or None twice.
    """
    if not isinstance(ranks, Sequence) or isinstance(ranks, str) or len(ranks) != 2:
        raise TypeError(
            f"{owner}: ranks must be two of int or None, for inputs and outputs (got {ranks!r})"
        )
    sides = {
        "inputs": (ranks[0], geometry.group_inputs),
        "outputs": (ranks[1], geometry.group_outputs),
    }
    checked = []
    for side, (rank, channels) in sides.items():
        if rank is not None:
            rank = whole_number(owner, f"rank of the {side}", rank)
            if rank > channels:
                raise ValueError(
                    f"{owner}: rank of the {side} must be at most the {channels} channels of a "
                    f"group (got ranks={tuple(ranks)})"
                )
        checked.append(rank)
    if checked == [None, None]:
        raise ValueError(f"{owner}: ranks must not both be None (got ranks=(None, None))")
    return checked[0], checked[1]


def _fit(group: Group, ranks: Ranks, how: dict[str, Any]) -> Fit:
    inputs, outputs = ranks
    weight = group.weight
    channels, taps = weight.shape[1], weight[0, 0].numel()
    if outputs is not None and outputs > taps * (inputs or channels):
        # More channels than anything can arrive at: they start without input.
        fewer = taps * (inputs or channels)
        fit = _fit(group, (inputs, fewer), how)
        *first, core, output = fit.weights
        core = torch.cat([core, core.new_zeros(outputs - fewer, *core.shape[1:])])
        basis, _ = torch.linalg.qr(output, mode="complete")
        output = torch.cat([output, basis[:, fewer:outputs]], dim=1)
        return Fit((*first, core, output), fit.relative_error)
    if inputs is None and outputs is not None:
        pair = decompose.svd(weight, outputs, **group.norm)
        return Fit((pair.right, pair.left), pair.relative_error)
    factors = decompose.tucker2(weight, ranks, **group.norm, **how)
    sides = (factors.input_factor, factors.core, factors.output_factor)
    return Fit(tuple(side for side in sides if side is not None), factors.relative_error)
