"""What it does to a network when one of its layers is replaced: measured, without labels.

The damage is the mean square of the change of the network's outputs. Where nothing is measured it
is predicted: ``tr(F D Sigma D^T)`` with the change ``D`` of a weight, or, without sensitivities,
the squared relative error of the layer's output. That is a second-order expansion: true for small
errors, far too small for large ones and for some layers more than for others. So a few candidates
of every layer are fitted, put into the network one at a time, and the damage of the others is
interpolated.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sketchlayers._runtime.processes import Processes
from sketchlayers.compression.finishing.network import check_finite, evaluation_copy
from sketchlayers.surgery.sample import Sample, outputs_of, squared_distance

SQUARED_ERRORS = (0.01, 0.04, 0.15, 0.4)
"""Candidates nearest to these squared errors are put into the network."""
_FEWEST_IMAGES, _MOST_IMAGES = 16, 256
_OVERFLOW = 1e6
_PASSES = 4  # what all measurements together may cost, in passes over the calibration images


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


def images_to_measure_on(sample: Sample, layers: int) -> int:
    """Returns how many images to take: measuring all layers costs a few passes over the sample."""
    affordable = _PASSES * sample.images // max(1, layers * len(SQUARED_ERRORS))
    return max(_FEWEST_IMAGES, min(_MOST_IMAGES, affordable))


class DamageMeter:
    """Puts layers into a copy of a network and measures how its outputs change."""

    def __init__(self, model: nn.Module, sample: Sample, processes: Processes) -> None:
        """Takes the original model, which does not change, and the images.

        Raises:
            ValueError: an output of the model is not finite.
        """
        self._model = evaluation_copy(model)
        self._calls = sample.calls()
        self._processes = processes
        self._targets = [self._outputs(call) for call in self._calls]
        check_finite(x for target in self._targets for x in target)
        self._images = sum(len(target[0]) for target in self._targets)

    def measure(self, layers: Mapping[str, nn.Module]) -> float:
        """Measures ``|z~ - z|^2``, its mean over the images, with layers in place of the originals.

        Infinite if an output is not finite.
        """
        layers = {name: layer.eval() for name, layer in layers.items()}
        originals = {name: self._model.get_submodule(name) for name in layers}
        self._put(layers)
        try:
            distances = [
                squared_distance(self._outputs(call), target)
                for call, target in zip(self._calls, self._targets, strict=True)
            ]
        finally:
            self._put(originals)
        total = torch.stack([torch.stack(distances).double().sum().cpu(), _number(self._images)])
        squares, images = self._processes.sum(total).tolist()
        return squares / images if math.isfinite(squares) else math.inf

    def _outputs(self, call: Callable[[nn.Module], object]) -> list[Tensor]:
        with torch.no_grad():
            return outputs_of(call(self._model))

    def _put(self, layers: Mapping[str, nn.Module]) -> None:
        for name, layer in layers.items():
            parent, _, child = name.rpartition(".")
            self._model.get_submodule(parent)._modules[child] = layer


def _number(value: int) -> Tensor:
    return torch.tensor(float(value), dtype=torch.float64)
