"""Ranks for a budget: whole numbers, checked against exhaustive search and bounds."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from sketchlayers.compression.allocation.allocate import (
    Choices,
    Option,
    least_damage,
    total,
    uniform,
)


def smallest(layers: list[Choices]) -> float:
    return sum(layer.at(layer.ranks[0]) for layer in layers)


def linear(name: str, dense: int, per_rank: int, kept: int = 0) -> Choices:
    """A layer whose replacement has ``kept + rank * per_rank`` parameters."""
    largest = max(1, (dense - 1 - kept) // per_rank)
    return Choices(name, dense, range(1, largest + 1), lambda rank: kept + rank * per_rank)


@st.composite
def networks(draw: st.DrawFn) -> list[Choices]:
    layers = []
    for index in range(draw(st.integers(1, 6))):
        per_rank = draw(st.integers(1, 400))
        kept = draw(st.integers(0, 50))
        dense = kept + per_rank + draw(st.integers(1, 20_000))
        layers.append(linear(str(index), dense, per_rank, kept))
    return layers


@given(networks(), st.floats(0, 1.1))
def test_ranks_are_possible_and_close_to_the_budget(layers: list[Choices], rate: float) -> None:
    dense = sum(layer.dense for layer in layers)
    budget = round(rate * dense)
    ranks = uniform(layers, budget)
    for layer in layers:
        rank = ranks[layer.name]
        assert rank is None or rank in layer.ranks
    reached = total(layers, ranks)
    if budget >= dense:
        assert reached == dense
    elif budget <= smallest(layers):
        assert reached == smallest(layers)
    else:
        # No single step of a layer towards the budget is left that would come nearer, unless that
        # layer has made its step; so the miss is below the largest step of the network.
        assert abs(reached - budget) <= max(
            layer.at(layer.larger(rank)) - layer.at(rank)
            for layer in layers
            for rank in layer.ranks
        )


@given(networks(), st.floats(0.05, 0.95))
def test_layers_get_about_the_same_rate(layers: list[Choices], rate: float) -> None:
    ranks = uniform(layers, round(rate * sum(layer.dense for layer in layers)))
    # Ranges of the rates that round to a size at most one away: all must share a common rate.
    low, high = 0.0, 1.0
    for layer in layers:
        sizes = [*layer.ranks, None]
        at = sizes.index(ranks[layer.name])
        low = max(low, layer.at(sizes[max(0, at - 2)]) / layer.dense if at > 1 else 0.0)
        high = min(high, layer.at(sizes[min(len(sizes) - 1, at + 2)]) / layer.dense)
    assert low <= high


def test_nearest_is_the_nearest_of_all_sizes() -> None:
    layer = linear("a", dense=1000, per_rank=70, kept=15)
    sizes = {rank: layer.at(rank) for rank in layer.ranks} | {None: 1000}
    for target in range(1, 1001):
        best = min(abs(size - target) for size in sizes.values())
        assert abs(layer.at(layer.nearest(target / 1000)) - target) == best


def test_equal_layers_share_a_budget_that_does_not_divide() -> None:
    layers = [linear(str(index), dense=1000, per_rank=100) for index in range(5)]
    ranks = uniform(layers, 2300)
    assert total(layers, ranks) == 2300
    assert sorted(ranks.values()) == [4, 4, 5, 5, 5]


def test_small_networks_against_exhaustive_search() -> None:
    layers = [linear("a", 900, 130, 5), linear("b", 2000, 171), linear("c", 350, 60, 20)]
    sizes = [[*layer.ranks, None] for layer in layers]
    every = [
        sum(layer.at(rank) for layer, rank in zip(layers, ranks, strict=True))
        for ranks in itertools.product(*sizes)
    ]
    for budget in range(smallest(layers), 3250, 50):
        best = min(abs(size - budget) for size in every)
        miss = abs(total(layers, uniform(layers, budget)) - budget)
        # Uniform rates are wanted, so the very best sum is not; a step of the smallest layer is.
        assert best <= miss <= 60


def options(*pairs: tuple[float, float]) -> list[Option]:
    return [Option(None, None, cost, damage) for cost, damage in pairs]


@given(
    st.lists(
        st.lists(
            st.tuples(st.integers(1, 40), st.floats(0.01, 10)), min_size=1, max_size=5, unique=True
        ),
        min_size=1,
        max_size=4,
    ),
    st.floats(0, 1),
)
def test_least_damage_fits_the_budget_and_is_near_the_best(layers: list, share: float) -> None:
    sizes = {str(i): options(*pairs, (50, 0.0)) for i, pairs in enumerate(layers)}
    cheapest = sum(min(one.cost for one in own) for own in sizes.values())
    budget = cheapest + share * (50 * len(sizes) - cheapest)
    chosen = least_damage(sizes, budget)
    assert chosen.keys() == sizes.keys()
    assert sum(option.cost for option in chosen.values()) <= budget * (1 + 1e-12)
    damage = sum(option.damage for option in chosen.values())
    every = list(itertools.product(*sizes.values()))
    best = min(
        sum(one.damage for one in some) for some in every if sum(o.cost for o in some) <= budget
    )
    # The bound of a Lagrangian: off by at most one layer's largest step.
    step = max(max(one.damage for one in own) for own in sizes.values())
    assert best - 1e-9 <= damage <= best + step + 1e-9


def test_least_damage_spends_what_is_left() -> None:
    sizes = {"a": options((1, 9.0), (4, 1.0), (6, 0.5)), "b": options((1, 4.0), (3, 2.0))}
    chosen = least_damage(sizes, 7)
    assert (chosen["a"].cost, chosen["b"].cost) == (4, 3)
    assert least_damage(sizes, 100)["a"].damage == 0.5


def test_uniform_with_another_cost_than_parameters() -> None:
    layer = Choices("a", 100, range(1, 10), lambda rank: 10 * rank, lambda r: 7.0 * (r or 11))
    assert uniform([layer], 7 * 4.2) == {"a": 4}
