"""The fourth stage: the method and the rank of every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sketchlayers.compression.allocation import ranks
from sketchlayers.compression.allocation.costs import Budget, Costs
from sketchlayers.compression.allocation.curves import Curve
from sketchlayers.compression.allocation.ranks import Ranks
from sketchlayers.compression.stages.measure import Measured, in_order
from sketchlayers.compression.stages.task import Log, Task
from sketchlayers.compression.survey.layers import Survey
from sketchlayers.compression.survey.reasons import Reason


def allocate(
    task: Task,
    found: Survey,
    measured: Measured,
    curves: Mapping[str, Curve],
    budget: Budget | None,
    costs: Costs,
    log: Log,
) -> Ranks:
    """Chooses what every layer shall become.

    Args:
        budget: for the whole model; None where the layers have rates of their own.
    """
    layers = in_order(log.open_layers(found), measured.order)
    if budget is None:
        assert task.layer_rates is not None
        chosen = ranks.by_layer(task.method, log.open_layers(found), task.layer_rates)
    elif task.settings.allocation == "uniform":
        chosen = ranks.uniform(task.method, log.open_layers(found), budget, costs)
    else:
        chosen = ranks.by_error(curves, layers, budget, costs)
    if task.settings.bits is not None:
        rounded = {
            name: replace(one, bits=task.settings.bits) for name, one in chosen.chosen.items()
        }
        chosen = replace(chosen, chosen=rounded)
    log.notes.extend(chosen.notes)
    for name, one in chosen.chosen.items():
        if one.method is None:
            log.reasons[name] = Reason.STAYS_DENSE
    return chosen
