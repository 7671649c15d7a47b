"""Times of several calls that take turns in one process."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Sequence

import torch

Step = Callable[[], object]

LEAST_ROUNDS = 7
"""Fewer rounds have no quartiles worth the name."""

_GPU_SAMPLE_SECONDS = 1e-3


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
    sample: float = 0.0,
    warm: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Seconds of one call of every step, round by round.

    Each round runs every step once, so that a busy machine slows all of them. The order is drawn
    again for every round: no step always finds the caches as the same other one left them. A step
    that takes less than a sample is called several times a round, and the mean is taken.

    Args:
        steps: What is timed.
        seconds: Time for all rounds together, without warming up.
        device: Where the steps do their work.
        least: Rounds that are run however long they take.
        sample: Seconds that a step is timed for in a round, at least; a millisecond on a GPU.
        warm: The steps have been run already; they need not be run before the first round.
        clock: Seconds since some moment.

    Returns:
        For each step its times, as many as there were rounds.
    """
    if device.type == "cuda":  # waiting for the GPU must not be what is timed
        sample = _GPU_SAMPLE_SECONDS
    calls = []
    for step in steps:
        if warm and not sample:
            calls.append(1)
            continue
        step()
        once = _seconds(step, 1, device, clock)
        calls.append(math.ceil(sample / once) if 0 < once < sample else 1)
    times: list[list[float]] = [[] for _ in steps]
    order = list(range(len(steps)))
    generator = random.Random(0)
    end = clock() + seconds
    while len(times[0]) < least or clock() < end:
        generator.shuffle(order)
        for index in order:
            times[index].append(_seconds(steps[index], calls[index], device, clock))
    return times


def _seconds(step: Step, calls: int, device: torch.device, clock: Callable[[], float]) -> float:
    synchronize(device)
    start = clock()
    for _ in range(calls):
        step()
    synchronize(device)
    return (clock() - start) / calls
