"""What it does to a network when one of its layers is replaced: measured, without labels.

The damage is the mean square of the change of the network's outputs. Where nothing is measured it
is predicted: ``tr(F D Sigma D^T)`` with the change ``D`` of a weight, or, without sensitivities,
the squared relative error of the layer's output. That is a second-order expansion: true for small
errors, far too small for large ones and for some layers more than for others. So every layer is
put into the network with a few errors (`probes`), one at a time, and the damage of others is
interpolated.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from sketchlayers.compression.calibration.outputs import OriginalOutputs
from sketchlayers.surgery.replay import Plan, Replays

SQUARED_ERRORS = (0.03, 0.3)
"""Squared relative errors with which layers are put into the network."""
_FEWEST_IMAGES, _MOST_IMAGES = 16, 256
_OVERFLOW = 1e6
_PASSES = 2  # what all measurements together may cost, in passes over the calibration images


class Point(NamedTuple):
    """Damage that was measured at a predicted one."""

    predicted: float
    measured: float


class Damage:
    """The damage of replacements of one layer as a function of the predicted one."""

    def __init__(self, points: Sequence[Point]) -> None:
        """Takes what was measured; a damage that falls counts as the one before it.

        An infinite one, where the outputs overflowed, counts as a very large number: the layer
        may have to be as small as that.
        """
        self._logs: list[tuple[float, float]] = []
        highest = 0.0
        for predicted, measured in sorted(points):
            if not math.isfinite(measured):
                measured = _OVERFLOW * max(highest, predicted)
            highest = max(highest, measured)
            if predicted > 0 and highest > 0:
                self._logs.append((math.log(predicted), math.log(highest)))

    def __call__(self, predicted: float) -> float:
        """Interpolated between the points in logarithms; in proportion beyond the ends."""
        if predicted <= 0:
            return 0.0
        if not self._logs:
            return predicted
        x = math.log(predicted)
        at = bisect_left(self._logs, (x, -math.inf))
        if at == 0 or at == len(self._logs):
            end, value = self._logs[min(at, len(self._logs) - 1)]
            return math.exp(value + x - end)
        (left, low), (right, high) = self._logs[at - 1 : at + 1]
        return math.exp(low + (high - low) * (x - left) / (right - left))


def images_to_measure_on(images: int, layers: int) -> int:
    """Returns how many of the images to take: all layers cost a few passes over all of them."""
    affordable = _PASSES * images // max(1, layers * len(SQUARED_ERRORS))
    return max(_FEWEST_IMAGES, min(_MOST_IMAGES, affordable))


class DamageMeter:
    """Puts layers into a copy of a network, one at a time, and measures how its outputs change."""

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str],
        outputs: OriginalOutputs,
        plan: Plan | None,
    ) -> None:
        """Takes the original model, which does not change, and its outputs.

        Args:
            model: the original.
            layers: names of the layers to measure, in the order in which the model calls them.
            outputs: of the original.
            plan: for repeated calls of the model; None: each computes everything.
        """
        self._outputs = outputs
        self._replays = Replays(model, layers, outputs.sample.calls(), plan)

    def measure(self, name: str, layer: nn.Module) -> float:
        """Measures ``|z~ - z|^2``, its mean over the images, with a layer in place of the original.

        Infinite if an output is not finite.

        Args:
            name: of the layer; not one before that of the last call.
            layer: what to put in its place; it is put into evaluation mode.

        Raises:
            OutputsDifferError: the outputs are not as many as the original's.
        """
        return self._outputs.mean_squared_change(self._replays.outputs(name, layer.eval()))
