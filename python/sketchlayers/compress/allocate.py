"""From a budget of parameters to one rank for each layer. Whole numbers only; no tensors."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sketchlayers.methods import Rank

Ranks = dict[str, Rank | None]
"""The rank of each layer by name; None for a layer that stays dense."""

_BISECTIONS = 60


@dataclass(frozen=True)
class Choices:
    """The sizes that one layer can have.

    Attributes:
        name: of the layer.
        dense: its parameters as it is.
        ranks: of replacements with fewer parameters, from the smallest to the largest; at least 1.
        parameters: parameters of the replacement at a rank; increasing.
    """

    name: str
    dense: int
    ranks: Sequence[Rank]
    parameters: Callable[[Rank], int]

    def at(self, rank: Rank | None) -> int:
        """Parameters of the layer at a rank; None for the dense layer."""
        return self.dense if rank is None else self.parameters(rank)

    def nearest(self, rate: float) -> Rank | None:
        """The rank whose parameters come nearest to ``rate`` times the dense ones."""
        target = rate * self.dense
        above = bisect_right(self.ranks, target, key=self.parameters)
        if above == 0:
            return self.ranks[0]
        low = self.ranks[above - 1]
        high = self.larger(low)
        return low if target - self.at(low) <= self.at(high) - target else high

    def larger(self, rank: Rank) -> Rank | None:
        """The next larger size."""
        above = self.ranks.index(rank) + 1
        return self.ranks[above] if above < len(self.ranks) else None

    def smaller(self, rank: Rank | None) -> Rank | None:
        """The next smaller size; the smallest one is its own."""
        if rank is None:
            return self.ranks[-1]
        return self.ranks[max(0, self.ranks.index(rank) - 1)]


def uniform(layers: Sequence[Choices], budget: int) -> Ranks:
    """Ranks of one common rate, together as near to the budget as whole ranks allow.

    The common rate is found by bisection. Then single layers go one size up or down, each time the
    one that brings the sum nearest to the budget, until none does; no layer ends more than one size
    away from the common rate.

    Args:
        layers: the sizes that each layer can have.
        budget: parameters of all these layers together.
    """

    def ranks_at(rate: float) -> Ranks:
        return {layer.name: layer.nearest(rate) for layer in layers}

    low, high = 0.0, 1.0
    if total(layers, ranks_at(high)) <= budget:
        low = high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if total(layers, ranks_at(middle)) <= budget:
            low = middle
        else:
            high = middle
    return _refine(layers, ranks_at(low), budget)


def total(layers: Sequence[Choices], ranks: Mapping[str, Rank | None]) -> int:
    """Parameters of the layers together."""
    return sum(layer.at(ranks[layer.name]) for layer in layers)


def smallest(layers: Sequence[Choices]) -> int:
    """Parameters of the layers together when each has its smallest rank."""
    return sum(layer.parameters(layer.ranks[0]) for layer in layers)


def _refine(layers: Sequence[Choices], ranks: Ranks, budget: int) -> Ranks:
    ranks = dict(ranks)
    missing = budget - total(layers, ranks)
    untouched = list(layers)
    while untouched and missing != 0:
        moves = []
        for layer in untouched:
            rank = ranks[layer.name]
            other = layer.smaller(rank) if missing < 0 or rank is None else layer.larger(rank)
            moves.append((abs(missing - layer.at(other) + layer.at(rank)), layer, other))
        error, layer, other = min(moves, key=lambda move: move[0])
        if error >= abs(missing):
            break
        missing -= layer.at(other) - layer.at(ranks[layer.name])
        ranks[layer.name] = other
        untouched.remove(layer)
    return ranks
