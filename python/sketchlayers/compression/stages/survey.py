"""The first stage: the layers, and those that may be replaced."""

from __future__ import annotations

from typing import Any

from sketchlayers.compression.stages.task import Log, Task
from sketchlayers.compression.survey.layers import Layer, Survey, survey
from sketchlayers.compression.survey.selection import left_out


def look_at(task: Task, log: Log) -> Survey:
    """Finds the layers, and those that the caller does not mean."""
    found = survey(
        task.model,
        task.method,
        init=task.settings.init,
        examples=task.examples,
        all_called=task.images is not None,
    )
    log.reasons.update(
        left_out(
            found,
            rates=task.layer_rates,
            layers=task.layers,
            exclude=task.exclude,
            filter_fn=task.filter_fn,
            keep_first=task.keep_first,
        )
    )
    if task.settings.init == "fit":
        for layer in log.open_layers(found):
            _check_finite(layer)
    return found


def _check_finite(layer: Layer) -> None:
    weight: Any = layer.module.get_parameter("weight").detach()
    bad = weight.numel() - int(weight.isfinite().sum())
    if bad:
        raise ValueError(
            f"compress: weights to fit must be finite (got {bad} NaN or infinite of "
            f"{weight.numel()} in {layer.name or 'the model'!r})"
        )
