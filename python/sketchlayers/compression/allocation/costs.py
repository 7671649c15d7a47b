"""What a budget counts: parameters, multiply-adds, seconds, or bytes."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import nn

from sketchlayers._runtime.processes import Processes
from sketchlayers._runtime.timing import paired_times
from sketchlayers.compression.survey.layers import Layer, Survey
from sketchlayers.methods import Method, Rank
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn._rounding import stored_bytes
from sketchlayers.surgery.evaluation import same_random_numbers
from sketchlayers.surgery.replace import evaluation_copy

Unit = Literal["parameters", "multiply-adds", "seconds", "bytes"]
_TIMED_RANKS = 6
"""Ranks of a layer that are timed; the times of the others are interpolated."""
_ROUNDS = 9
"""Calls that are timed."""


@dataclass(frozen=True)
class Budget:
    """How small the model shall be.

    Attributes:
        unit: what is counted.
        rate: after / before, of the whole model.
    """

    unit: Unit
    rate: float

    @property
    def argument(self) -> str:
        """What `compress` calls it."""
        names = {
            "parameters": "rate",
            "multiply-adds": "flops_rate",
            "seconds": "latency_rate",
            "bytes": "bytes_rate",
        }
        return names[self.unit]


class Costs:
    """Costs of layers, dense and replaced, in the unit of a budget."""

    def __init__(
        self,
        unit: Unit,
        found: Survey,
        model: nn.Module,
        call: Callable[[nn.Module], object] | None,
        processes: Processes,
        *,
        group_size: int | None = None,
        spared: float = 0.0,
    ) -> None:
        """Takes the survey with its calls; for seconds, a call of the model on one input.

        Of bytes, ``group_size`` inputs share a scale, and ``spared`` are what rounding takes from
        layers that no rank is chosen for. Several processes take the mean of their times, so that
        they choose alike.

        Raises:
            ValueError: the unit needs calls and there are none.
        """
        self._unit = unit
        self._processes = processes
        if unit in ("multiply-adds", "seconds") and any(
            layer.calls is None for layer in found.layers
        ):
            raise ValueError(
                "compress: a budget of multiply-adds or seconds must know the layers' inputs "
                "(got neither example_inputs nor calibration images)"
            )
        self._group_size = group_size
        self.spared = spared
        self._times: dict[str, _Times] = {}
        self.whole = self._whole(found, model, call)

    def dense(self, layer: Layer, bits: int | None = None) -> float:
        """Returns the cost of the layer as it is, or rounded to some bits."""
        if self._unit == "parameters":
            return layer.parameters
        if self._unit == "bytes":
            if bits is None:
                return layer.bytes
            return rounded_bytes(layer, layer.parameters, 0, bits, self._group_size)
        if self._unit == "multiply-adds":
            return layer.multiply_adds or 0
        return self._timed(layer).dense

    def of(self, layer: Layer, method: Method, rank: Rank, bits: int | None = None) -> float:
        """Returns the cost of a replacement, or of a rounded one."""
        if self._unit == "parameters":
            return method.parameters(layer.module, rank)
        if self._unit == "bytes":
            entries = method.parameters(layer.module, rank)
            if bits is None:
                return entries * layer.module.get_parameter("weight").element_size()
            inner = sum(size or 0 for size in ((rank,) if isinstance(rank, int) else rank))
            return rounded_bytes(layer, entries, inner, bits, self._group_size)
        count = _multiply_adds(layer, method, rank)
        return count if self._unit == "multiply-adds" else self._timed(layer).of(method, count)

    def _whole(
        self, found: Survey, model: nn.Module, call: Callable[[nn.Module], object] | None
    ) -> float:
        if self._unit == "parameters":
            return found.parameters
        if self._unit == "bytes":
            return found.bytes
        if self._unit == "multiply-adds":
            return sum(layer.multiply_adds or 0 for layer in found.layers)
        assert call is not None
        resting = evaluation_copy(model)
        return self._processes.mean(_seconds(partial(call, resting)))

    def _timed(self, layer: Layer) -> _Times:
        if layer.name not in self._times:
            self._times[layer.name] = _Times(layer, self._processes)
        return self._times[layer.name]


def rounded_bytes(
    layer: Layer, parameters: int, inner: int, bits: int, group_size: int | None
) -> float:
    """What a file holds, about, of a layer with so many parameters and inner channels."""
    weight = layer.module.get_parameter("weight")
    bias: Any = getattr(layer.module, "bias", None)
    kept = 0 if bias is None else bias.numel()
    outputs = Geometry.of(layer.module).out_channels
    scales = outputs + inner
    numbers, size = parameters - kept, weight.element_size()
    if group_size is not None:
        scales = max(scales, numbers // group_size)
    return min(stored_bytes(numbers, scales, bits), numbers * size) + kept * size


class _Times:
    """Seconds of one layer on the inputs that it has."""

    def __init__(self, layer: Layer, processes: Processes) -> None:
        self._layer = layer
        self._processes = processes
        self.dense = self._measure(layer.module)
        self._points: dict[Method, list[tuple[float, float]]] = {}

    def of(self, method: Method, multiply_adds: float) -> float:
        """Interpolates the seconds of a replacement by its multiply-adds between timed ones."""
        if method not in self._points:
            self._points[method] = sorted(self._time(method))
        points = self._points[method]
        for (left, low), (right, high) in pairwise(points):
            if multiply_adds <= right:
                share = (multiply_adds - left) / (right - left) if right > left else 1.0
                return low + (high - low) * max(0.0, share)
        return points[-1][1]

    def _time(self, method: Method) -> list[tuple[float, float]]:
        layer, ranks = self._layer, method.ranks(self._layer.module)
        steps = min(_TIMED_RANKS, len(ranks))
        chosen = {ranks[round(i * (len(ranks) - 1) / max(1, steps - 1))] for i in range(steps)}
        with same_random_numbers():
            built = {
                rank: method.build(layer.module, rank, init="random", seed=0) for rank in chosen
            }
        return [
            (_multiply_adds(layer, method, rank), self._measure(module))
            for rank, module in built.items()
        ]

    def _measure(self, module: nn.Module) -> float:
        weight = self._layer.module.get_parameter("weight")
        generator = torch.Generator(weight.device).manual_seed(0)
        is_table = isinstance(self._layer.module, nn.Embedding)
        inputs = [
            torch.zeros(call.input_shape, dtype=torch.long, device=weight.device)
            if is_table
            else torch.randn(call.input_shape, generator=generator, device=weight.device).to(weight)
            for call in self._layer.calls or ()
        ]
        mode = module.training
        try:
            module.eval()
            seconds = sum(_seconds(partial(module, x)) for x in inputs)
        finally:
            module.train(mode)
        return self._processes.mean(seconds)


def _multiply_adds(layer: Layer, method: Method, rank: Rank) -> int:
    calls = layer.calls or ()
    return round(
        sum(method.multiply_adds(layer.module, rank, c.input_shape) / c.images for c in calls)
    )


@torch.no_grad()
def _seconds(call: Callable[[], object]) -> float:
    """The median of some calls."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with same_random_numbers():  # the models may draw some
        (times,) = paired_times([call], 0.0, device, least=_ROUNDS)
    return statistics.median(times)
