"""Times of several contenders, taken in turn in one process, and what is made of them."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

Step = Callable[[], object]

LEAST_ROUNDS = 7
"""Fewer rounds have no quartiles worth the name."""

WIDE = 0.15
"""Quartiles further apart than this part of the median are the mark of a busy machine."""

_GPU_SAMPLE_SECONDS = 1e-3


class Quartiles(NamedTuple):
    """Lower quartile, median and upper quartile."""

    low: float
    median: float
    high: float

    @property
    def spread(self) -> float:
        """Distance of the quartiles as a part of the median."""
        return (self.high - self.low) / self.median


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


def synchronize(device: torch.device) -> None:
    """Waits for the work that a GPU has been given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def paired_times(
    steps: Sequence[Step],
    seconds: float,
    device: torch.device,
    *,
    least: int = LEAST_ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Seconds of one call of every step, round by round.

    Each round runs every step once, so that a busy machine slows all of them. The order is drawn
    again for every round: no step always finds the caches as the same other one left them. On a GPU
    a step is called several times a round, until a millisecond has passed, and the mean is taken.

    Args:
        steps: What is timed.
        seconds: Time for all rounds together, without warming up.
        device: Where the steps do their work.
        least: Rounds that are run however long they take.
        clock: Seconds since some moment.

    Returns:
        For each step its times, as many as there were rounds.
    """
    for step in steps:
        step()
        step()
    calls = _calls(steps, device, clock)
    times: list[list[float]] = [[] for _ in steps]
    order = list(range(len(steps)))
    generator = random.Random(0)
    end = clock() + seconds
    while len(times[0]) < least or clock() < end:
        generator.shuffle(order)
        for index in order:
            times[index].append(_seconds(steps[index], calls, device, clock))
    return times


def _seconds(step: Step, calls: int, device: torch.device, clock: Callable[[], float]) -> float:
    synchronize(device)
    start = clock()
    for _ in range(calls):
        step()
    synchronize(device)
    return (clock() - start) / calls


def _calls(steps: Sequence[Step], device: torch.device, clock: Callable[[], float]) -> int:
    """How often a step is called in a round: waiting for a GPU must not be what is timed."""
    if device.type != "cuda":
        return 1
    shortest = min(_seconds(step, 3, device, clock) for step in steps)
    return max(1, math.ceil(_GPU_SAMPLE_SECONDS / shortest))


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
