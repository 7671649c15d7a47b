"""The third stage: what every layer could become. Budgets come afterwards."""

from __future__ import annotations

from collections.abc import Mapping

from sketchlayers._runtime.progress import progress_bar
from sketchlayers.compression.allocation.curves import Curve, curve_of
from sketchlayers.compression.allocation.damage import DamageMeter, images_to_measure_on
from sketchlayers.compression.stages.measure import Measured, in_order
from sketchlayers.compression.stages.task import Log, Task
from sketchlayers.compression.survey.layers import Layer, Survey
from sketchlayers.surgery.sample import OutputsDifferError


def curves(task: Task, found: Survey, measured: Measured, log: Log) -> Mapping[str, Curve]:
    """Returns the curves of all layers that may be replaced; none where ranks need none."""
    if task.layer_rates is not None or task.settings.allocation == "uniform":
        return {}
    layers = in_order(log.open_layers(found), measured.order)
    outputs = measured.outputs
    if outputs is None or not task.settings.weighted_allocation or not layers:
        return _curves(task, layers, measured, None)
    outputs = outputs.first(images_to_measure_on(outputs.sample, len(layers)))
    names = [layer.name for layer in layers]
    try:
        meter = DamageMeter(task.model, names, outputs, measured.plan)
        return _curves(task, layers, measured, meter)
    except OutputsDifferError as error:
        log.notes.append(f"ranks were chosen by the errors of the layers' own outputs: {error}")
        return _curves(task, layers, measured, None)


def _curves(
    task: Task, layers: list[Layer], measured: Measured, meter: DamageMeter | None
) -> dict[str, Curve]:
    found = {}
    with progress_bar("errors over ranks", len(layers), unit="layer", show=task.progress) as bar:
        for layer in layers:
            norm = task.norm_of_fit(measured.norms[layer.name])
            found[layer.name] = curve_of(layer, task.method, norm, meter)
            bar(1)
    return found
