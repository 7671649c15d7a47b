"""What every layer could become, and the damage that is expected of it: for any budget."""

from __future__ import annotations

from dataclasses import dataclass

from sketchlayers.compression.allocation.damage import SQUARED_ERRORS, Damage, DamageMeter, Point
from sketchlayers.compression.allocation.probes import probes
from sketchlayers.compression.fitting.layer import (
    Norm,
    for_method,
    naming,
    power,
    without_mean,
)
from sketchlayers.compression.survey.layers import Layer
from sketchlayers.methods import Method, Rank
from sketchlayers.methods._rank import Candidate


@dataclass(frozen=True)
class Alternative:
    """One thing that a layer could become.

    Attributes:
        method: of the replacement.
        rank: of the replacement.
        damage: what it is expected to do to the network, as `DamageMeter` measures it; without a
            meter the squared relative error of the layer's output.
    """

    method: Method
    rank: Rank
    damage: float


@dataclass(frozen=True)
class Curve:
    """What one layer could become, by increasing parameters; no budget has a part in it."""

    alternatives: tuple[Alternative, ...]


def curve_of(
    layer: Layer, method: Method, norm: Norm, meter: DamageMeter | None, *, correct_bias: bool
) -> Curve:
    """Returns all that a layer could become.

    Args:
        layer: one that can be replaced.
        method: a method; of several (``members``), all take part.
        norm: how the layer's error is measured.
        meter: measures what errors do to the network; None: the squared relative error of the
            layer's output is its damage.
        correct_bias: biases will take up the change of the mean, which then is no error.

    Raises:
        OutputsDifferError: the outputs of the network with a replacement are not as many.
    """
    with naming(layer.name):
        whole = power(layer.module, norm)
        if correct_bias:
            norm = without_mean(layer.module, norm)
        candidates = _candidates(layer, method, norm)
        scale = power(layer.module, norm)
        if meter is None:
            damage_of = Damage([Point(whole, 1.0)])
        else:
            damage_of = _measured_damage(layer, norm, scale, meter, correct_bias=correct_bias)
        damages = [damage_of(scale * candidate.squared_error) for _, candidate in candidates]
    return Curve(
        tuple(
            Alternative(member, one.rank, damage)
            for (member, one), damage in zip(candidates, damages, strict=True)
        )
    )


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


def _measured_damage(
    layer: Layer, norm: Norm, scale: float, meter: DamageMeter, *, correct_bias: bool
) -> Damage:
    """What errors of the layer, of a weight with the squared size ``scale``, do to the network."""
    some = probes(layer.module, norm, SQUARED_ERRORS, correct_bias=correct_bias)
    return Damage(
        [
            Point(scale * squared_error, meter.measure(layer.name, probe))
            for squared_error, probe in zip(SQUARED_ERRORS, some, strict=True)
        ]
    )
