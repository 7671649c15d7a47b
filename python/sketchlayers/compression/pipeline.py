"""What one call of `compress` does after its arguments have been checked, stage by stage.

    survey -> calibrate -> allocate -> fit -> swap -> finish -> report

Each stage is a function from what the ones before it have found to a frozen dataclass. The user's
model stays as it is until `Finished.result`. Every forward call of it, or of a copy, is made in the
caller's thread, runs alone, and ends, if by an exception, before the next one begins.
"""

from __future__ import annotations

from dataclasses import dataclass

from sketchlayers.compression.allocation import ranks
from sketchlayers.compression.allocation.costs import Costs
from sketchlayers.compression.allocation.ranks import Ranks
from sketchlayers.compression.stages.allocate import allocate
from sketchlayers.compression.stages.finish import Finished, finish
from sketchlayers.compression.stages.fit import Fits, fit
from sketchlayers.compression.stages.measure import Measured, measure
from sketchlayers.compression.stages.survey import look_at
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


def run(task: Task) -> Outcome:
    """Compresses a model; it stays as it is until `Finished.result`."""
    log = Log()
    found = look_at(task, log)
    costs = _costs(task, found)
    if task.budget is not None:
        ranks.check_budget(
            found, task.method, log.open_layers(found), task.budget, costs, log.reasons
        )
    measured = measure(task, found, log)
    with log.stage("ranks"):
        chosen = allocate(task, found, measured, costs, log)
    with log.stage("fit"):
        fits = fit(task, found, measured, chosen, log)
    finished = finish(task, found, measured, fits, costs, log)
    return Outcome(found, measured, chosen, fits, finished, log)


def _costs(task: Task, found: Survey) -> Costs:
    unit = "parameters" if task.budget is None else task.budget.unit
    examples = task.examples
    call = examples[0][0] if examples else None
    return Costs(unit, found, task.model, call, task.processes)
