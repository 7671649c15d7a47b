"""What one call of `compress` does after its arguments have been checked, stage by stage.

    survey -> calibrate -> curves -> allocate -> fit -> swap -> finish -> report

Each stage is a function from what the ones before it have found to a frozen dataclass. Those up to
the curves are made once (`prepare`), those from the allocation on for every budget (`make`). The
user's model stays as it is until `Finished.result`. Every forward call of it, or of a copy, is made
in the caller's thread, runs alone, and ends, if by an exception, before the next one begins.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sketchlayers._runtime.watch import expect
from sketchlayers.compression.allocation import ranks
from sketchlayers.compression.allocation.costs import Budget, Costs, rounded_bytes
from sketchlayers.compression.allocation.curves import Curve
from sketchlayers.compression.allocation.ranks import Ranks
from sketchlayers.compression.stages.allocate import allocate
from sketchlayers.compression.stages.curves import curves
from sketchlayers.compression.stages.expected import expected_seconds
from sketchlayers.compression.stages.finish import Finished, finish
from sketchlayers.compression.stages.fit import Fits, fit
from sketchlayers.compression.stages.measure import Measured, measure
from sketchlayers.compression.stages.survey import look_at, refused_layers
from sketchlayers.compression.stages.task import Log, Task
from sketchlayers.compression.survey.layers import Survey


@dataclass(frozen=True)
class Outcome:
    """All that the stages have found."""

    found: Survey
    measured: Measured
    ranks: Ranks
    fits: Fits
    finished: Finished
    log: Log


@dataclass(frozen=True)
class Prepared:
    """What no budget has a part in."""

    task: Task
    found: Survey
    costs: Costs
    measured: Measured
    curves: Mapping[str, Curve]
    expected: Mapping[str, float]
    log: Log


def prepare(task: Task, budgets: Sequence[Budget]) -> Prepared:
    """Goes through the stages that are the same for all budgets.

    Args:
        task: what is asked for.
        budgets: that will be, as far as is known; none where layers have rates of their own.

    Raises:
        ValueError: a budget cannot be met.
    """
    log = Log(list(task.notes))
    begin = time.perf_counter()
    found = look_at(task, log)
    examples = task.examples
    images = max(1, examples[0][1]) if examples else 1  # of the call that was made
    layers = log.open_layers(found)
    expected: Mapping[str, float] = {}
    if task.settings.init != "random":
        expected = expected_seconds(
            task.method,
            layers,
            images=None if task.images is None else task.images.sample.images,
            seconds_an_image=(time.perf_counter() - begin) / images,
            calibrated=task.calibration is not None,
        )
    expect(expected)
    call = examples[0][0] if examples else None
    costs = Costs(
        task.unit,
        found,
        task.model,
        call,
        task.processes,
        group_size=task.settings.group_size,
        spared=_spared_bytes(task, found, log),
    )
    for budget in budgets:
        fewest = min(task.bits_to_choose, default=None)
        ranks.check_budget(found, task.method, layers, budget, costs, log.reasons, fewest)
    measured = measure(task, found, log)
    with log.stage("ranks"):
        curves_of_layers = curves(task, found, measured, log)
    return Prepared(task, found, costs, measured, curves_of_layers, expected, log)


def _spared_bytes(task: Task, found: Survey, log: Log) -> float:
    """What rounding takes, under a budget of bytes, from layers that are not replaced."""
    bits = task.bits_of_refused
    if task.unit != "bytes" or bits is None:
        return 0.0
    layers = refused_layers(task, found, log)
    group_size = task.settings.group_size
    return sum(
        one.bytes - rounded_bytes(one, one.parameters, 0, bits, group_size) for one in layers
    )


def smallest_rate(prepared: Prepared) -> float:
    """Returns the smallest rate of the whole model that is possible."""
    task, layers = prepared.task, prepared.log.open_layers(prepared.found)
    fewest = min(task.bits_to_choose, default=None)
    return ranks.smallest_rate(task.method, layers, prepared.costs, fewest)


def planned(prepared: Prepared, budget: Budget) -> Ranks:
    """Returns what the layers would become at a budget, and the damage expected of it."""
    task, found, measured = prepared.task, prepared.found, prepared.measured
    log = prepared.log.continued()
    return allocate(task, found, measured, prepared.curves, budget, prepared.costs, log)


def make(prepared: Prepared, budget: Budget | None) -> Outcome:
    """Compresses the model to a budget; None: to the layers' own rates.

    The model stays as it is until `Finished.result`.
    """
    task, found, measured = prepared.task, prepared.found, prepared.measured
    log = prepared.log.continued()
    expect({"fit": prepared.expected.get("fit", 0.0)})
    with log.stage("ranks"):
        chosen = allocate(task, found, measured, prepared.curves, budget, prepared.costs, log)
    with log.stage("fit"):
        fits = fit(task, found, measured, chosen, log)
    if log.taken:
        taken = ", ".join(f"{count} {kind}" for kind, count in log.taken.items())
        log.notes.append(f"taken from the cache: {taken}")
    finished = finish(task, found, measured, fits, log)
    return Outcome(found, measured, chosen, fits, finished, log)
