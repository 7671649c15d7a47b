"""From a budget to one rank for each layer. Numbers only; no tensors."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sketchlayers.methods import Method, Rank

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
        cost: what the budget counts at a rank, None for the dense layer; None: the parameters.
    """

    name: str
    dense: int
    ranks: Sequence[Rank]
    parameters: Callable[[Rank], int]
    cost: Callable[[Rank | None], float] | None = None

    def at(self, rank: Rank | None) -> float:
        """Returns what the budget counts at a rank; None for the dense layer."""
        if self.cost is not None:
            return self.cost(rank)
        return self.dense if rank is None else self.parameters(rank)

    def nearest(self, rate: float) -> Rank | None:
        """Returns the rank whose parameters come nearest to ``rate`` times the dense ones."""
        target = rate * self.dense
        above = bisect_right(self.ranks, target, key=self.parameters)
        if above == 0:
            return self.ranks[0]
        low = self.ranks[above - 1]
        high = self.larger(low)
        high_size = self.dense if high is None else self.parameters(high)
        return low if target - self.parameters(low) <= high_size - target else high

    def larger(self, rank: Rank) -> Rank | None:
        """Returns the next larger size."""
        above = self.ranks.index(rank) + 1
        return self.ranks[above] if above < len(self.ranks) else None

    def smaller(self, rank: Rank | None) -> Rank | None:
        """Returns the next smaller size; the smallest one is its own."""
        if rank is None:
            return self.ranks[-1]
        return self.ranks[max(0, self.ranks.index(rank) - 1)]


def uniform(layers: Sequence[Choices], budget: float) -> Ranks:
    """Chooses ranks of one common rate, together as near to the budget as whole ranks allow.

    The common rate is found by bisection. Then single layers go one size up or down, each time the
    one that brings the sum nearest to the budget, until none does; no layer ends more than one size
    away from the common rate.

    Args:
        layers: the sizes that each layer can have.
        budget: cost of all these layers together.
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


def total(layers: Sequence[Choices], ranks: Mapping[str, Rank | None]) -> float:
    """Returns the cost of the layers together."""
    return sum(layer.at(ranks[layer.name]) for layer in layers)


def _refine(layers: Sequence[Choices], ranks: Ranks, budget: float) -> Ranks:
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


@dataclass(frozen=True)
class Option:
    """One thing that a layer could become.

    Attributes:
        method: None for the dense layer.
        rank: None for the dense layer.
        cost: what the budget counts.
        damage: what it is expected to do to the network; 0 for the dense layer.
        bits: that its numbers are rounded to; None: they stay.
    """

    method: Method | None
    rank: Rank | None
    cost: float
    damage: float
    bits: int | None = None


def least_damage(layers: Mapping[str, Sequence[Option]], budget: float) -> dict[str, Option]:
    """Chooses one option for each layer, of the least total damage that the budget allows.

    For a price of one unit of cost, each layer takes the option with the least damage plus price
    times cost; the lowest price at which all fit is found by bisection. What the budget leaves
    then goes to single layers, each time where it saves the most damage.

    Args:
        layers: by name, the options of each; the cheapest ones together must fit the budget.
        budget: cost of all layers together.
    """
    front = {name: _front(options) for name, options in layers.items()}

    def at(price: float) -> dict[str, Option]:
        return {
            name: min(options, key=lambda option: option.damage + price * option.cost)
            for name, options in front.items()
        }

    free = at(0.0)
    if _cost(free) <= budget:
        return free
    low, high = _prices(front)
    for _ in range(_BISECTIONS):
        middle = math.sqrt(low * high)
        if _cost(at(middle)) <= budget:
            high = middle
        else:
            low = middle
    chosen = at(high)
    if _cost(chosen) > budget:  # rounding at the end of the scale
        chosen = {name: options[0] for name, options in front.items()}
    return _spend_the_rest(front, chosen, budget)


def _front(options: Sequence[Option]) -> list[Option]:
    """Options with less damage than all that cost no more, from the cheapest on."""
    kept: list[Option] = []
    for option in sorted(options, key=lambda one: (one.cost, one.damage)):
        if not kept or option.damage < kept[-1].damage:
            kept.append(option)
    return kept


def _prices(front: Mapping[str, Sequence[Option]]) -> tuple[float, float]:
    """Prices at which every layer takes its dearest option, and its cheapest."""
    slopes = [
        (first.damage - second.damage) / (second.cost - first.cost)
        for options in front.values()
        for i, first in enumerate(options)
        for second in options[i + 1 :]
    ]
    return (min(slopes) / 2, max(slopes) * 2) if slopes else (1.0, 1.0)


def _spend_the_rest(
    front: Mapping[str, Sequence[Option]], chosen: dict[str, Option], budget: float
) -> dict[str, Option]:
    left = budget - _cost(chosen)
    while True:
        better = [
            (chosen[name].damage - option.damage, name, option)
            for name, options in front.items()
            for option in options
            if option.damage < chosen[name].damage and option.cost - chosen[name].cost <= left
        ]
        if not better:
            return chosen
        _, name, option = max(better, key=lambda move: move[0])
        left -= option.cost - chosen[name].cost
        chosen = {**chosen, name: option}


def _cost(chosen: Mapping[str, Option]) -> float:
    return sum(option.cost for option in chosen.values())
