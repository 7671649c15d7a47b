"""The time that one call of a network takes, before and after."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sketchlayers._runtime.processes import Processes
from sketchlayers._runtime.timing import Step, paired_times, synchronize
from sketchlayers.reports.rows import Latency
from sketchlayers.surgery.batches import Forward, count_images, device_of
from sketchlayers.surgery.calls import Call, ExampleCall, ExampleInputs
from sketchlayers.surgery.evaluation import same_random_numbers
from sketchlayers.surgery.forms import without_needless
from sketchlayers.surgery.replace import evaluation_copy
from sketchlayers.surgery.sample import select

_CALLS = 11
"""Calls of each network that are timed, where they are quick."""
_SECONDS, _SHARE = 2.0, 0.02
"""What timing may take: that many seconds, or that part of the compression's."""


class Timed(NamedTuple):
    """A call to time, and how many images it is for; None where that is not known."""

    call: Call
    images: int | None


def calls_of_batch(forward: Forward, batch: Any) -> list[Timed]:
    """Returns the call with the first image of a batch, and the one with all of it."""

    def calling(part: Any) -> Call:
        return lambda model: forward(model, part)

    return [Timed(calling(part), images) for part, images in _first_and_all(batch)]


def calls_of_examples(inputs: ExampleInputs) -> list[Timed]:
    """Returns the call with the first of the example inputs, and the one with all of them."""
    return [Timed(ExampleCall(part), images) for part, images in _first_and_all(inputs)]


def measured_latencies(
    original: nn.Module,
    small: nn.Module,
    calls: Sequence[Timed],
    processes: Processes,
    *,
    spent: float,
) -> tuple[Latency, ...]:
    """Times calls of both networks; those that fail are left out.

    A batch's first image may not be one that the model takes alone. The networks, and all random
    numbers, stay as they are.

    Args:
        original: the network before.
        small: the network after.
        calls: to time.
        processes: all of them make the same calls; the means of their times are taken.
        spent: seconds that everything else has taken.
    """
    device = device_of(original)
    if device is None or device.type not in ("cpu", "cuda"):
        return ()
    if not processes.agree(repr([images for _, images in calls])):
        return ()
    networks = [without_needless(evaluation_copy(model)) for model in (original, small)]
    seconds = max(_SECONDS, _SHARE * spent) / len(calls)
    found = []
    with torch.no_grad(), same_random_numbers():
        for call, images in calls:
            times = _times([partial(call, model) for model in networks], seconds, device, processes)
            if times:
                before, after = (processes.mean(statistics.median(own)) for own in times)
                threads = torch.get_num_threads()
                found.append(Latency(images, before, after, len(times[0]), threads, device.type))
    return tuple(found)


def _first_and_all(batch: Any) -> list[tuple[Any, int | None]]:
    plain = dict(batch) if isinstance(batch, Mapping) else batch
    if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(plain)):
        return [(batch, None)]
    images = count_images(batch)
    first = [(select(batch, slice(1)), 1)] if images > 1 else []
    return [*first, (batch, images)]


def _times(
    steps: Sequence[Step], seconds: float, device: torch.device, processes: Processes
) -> list[list[float]]:
    """Seconds of each step, as often as there is time for, once at least; [] where one fails."""
    try:
        once = [_seconds(step, device) for step in steps]
    except Exception:
        once = []
    if not processes.agree(str(bool(once))) or not once:
        return []
    rounds = int(seconds / processes.mean(sum(once))) - 1
    if rounds < 1:
        return [[one] for one in once]
    return paired_times(steps, 0.0, device, least=min(rounds, _CALLS), warm=True)


def _seconds(step: Step, device: torch.device) -> float:
    begin = time.perf_counter()
    step()
    synchronize(device)
    return time.perf_counter() - begin
