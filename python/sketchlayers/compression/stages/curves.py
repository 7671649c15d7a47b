"""The third stage: what every layer could become. Budgets come afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from sketchlayers._runtime.progress import progress_bar
from sketchlayers.compression.allocation.curves import Alternative, Curve, curve_of
from sketchlayers.compression.allocation.damage import DamageMeter, images_to_measure_on
from sketchlayers.compression.cache import JSON, read_json, write_json
from sketchlayers.compression.stages.measure import Measured, in_order
from sketchlayers.compression.stages.task import Log, Task
from sketchlayers.compression.survey.layers import Layer, Survey
from sketchlayers.methods import Method
from sketchlayers.surgery.sample import OutputsDifferError


def curves(task: Task, found: Survey, measured: Measured, log: Log) -> Mapping[str, Curve]:
    """Returns the curves of all layers that may be replaced; none where ranks need none."""
    if task.layer_rates is not None or task.settings.allocation == "uniform":
        return {}
    layers = in_order(log.open_layers(found), measured.order)
    outputs = measured.outputs
    if outputs is None or not task.settings.weighted_allocation or not layers:
        return _curves(task, layers, measured, None, log)
    outputs = outputs.first(images_to_measure_on(outputs.sample.images, len(layers)))
    names = [layer.name for layer in layers]
    try:
        meter = DamageMeter(task.model, names, outputs, measured.plan)
        return _curves(task, layers, measured, meter, log)
    except OutputsDifferError as error:
        log.notes.append(f"ranks were chosen by the errors of the layers' own outputs: {error}")
        return _curves(task, layers, measured, None, log)


def _curves(
    task: Task, layers: list[Layer], measured: Measured, meter: DamageMeter | None, log: Log
) -> dict[str, Curve]:
    found = {}
    with progress_bar("errors over ranks", len(layers), unit="layer", show=task.progress) as bar:
        for layer in layers:
            norm = task.norm_of_fit(measured.norms[layer.name])
            key = task.cache.key(
                *("curve", layer.name, task.method, norm.sensitivity is None, meter is None),
                task.settings.correct_bias,
                task.bits_to_choose,
                *([] if meter is None else [x.name for x in layers]),  # they share the images
            )
            curve = task.cache.get("curve", key, JSON, partial(_read, layer, task.method))
            if curve is None:
                correct_bias = task.settings.correct_bias
                curve = curve_of(
                    layer,
                    task.method,
                    norm,
                    meter,
                    correct_bias=correct_bias,
                    bits=task.bits_to_choose,
                )
                task.cache.put("curve", key, JSON, partial(_write, layer, task.method, curve))
            else:
                log.taken["curves"] += 1
            found[layer.name] = curve
            bar(1)
    return found


def _write(layer: Layer, method: Method, curve: Curve, path: Path) -> None:
    members = method.members(layer.module)
    listed = [
        [None if x.method is None else members.index(x.method), x.rank, x.damage, x.bits]
        for x in curve.alternatives
    ]
    write_json(path, listed)


def _read(layer: Layer, method: Method, path: Path) -> Curve:
    members = method.members(layer.module)
    return Curve(
        tuple(
            Alternative(
                None if number is None else members[number],
                tuple(rank) if isinstance(rank, list) else rank,
                damage,
                bits,
            )
            for number, rank, damage, bits in read_json(path)
        )
    )
