"""Fitted layers as tensors and numbers, for files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sketchlayers.compression.fitting.layer import Choice, Fitted, seeded, with_weight
from sketchlayers.compression.survey.layers import stored_tensors
from sketchlayers.nn._geometry import ordinary_weight
from sketchlayers.nn._rounding import Rounding, note, roundings

_SCALE = ":scale:"
"""Between the name of a parameter that is rounded and its bits."""


class Stored(NamedTuple):
    """What is kept of a fitted layer.

    Attributes:
        tensors: its parameters and persistent buffers, and the scales of those that are rounded.
        errors: change of its output and of its weight, each relative; None where not known.
    """

    tensors: Mapping[str, Tensor]
    errors: tuple[float | None, float | None]


def stored_form(fitted: Fitted) -> Stored:
    """Returns copies of all that is kept of a layer."""
    tensors = {name: x.detach().clone() for name, x in stored_tensors(fitted.module)}
    for name, rounding in roundings(fitted.module):
        tensors[f"{name}{_SCALE}{rounding.bits}"] = rounding.scale
    return Stored(tensors, (fitted.relative_error, getattr(fitted.module, "fit_error", None)))


def restored(stored: Stored, choice: Choice) -> Fitted:
    """Builds the layer of a choice from what was kept of it.

    Raises:
        KeyError, RuntimeError: it is of another layer.
    """
    layer = choice.layer
    scales = {name: x for name, x in stored.tensors.items() if _SCALE in name}
    tensors = {name: x for name, x in stored.tensors.items() if name not in scales}
    like = layer.get_parameter("weight")
    module: Any
    if choice.method is None or choice.rank is None:
        module = with_weight(layer, ordinary_weight(layer)).to(like.dtype)
        for name, parameter in module._parameters.items():
            if parameter is not None:
                _copy(parameter, tensors[name])
    else:
        with seeded(0, like.device):
            module = choice.method.build(layer, choice.rank, init="random", seed=choice.seed)
        module.load_state_dict(tensors)
    for key, scale in scales.items():
        name, bits = key.split(_SCALE)
        place, _, own = name.rpartition(".")
        note(module.get_submodule(place), own, Rounding(int(bits), scale))
    relative_error, fit_error = stored.errors
    if fit_error is not None:
        module.fit_error = fit_error
    return Fitted(module.to(like.dtype).train(layer.training), relative_error)


def _copy(parameter: nn.Parameter, values: Tensor) -> None:
    if parameter.shape != values.shape:
        raise RuntimeError(f"a parameter has another shape ({tuple(values.shape)})")
    with torch.no_grad():
        parameter.copy_(values)
