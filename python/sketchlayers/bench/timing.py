"""What is timed, and what is made of the times."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sketchlayers._runtime.timing import Step as Step
from sketchlayers._runtime.timing import paired_times as paired_times
from sketchlayers._runtime.timing import synchronize as synchronize

WIDE = 0.15
"""Quartiles further apart than this part of the median are the mark of a busy machine."""


class Quartiles(NamedTuple):
    """Lower quartile, median and upper quartile."""

    low: float
    median: float
    high: float


def quartiles(values: Sequence[float]) -> Quartiles:
    """The quartiles of at least two values."""
    return Quartiles(*statistics.quantiles(values, n=4, method="inclusive"))


def speeds(reference: Sequence[float], own: Sequence[float]) -> Quartiles:
    """How many times faster ``own`` is: quartiles of the ratios, round by round."""
    return quartiles([theirs / mine for theirs, mine in zip(reference, own, strict=True)])


def fastest(times: Sequence[Sequence[float]]) -> int:
    """Which contender has the lowest median."""
    medians = [statistics.median(taken) for taken in times]
    return medians.index(min(medians))


def training_step(layer: nn.Module, data: Tensor) -> Callable[[], None]:
    """A step without the optimiser: forward and every gradient, the input's included."""
    layer.train()
    with torch.no_grad():
        gradient = torch.randn_like(layer(data))

    def step() -> None:
        data.grad = None
        layer.zero_grad(set_to_none=True)
        layer(data).backward(gradient)

    return step


def inference(layer: nn.Module, data: Tensor) -> Callable[[], None]:
    """A forward call as users make it: eval mode, without gradients."""
    layer.eval()

    @torch.no_grad()
    def step() -> None:
        layer(data)

    return step


def captured(step: Step) -> Step:
    """The step as a CUDA graph: its kernels without the time that launching them takes.

    The first calls warm up on a stream of their own, as capturing asks for.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
