"""From a budget to what every layer shall become."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from sketchlayers.compression.allocation import allocate
from sketchlayers.compression.allocation.costs import Budget, Costs
from sketchlayers.compression.allocation.curves import Alternative, Curve
from sketchlayers.compression.survey.layers import Layer, Survey
from sketchlayers.compression.survey.reasons import COMPRESSED, Reason
from sketchlayers.compression.survey.selection import match, why_not
from sketchlayers.methods import Method, Rank
from sketchlayers.methods._rank import rank_text
from sketchlayers.reports.table import fraction

TOLERANCE = 0.01
"""Relative difference to the rate asked up to which there is no note: ranks are whole numbers."""


@dataclass(frozen=True)
class Chosen:
    """What a layer shall become.

    Attributes:
        method: None: stays as it is.
        rank: None: stays as it is.
        bits: that its numbers are rounded to; None: they stay.
    """

    method: Method | None = None
    rank: Rank | None = None
    bits: int | None = None


@dataclass(frozen=True)
class Ranks:
    """What every layer that was looked at shall become.

    Attributes:
        chosen: by the layer's name.
        notes: advice and exceptions, for the report.
        rate: cost after / before of the whole model, in the budget's unit; None without a budget.
        damage: that is expected of all layers together; None where nothing is known of it.
    """

    chosen: Mapping[str, Chosen]
    notes: Sequence[str] = field(default=())
    rate: float | None = None
    damage: float | None = None


def smallest_rate(
    method: Method, layers: Sequence[Layer], costs: Costs, bits: int | None = None
) -> float:
    """Returns the smallest rate of the whole model that ranks, and the fewest bits, allow."""
    smallest = _fixed(layers, costs) + sum(_cheapest(one, method, costs, bits) for one in layers)
    return smallest / costs.whole if costs.whole else 1.0


def check_budget(
    found: Survey,
    method: Method,
    layers: Sequence[Layer],
    budget: Budget,
    costs: Costs,
    reasons: Mapping[str, Reason],
    bits: int | None = None,
) -> None:
    """Makes sure that the budget can be met.

    Args:
        found: the whole model.
        method: what the layers may be replaced by.
        layers: those that may be replaced.
        budget: for the whole model.
        costs: in the budget's unit.
        reasons: why other layers stay as they are.
        bits: the fewest that layers may have; None: they are not rounded.

    Raises:
        ValueError: it cannot be met; the message tells the smallest possible one.
    """
    lazy = [layer for layer in found.layers if layer.reason == Reason.LAZY]
    if lazy:
        raise ValueError(
            "compress: a rate of the whole model must know all its parameters; run the model once "
            f"(got {why_not(lazy)})"
        )
    smallest = smallest_rate(method, layers, costs, bits)
    if smallest <= budget.rate * (1 + TOLERANCE):
        return
    if layers:
        share = 100 * _fixed(layers, costs) / costs.whole
        elsewhere = f"{share:.0f} % of the {budget.unit} lie elsewhere"
        why = f"smallest rank in each layer that may be replaced; {elsewhere}"
    else:
        why = f"no layer can be replaced: {why_not(found.layers, reasons) or 'it has none'}"
    least = math.ceil(smallest * 1e4) / 1e4
    before = [layer.name for layer in found.layers if _is_compressed(layer)]
    remedy = (
        f"; {len(before)} layers, such as {before[0]!r}, are compressed already, and nothing is "
        "fitted to them: compress sketchlayers.fold(model) to replace them"
        if before
        else ""
    )
    raise ValueError(
        f"compress: {budget.argument} must be at least {least:g} for this model ({why}) "
        f"(got {budget.argument}={budget.rate:g}){remedy}"
    )


def _is_compressed(layer: Layer) -> bool:
    return layer.reason is not None and layer.reason.kind == COMPRESSED


def uniform(method: Method, layers: Sequence[Layer], budget: Budget, costs: Costs) -> Ranks:
    """Chooses about the same rate for all layers; the budget must have been checked."""
    choices = [
        allocate.Choices(
            layer.name,
            layer.parameters,
            method.ranks(layer.module),
            partial(method.parameters, layer.module),
            None if budget.unit == "parameters" else partial(_cost, costs, method, layer),
        )
        for layer in layers
    ]
    fixed = _fixed(layers, costs)
    ranks = allocate.uniform(choices, _share(budget, costs, fixed))
    chosen = {
        name: Chosen() if rank is None else Chosen(method, rank) for name, rank in ranks.items()
    }
    return _within(budget, costs, fixed + allocate.total(choices, ranks), chosen)


def by_layer(method: Method, layers: Sequence[Layer], rates: Mapping[str, float]) -> Ranks:
    """Chooses the rank of each layer by the rate of the pattern that names it."""
    chosen = {}
    notes = []
    for layer in layers:
        pattern = match(layer.name, rates)
        assert pattern is not None  # the others have been left out
        asked = rates[pattern]
        sizes = allocate.Choices(
            layer.name,
            layer.parameters,
            method.ranks(layer.module),
            partial(method.parameters, layer.module),
        )
        rank = sizes.nearest(asked)
        chosen[layer.name] = Chosen() if rank is None else Chosen(method, rank)
        smallest = sizes.parameters(sizes.ranks[0]) / sizes.dense
        if smallest > asked * (1 + TOLERANCE):
            notes.append(
                f"{layer.name or 'the model'}: rate {fraction(asked)} was asked, "
                f"{fraction(smallest)} is the smallest (rank {rank_text(sizes.ranks[0])})"
            )
    return Ranks(chosen, notes)


def by_error(
    curves: Mapping[str, Curve], layers: Sequence[Layer], budget: Budget, costs: Costs
) -> Ranks:
    """Chooses ranks, and methods, that are expected to damage the network least.

    Args:
        curves: of the layers, by name.
        layers: those to choose for.
        budget: for the whole model; it must have been checked.
        costs: in the budget's unit.
    """
    fixed = _fixed(layers, costs)
    options = {
        layer.name: [
            *(
                allocate.Option(
                    one.method, one.rank, _cost_of(one, layer, costs), one.damage, one.bits
                )
                for one in curves[layer.name].alternatives
            ),
            allocate.Option(None, None, costs.dense(layer), 0.0),
        ]
        for layer in layers
    }
    best = allocate.least_damage(options, _share(budget, costs, fixed))
    got = fixed + sum(option.cost for option in best.values())
    chosen = {
        name: Chosen(option.method, option.rank, option.bits) for name, option in best.items()
    }
    damage = sum(option.damage for option in best.values())
    return dataclasses.replace(_within(budget, costs, got, chosen), damage=damage)


def _cost_of(one: Alternative, layer: Layer, costs: Costs) -> float:
    if one.method is None or one.rank is None:
        return costs.dense(layer, one.bits)
    return costs.of(layer, one.method, one.rank, one.bits)


def _cheapest(layer: Layer, method: Method, costs: Costs, bits: int | None) -> float:
    members = method.members(layer.module)
    smallest = (costs.of(layer, one, one.ranks(layer.module)[0], bits) for one in members)
    return min((costs.dense(layer, bits), *smallest))


def _fixed(layers: Sequence[Layer], costs: Costs) -> float:
    """Cost of all that no rank is chosen for."""
    return costs.whole - costs.spared - sum(costs.dense(layer) for layer in layers)


def _cost(costs: Costs, method: Method, layer: Layer, rank: Rank | None) -> float:
    return costs.dense(layer) if rank is None else costs.of(layer, method, rank)


def _share(budget: Budget, costs: Costs, fixed: float) -> float:
    """What the budget leaves to the layers."""
    whole = budget.rate * costs.whole
    return round(whole) - fixed if budget.unit != "seconds" else whole - fixed


def _within(budget: Budget, costs: Costs, got: float, chosen: Mapping[str, Chosen]) -> Ranks:
    """What was chosen for so much of a budget."""
    rate = got / costs.whole if costs.whole else 1.0
    if abs(rate - budget.rate) <= TOLERANCE * budget.rate:
        return Ranks(chosen, rate=rate)
    note = (
        f"{budget.argument.replace('_', ' ')} {fraction(budget.rate)} was asked, {fraction(rate)} "
        f"is the nearest: ranks are whole numbers (layers to compress: {len(chosen)})"
    )
    return Ranks(chosen, [note], rate)
