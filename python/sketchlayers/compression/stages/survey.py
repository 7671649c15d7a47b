"""The first stage: the layers, and those that may be replaced."""

from __future__ import annotations

from typing import Any

from torch import nn

from sketchlayers.compression.stages.task import Log, Task
from sketchlayers.compression.survey.layers import Layer, Survey, survey
from sketchlayers.compression.survey.reasons import REFUSED, Reason
from sketchlayers.compression.survey.selection import left_out
from sketchlayers.nn._geometry import CONVOLUTIONS

_PLAIN = (*CONVOLUTIONS, nn.Linear)


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


def refused_layers(task: Task, found: Survey, log: Log) -> list[Layer]:
    """Layers that are meant and not replaced, where numbers are rounded: these are alone."""
    if task.bits_of_refused is None:
        return []
    return [layer for layer in found.layers if _may_be_rounded(layer, log)]


def _may_be_rounded(layer: Layer, log: Log) -> bool:
    reason = log.reasons.get(layer.name) or layer.reason
    if reason is None or not (reason.kind == REFUSED or reason == Reason.FIRST_KEPT):
        return False
    weight = layer.module._parameters.get("weight")
    if weight is None or weight.is_meta or not weight.numel():
        return False
    return isinstance(layer.module, _PLAIN) and layer.parameters > 0


def _check_finite(layer: Layer) -> None:
    weight: Any = layer.module.get_parameter("weight").detach()
    bad = weight.numel() - int(weight.isfinite().sum())
    if bad:
        raise ValueError(
            f"compress: weights to fit must be finite (got {bad} NaN or infinite of "
            f"{weight.numel()} in {layer.name or 'the model'!r})"
        )
