"""The third stage: the method and the rank of every layer."""

from __future__ import annotations

from sketchlayers.compression.allocation import ranks
from sketchlayers.compression.allocation.costs import Budget, Costs
from sketchlayers.compression.allocation.damage import DamageMeter, images_to_measure_on
from sketchlayers.compression.allocation.ranks import Ranks
from sketchlayers.compression.stages.measure import Measured, in_order
from sketchlayers.compression.stages.task import Log, Task
from sketchlayers.compression.survey.layers import Layer, Survey
from sketchlayers.compression.survey.reasons import Reason
from sketchlayers.surgery.sample import OutputsDifferError


def allocate(task: Task, found: Survey, measured: Measured, costs: Costs, log: Log) -> Ranks:
    """Chooses what every layer shall become."""
    layers = log.open_layers(found)
    chosen = _choose(task, layers, measured, costs, log)
    log.notes.extend(chosen.notes)
    for name, one in chosen.chosen.items():
        if one.method is None:
            log.reasons[name] = Reason.STAYS_DENSE
    return chosen


def _choose(task: Task, layers: list[Layer], measured: Measured, costs: Costs, log: Log) -> Ranks:
    if not isinstance(task.rates, Budget):
        return ranks.by_layer(task.method, layers, task.rates)
    if task.settings.allocation == "uniform":
        return ranks.uniform(task.method, layers, task.rates, costs)

    def by_error(meter: DamageMeter | None) -> Ranks:
        assert isinstance(task.rates, Budget)
        return ranks.by_error(
            task.method,
            in_order(layers, measured.order),
            task.rates,
            costs,
            {name: task.norm_of_fit(norm) for name, norm in measured.norms.items()},
            meter,
            progress=task.progress,
        )

    outputs = measured.outputs
    if outputs is None or not task.settings.weighted_allocation or not layers:
        return by_error(None)
    outputs = outputs.first(images_to_measure_on(outputs.sample, len(layers)))
    names = [layer.name for layer in in_order(layers, measured.order)]
    try:
        return by_error(DamageMeter(task.model, names, outputs, measured.plan))
    except OutputsDifferError as error:
        log.notes.append(f"ranks were chosen by the errors of the layers' own outputs: {error}")
        return by_error(None)
