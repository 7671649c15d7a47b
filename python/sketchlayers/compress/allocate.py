"""From a budget of parameters to one rank for each layer. Whole numbers only; no tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Ranks = dict[str, int | None]
"""The rank of each layer by name; None for a layer that stays dense."""

_BISECTIONS = 60


@dataclass(frozen=True)
class Choices:
    """The sizes that one layer can have.

    Attributes:
        name: of the layer.
        dense: its parameters as it is.
        largest_rank: of a replacement with fewer parameters; at least 1.
        parameters: parameters of the replacement at a rank; increasing.
    """

    name: str
    dense: int
    largest_rank: int
    parameters: Callable[[int], int]

    def at(self, rank: int | None) -> int:
        """Parameters of the layer at a rank; None for the dense layer."""
        return self.dense if rank is None else self.parameters(rank)

    def nearest(self, rate: float) -> int | None:
        """The rank whose parameters come nearest to ``rate`` times the dense ones."""
        target = rate * self.dense
        low, high = 0, self.largest_rank + 1  # parameters(low) <= target < parameters(high)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.parameters(middle) <= target else (low, middle)
        if low == 0:
            return 1
        above = self.larger(low)
        return low if target - self.at(low) <= self.at(above) - target else above

    def larger(self, rank: int) -> int | None:
        """The next larger size."""
        return rank + 1 if rank < self.largest_rank else None

    def smaller(self, rank: int | None) -> int | None:
        """The next smaller size; the smallest one is its own."""
        return self.largest_rank if rank is None else max(1, rank - 1)


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


def total(layers: Sequence[Choices], ranks: Mapping[str, int | None]) -> int:
    """Parameters of the layers together."""
    return sum(layer.at(ranks[layer.name]) for layer in layers)


def smallest(layers: Sequence[Choices]) -> int:
    """Parameters of the layers together when each has rank 1."""
    return sum(layer.parameters(1) for layer in layers)


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
