"""Tucker-2 in the norm of the outputs (Kalle et al., NeurIPS 2025, arXiv 2511.04494)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sketchlayers import decompose
from sketchlayers.decompose._separable import SMALL_PATCH
from sketchlayers.methods._curve import front_of, squared_errors
from sketchlayers.methods._factored import MOST_INPUTS, Factored, Parts
from sketchlayers.methods._method import register
from sketchlayers.methods._rank import Candidate, Rank, one_number
from sketchlayers.methods._work import Work
from sketchlayers.nn._checks import number_above, whole_number
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn._groups import Group
from sketchlayers.nn.factored.tucker import checked_ranks, tucker_parts, uniform_ranks

_INPUT_SHARES = (0.05, 0.1, 0.17, 0.26, 0.38, 0.52, 0.7, 0.85, 1.0)
"""Input ranks that a curve is fitted at, as fractions of the largest useful one."""
_INPUT_SHARES_OF_LARGE = (0.05, 0.12, 0.26, 0.45, 0.7)
"""The same in large layers; the largest one is left out, which takes longest."""
_SWEEPS, _SWEEPS_OF_LARGE = 4, 2
"""Sweeps of these fits, small and large layers: within 5 and 10 % of the final squared error."""
_STEEPEST = 0.1
"""Smallest ratio of neighbouring squared errors that interpolation follows, against outliers."""
_LISTED = 200
"""Candidates that a curve has at most."""


@register("tucker2")
@dataclass(frozen=True, kw_only=True)
class Tucker2(Factored):
    """``W[t, s, p] = sum_ab U_T[t, a] G[a, b, p] U_S[s, b]``: 1x1, h x w and 1x1 convolutions.

    The rank of a convolution is ``(RS, RT)``, None where a side has no factor. A 1x1 convolution
    becomes two, of rank ``(None, RT)``, and a linear layer two of rank ``RT``: nothing of three
    factors is closer, and these are the global optimum. Every group of a grouped convolution has
    the same rank.

    Attributes:
        max_sweeps: over the factors, of a fit.
        tolerance: change of the relative error at which a fit ends. Ending at 1e-6 lowers the error
            by 0.03 % in layers of a ResNet-18, in three to five times the time.
    """

    _most_inputs: ClassVar[int | None] = MOST_INPUTS

    max_sweeps: int = 100
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "max_sweeps", whole_number("Tucker2", "max_sweeps", self.max_sweeps)
        )
        tolerance = number_above("Tucker2", "tolerance", self.tolerance, 0)
        object.__setattr__(self, "tolerance", tolerance)

    def ranks(self, layer: nn.Module) -> Sequence[Rank]:
        """See `Method.ranks`."""
        if isinstance(layer, nn.Linear):
            return super().ranks(layer)
        return uniform_ranks(Geometry.of(layer))

    def _parts(self, layer: nn.Module, rank: Rank) -> Parts:
        geometry = Geometry.of(layer)
        if isinstance(layer, nn.Linear):
            return tucker_parts(geometry, (None, one_number("Tucker2", rank)))
        return tucker_parts(geometry, checked_ranks("Tucker2", geometry, rank))

    def _arguments(self, layer: nn.Module, rank: Rank) -> dict[str, Any]:
        if isinstance(layer, nn.Linear):
            return super()._arguments(layer, rank)
        return {"ranks": checked_ranks("Tucker2", Geometry.of(layer), rank), **self.options()}

    def iterates(self, layer: nn.Module) -> bool:
        """See `Method.iterates`."""
        return Geometry.of(layer).taps > 1

    def curve(self, layer: nn.Module, **norm: Tensor | None) -> list[Candidate]:
        """See `Method.curve`: the best pairs of an input and an output rank.

        Input factors are fitted at about ten ranks, each of which tells the errors at all output
        ranks; between them the logarithm of the error is linear in the input rank.
        """
        geometry = Geometry.of(layer)
        if geometry.taps == 1:
            return super().curve(layer, **norm)
        channels, outputs = geometry.group_inputs, geometry.group_outputs
        sizes = _sizes(geometry)
        dense = geometry.weights
        useful = int((sizes[:, -1] < dense).sum())  # input ranks, where outputs have no factor
        shares, sweeps = _effort(geometry)
        inputs = sorted({max(1, round(share * useful)) for share in shares})
        inputs = [rank for rank in inputs if 0 < rank < channels]

        def errors(group: Group) -> Tensor:
            ranks = [*inputs, None]
            return decompose.tucker2_errors(group.weight, ranks, **group.norm, sweeps=sweeps)

        squares = squared_errors(layer, norm, errors)[:, 1:]
        squares = _every_row(squares.cpu(), [*inputs, channels])
        front = front_of(sizes.flatten().tolist(), squares.flatten().tolist(), below=dense)
        candidates = []
        for place in front[:: ceil(len(front) / _LISTED) or 1]:
            row, column = divmod(place, outputs)
            ranks = (
                None if row + 1 == channels else row + 1,
                None if column + 1 == outputs else column + 1,
            )
            error = float(squares[row, column])
            candidates.append(Candidate(ranks, self.parameters(layer, ranks), error))
        return candidates

    def fit_work(self, layer: nn.Module) -> Work:
        """See `Method.fit_work`: about ten sweeps."""
        return _sweep(layer, 0.5).times(10) if self.iterates(layer) else super().fit_work(layer)

    def curve_work(self, layer: nn.Module) -> Work:
        """See `Method.curve_work`: a few sweeps at each input rank."""
        if not self.iterates(layer):
            return super().curve_work(layer)
        shares, sweeps = _effort(Geometry.of(layer))
        return _sweep(layer, 0.35).times(len(shares) * sweeps)


def _effort(geometry: Geometry) -> tuple[tuple[float, ...], int]:
    """Input ranks that a curve is fitted at, as shares of the largest useful one, and sweeps."""
    if geometry.patch > SMALL_PATCH:
        return _INPUT_SHARES_OF_LARGE, _SWEEPS_OF_LARGE
    return _INPUT_SHARES, _SWEEPS


def _sweep(layer: nn.Module, share: float) -> Work:
    """A sweep with this share of the inputs."""
    sizes = Geometry.of(layer)
    inputs, outputs, rank = sizes.patch, sizes.group_outputs, share * sizes.group_inputs
    core = sizes.taps * rank
    moment = 2 * inputs**2 * rank + 2 * inputs * core * rank
    solved = core**3 / 3 + 2 * outputs * core**2 + 4 * outputs * inputs * core
    return Work(sizes.groups * (moment + solved), sizes.groups)


def _every_row(squares: Tensor, known: list[int]) -> Tensor:
    """All rows from those numbered ``known`` from 1; geometric interpolation between them."""
    rows = torch.arange(1, known[-1] + 1, dtype=squares.dtype)
    places = torch.tensor(known, dtype=squares.dtype)
    above = torch.searchsorted(places, rows).clamp(max=len(known) - 1)
    below = (above - 1).clamp(min=0)
    part = ((rows - places[below]) / (places[above] - places[below]).clamp(min=1)).clamp(max=1)
    part, low, high = part[:, None], squares[below], squares[above]
    # Inputs of fewer dimensions than channels make the error fall off a cliff, anywhere between.
    between = low * (high / low).clamp(min=_STEEPEST) ** part
    return torch.where(part == 1, high, torch.where(low > 0, between, low))


def _sizes(geometry: Geometry) -> Tensor:
    """Entries of all factors for every input and output rank; a whole side has no factor."""
    channels, outputs = geometry.group_inputs, geometry.group_outputs
    taps = geometry.taps
    rows, columns = torch.arange(1, channels + 1)[:, None], torch.arange(1, outputs + 1)
    first = rows * channels * (rows < channels)
    last = columns * outputs * (columns < outputs)
    return geometry.groups * (first + rows * columns * taps + last)
