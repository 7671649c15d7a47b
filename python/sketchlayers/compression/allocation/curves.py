"""What every layer could become, and the damage that is expected of it: for any budget."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

from sketchlayers.compression.allocation.damage import SQUARED_ERRORS, Damage, DamageMeter, Point
from sketchlayers.compression.allocation.probes import probes
from sketchlayers.compression.fitting.layer import (
    Choice,
    Norm,
    fit_alone,
    folded,
    for_method,
    naming,
    power,
    without_mean,
)
from sketchlayers.compression.fitting.rounding import round_layer
from sketchlayers.compression.survey.layers import Layer
from sketchlayers.methods import Method, Rank
from sketchlayers.methods._curve import front_of, squared_error
from sketchlayers.methods._rank import Candidate
from sketchlayers.nn._geometry import ordinary_weight

_FITTED = 0.02
"""The squared error, about, of the fit whose error is scaled."""
_PROBED_BITS = 4
"""That a dense layer is rounded to, to see how large its error is."""
_PER_BIT = 3.3
"""How much larger the squared error is with one bit less."""
_FACTORS = 15.0
"""How much larger it is of factors, about, whose errors add up (4 of Tucker's, 10 of CP's)."""
_QUICK = {"max_sweeps": 2, "starts": 1}
"""Its options: fewer sweeps than of those that are kept."""


@dataclass(frozen=True)
class Alternative:
    """One thing that a layer could become.

    Attributes:
        method: of the replacement; None: the layer stays dense.
        rank: of the replacement; None: the layer stays dense.
        damage: what it is expected to do to the network, as `DamageMeter` measures it; without a
            meter the squared relative error of the layer's output.
        bits: that its numbers are rounded to; None: they stay.
    """

    method: Method | None
    rank: Rank | None
    damage: float
    bits: int | None = None


@dataclass(frozen=True)
class Curve:
    """What one layer could become; no budget has a part in it."""

    alternatives: tuple[Alternative, ...]


def curve_of(
    layer: Layer,
    method: Method,
    norm: Norm,
    meter: DamageMeter | None,
    *,
    correct_bias: bool,
    bits: Sequence[int] = (),
) -> Curve:
    """Returns all that a layer could become.

    Args:
        layer: one that can be replaced.
        method: a method; of several (``members``), all take part.
        norm: how the layer's error is measured.
        meter: measures what errors do to the network; None: the squared relative error of the
            layer's output is its damage.
        correct_bias: biases will take up the change of the mean, which then is no error.
        bits: that numbers may be rounded to; none: they stay.

    Raises:
        OutputsDifferError: the outputs of the network with a replacement are not as many.
    """
    with naming(layer.name):
        centred = without_mean(layer.module, norm) if correct_bias else norm
        candidates = _candidates(layer, method, centred)
        scale = power(layer.module, centred)
        if meter is None:  # that of losing the whole output is 1
            damage_of = Damage([Point(power(layer.module, norm), 1.0)])
        else:
            fitted = _quick_fit(layer, candidates, norm, correct_bias=correct_bias)
            some = probes(layer.module, fitted, centred, SQUARED_ERRORS, correct_bias=correct_bias)
            damage_of = Damage(
                [Point(scale * error, meter.measure(layer.name, probe)) for error, probe in some]
            )
        if bits:
            return Curve(tuple(_rounded(layer, candidates, centred, damage_of, scale, bits)))
        damages = [damage_of(scale * candidate.squared_error) for _, candidate in candidates]
    return Curve(
        tuple(
            Alternative(member, one.rank, damage)
            for (member, one), damage in zip(candidates, damages, strict=True)
        )
    )


def _rounded(
    layer: Layer,
    candidates: Sequence[tuple[Method, Candidate]],
    norm: Norm,
    damage_of: Damage,
    scale: float,
    bits: Sequence[int],
) -> Iterator[Alternative]:
    """What the layer could become with numbers of some bits, dense or replaced."""
    moment = None if norm.moments is None else norm.moments.second_moment
    module = copy.deepcopy(layer.module).double()
    round_layer(module, _PROBED_BITS, second_moment=moment)
    change = {"second_moment": for_method(moment), "sensitivity": for_method(norm.sensitivity)}
    probed = squared_error(layer.module, ordinary_weight(module).detach(), change)
    for of in bits:
        rounding = probed * _PER_BIT ** (_PROBED_BITS - of)
        yield Alternative(None, None, damage_of(scale * rounding), of)
        for member, one in candidates:
            error = one.squared_error + _FACTORS * rounding
            yield Alternative(member, one.rank, damage_of(scale * error), of)


def _candidates(layer: Layer, method: Method, norm: Norm) -> list[tuple[Method, Candidate]]:
    """All that the layer could become, with the squared relative error that it would have."""
    moment = None if norm.moments is None else norm.moments.second_moment
    found = [
        (member, candidate)
        for member in method.members(layer.module)
        for candidate in member.curve(
            layer.module,
            second_moment=for_method(moment),
            sensitivity=for_method(norm.sensitivity),
        )
    ]
    for member in method.members(layer.module):  # the smallest, if the curve begins above it
        smallest = member.ranks(layer.module)[0]
        size = member.parameters(layer.module, smallest)
        if all(size < candidate.parameters for _, candidate in found):
            found.append((member, Candidate(smallest, size, 1.0)))
    found.sort(key=lambda pair: (pair[1].parameters, pair[1].squared_error))
    return found


def _quick_fit(
    layer: Layer,
    candidates: Sequence[tuple[Method, Candidate]],
    norm: Norm,
    *,
    correct_bias: bool,
) -> nn.Module:
    """A candidate of a middling error and of the method that is best there, as a plain layer."""
    sizes = [candidate.parameters for _, candidate in candidates]
    errors = [candidate.squared_error for _, candidate in candidates]
    place = min(
        front_of(sizes, errors, below=sizes[-1] + 1),
        key=lambda place: abs(math.log(max(errors[place], 1e-12) / _FITTED)),
    )
    method, candidate = candidates[place]
    quick = {option: _QUICK[option] for option in _QUICK if option in method.options()}
    choice = Choice(layer.module, replace(method, **quick), candidate.rank, 0)
    return folded(fit_alone(choice, norm, init="fit", correct_bias=correct_bias).module)
