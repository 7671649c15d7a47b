"""Error over size: measured at a few ranks of a method, interpolated at the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

from sketchlayers.methods._rank import Candidate, Rank
from sketchlayers.nn._geometry import Geometry, ordinary_weight
from sketchlayers.nn._groups import Group, groups_of

_SHARES = (0.0, 0.05, 0.1, 0.18, 0.28, 0.4, 0.55, 0.75, 1.0)
"""Ranks that are fitted for a curve, as fractions of the largest: errors bend where it is small."""
_FEW_SHARES = (0.0, 0.1, 0.3, 0.65)
"""The same for layers whose fits take long, the longest at the largest ranks."""
_LISTED = 64
"""Ranks that a curve lists at most, those that were fitted apart."""
_EXACT = 1e-14
"""Squared relative error below which there is only rounding, whose logarithm means nothing."""

T = TypeVar("T")


def spread(ranks: Sequence[T], *, coarse: bool = False) -> list[T]:
    """Chooses some members of a family, the first among them, denser at its start.

    About ten, both ends among them; or, ``coarse``, four, the largest of them at two thirds.
    """
    last = len(ranks) - 1
    shares = _FEW_SHARES if coarse else _SHARES
    places = {round(share * last) for share in shares} if ranks else set()
    return [ranks[place] for place in sorted(places)]


def interpolated(
    ranks: Sequence[Rank], parameters: Callable[[Rank], int], errors: Mapping[Rank, float]
) -> list[Candidate]:
    """Candidates of the uniform family from the squared errors of some of its ranks.

    Between two known ranks, and beyond the last one, the logarithm of the error is linear in the
    parameters. Errors that rise with the rank, as those of a fit that has not converged may, count
    as those before.

    Args:
        ranks: the uniform family.
        parameters: of the replacement at a rank.
        errors: squared relative errors at some of the ranks, the first among them.
    """
    if not errors:
        return []
    known = sorted((parameters(rank), error) for rank, error in errors.items())
    lowest = math.inf
    points = []
    for size, error in known:
        lowest = min(lowest, error)
        points.append((size, math.log(max(lowest, _EXACT))))
    candidates = []
    for rank in _thinned(ranks, errors):
        size = parameters(rank)
        candidates.append(Candidate(rank, size, math.exp(_line(points, size))))
    return candidates


def front_of(sizes: Sequence[int], errors: Sequence[float], *, below: int) -> list[int]:
    """Places of those that have less error than all others of no more size, by increasing size.

    Args:
        sizes: of everything there is to choose from.
        errors: of the same.
        below: what the sizes must be below.
    """
    front: list[int] = []
    for place in sorted(range(len(sizes)), key=lambda place: (sizes[place], errors[place])):
        if sizes[place] < below and (not front or errors[place] < errors[front[-1]]):
            front.append(place)
    return front


def squared_error(layer: nn.Module, weight: Tensor, norm: Mapping[str, Tensor | None]) -> float:
    """Returns ``tr(F D Sigma D^T) / tr(F W Sigma W^T)``, ``D = W - weight``, over all groups.

    Args:
        layer: the layer with the weight ``W``.
        weight: of a layer of the same sizes, as `ordinary_weight` gives it.
        norm: second moment and sensitivity, as for `Method.build`.
    """
    dense = ordinary_weight(layer).detach().double()

    def size(weight: Tensor) -> float:
        groups = groups_of("curve", weight, Geometry.of(layer).groups, **norm)
        return sum(group.square for group in groups)

    before, after = size(dense), size(dense - weight.detach().double())
    if before == 0:
        return 0.0 if after == 0 else math.inf
    return after / before


def squared_errors(
    layer: nn.Module, norm: Mapping[str, Tensor | None], errors: Callable[[Group], Tensor]
) -> Tensor:
    """Computes squared relative errors of a layer from the errors of its groups.

    Args:
        layer: a convolution or a linear layer.
        norm: second moment and sensitivity, as for `Method.build`.
        errors: relative errors of one group, in the norm of both.
    """
    weight = ordinary_weight(layer).detach()
    groups = list(groups_of("curve", weight, Geometry.of(layer).groups, **norm))
    if len(groups) == 1:
        return errors(groups[0]).square()
    sizes = [group.square for group in groups]
    squares = [
        size * errors(group).square() for group, size in zip(groups, sizes, strict=True) if size
    ]
    return torch.stack(squares).sum(0) / sum(sizes) if squares else 0 * errors(groups[0])


def _thinned(ranks: Sequence[Rank], fitted: Mapping[Rank, float]) -> list[Rank]:
    """At most `_LISTED` ranks of a family, evenly spread, and those that were fitted."""
    step = math.ceil(len(ranks) / _LISTED)
    listed = {*range(0, len(ranks), step), *(ranks.index(rank) for rank in fitted)}
    return [ranks[index] for index in sorted(listed)]


def _line(points: Sequence[tuple[int, float]], x: int) -> float:
    """The piecewise linear function through the points, from the first of them on."""
    if len(points) == 1:
        return points[0][1]
    pairs = list(pairwise(points))
    (left, low), (right, high) = next((pair for pair in pairs if x <= pair[1][0]), pairs[-1])
    return low + (high - low) * (x - left) / (right - left)
