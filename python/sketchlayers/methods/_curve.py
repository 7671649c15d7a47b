"""Error over size: measured at a few ranks of a method, interpolated at the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor, nn

from sketchlayers.methods._rank import Candidate, Rank

if TYPE_CHECKING:
    from sketchlayers.methods._method import Method

FITTED = 8
"""How many ranks are fitted for a curve."""
LISTED = 64
"""How many ranks a curve lists at most."""
_EXACT = 1e-14  # squared; below it is rounding, whose logarithm is not to be interpolated

T = TypeVar("T")


def spread(ranks: Sequence[T], count: int = FITTED) -> list[T]:
    """At most ``count`` members of a family, both ends among them, denser where it is small."""
    last = len(ranks) - 1
    if last < count:
        return list(ranks)
    steps = {round((last + 1) ** (step / (count - 1))) - 1 for step in range(count)}
    return [ranks[index] for index in sorted(steps)]


def interpolated(method: Method, layer: nn.Module, errors: Mapping[Rank, float]) -> list[Candidate]:
    """Candidates of the uniform family from the squared errors of some of its ranks.

    Between two known ranks the logarithm of the error is linear in the parameters. Errors that
    rise with the rank, as those of a fit that has not converged may, count as those before.
    """
    known = sorted((method.parameters(layer, rank), error) for rank, error in errors.items())
    lowest = math.inf
    points = []
    for parameters, error in known:
        lowest = min(lowest, error)
        points.append((parameters, math.log(max(lowest, _EXACT))))
    candidates = []
    for rank in _thinned(method.ranks(layer), errors):
        parameters = method.parameters(layer, rank)
        candidates.append(Candidate(rank, parameters, math.exp(_line(points, parameters))))
    return candidates


def squared_error(
    layer: nn.Module,
    weight: Tensor,
    second_moment: Tensor | None = None,
    sensitivity: Tensor | None = None,
) -> float:
    """``tr(F D Sigma D^T) / tr(F W Sigma W^T)`` with ``D = W - weight``, summed over the groups.

    Args:
        layer: the layer with the weight ``W``.
        weight: of the same shape.
        second_moment: Sigma of `Method.build`.
        sensitivity: F of `Method.build`.
    """
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    dense = layer.get_parameter("weight").detach().double()
    change = dense - weight.detach().double()

    def size(matrix: Tensor) -> float:
        matrix = matrix.reshape(groups, len(matrix) // groups, -1)
        image = matrix
        if second_moment is not None:
            image = image @ second_moment.to(matrix)
        if sensitivity is not None:
            image = _weighted(sensitivity.to(matrix), image)
        return float((matrix * image).sum().clamp_min(0))

    before, after = size(dense), size(change)
    if before == 0:
        return 0.0 if after == 0 else math.inf
    return after / before


def _weighted(sensitivity: Tensor, image: Tensor) -> Tensor:
    """``F`` times ``(groups, T, n)``; F is ``(groups T,)``, ``(groups, T)`` or a matrix a group."""
    groups, outputs, _ = image.shape
    if sensitivity.shape in {(groups, outputs, outputs), (outputs, outputs)} and not (
        groups > 1 and sensitivity.dim() == 2
    ):
        return sensitivity @ image
    return sensitivity.reshape(groups, outputs, 1) * image


def _thinned(ranks: Sequence[Rank], fitted: Mapping[Rank, float]) -> list[Rank]:
    """At most `LISTED` ranks of a family, evenly spread, and those that were fitted."""
    step = math.ceil(len(ranks) / LISTED)
    listed = {*range(0, len(ranks), step), *(ranks.index(rank) for rank in fitted)}
    return [ranks[index] for index in sorted(listed)]


def _line(points: Sequence[tuple[int, float]], x: int) -> float:
    """The piecewise linear function through the points, between the first and the last of them."""
    for (left, low), (right, high) in pairwise(points):
        if x <= right:
            return low + (high - low) * (x - left) / (right - left)
    return points[-1][1]
