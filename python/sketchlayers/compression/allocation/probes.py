"""Layers that are wrong by a given amount, to see what that does to a network.

What a method gets wrong is taken from one quick fit and scaled: errors of different kinds do
different harm. Those of a singular value decomposition are alike at neighbouring positions, so that
pooling keeps them, and those of CP are not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sketchlayers.compression.calibration.moments import LayerMoments
from sketchlayers.compression.fitting.layer import Norm, power, with_weight
from sketchlayers.nn._geometry import ordinary_weight

_NOTHING = 1e-12
"""Squared relative error below which there is only rounding."""


@torch.no_grad()
def probes(
    layer: nn.Module,
    fitted: nn.Module,
    norm: Norm,
    squared_errors: Sequence[float],
    *,
    correct_bias: bool,
) -> Iterator[tuple[float, nn.Module]]:
    """Yields the plain layer with each of some squared relative errors in a norm.

    There are none where the replacement has no error.

    Args:
        layer: the original.
        fitted: a replacement, as a plain layer, whose error is scaled.
        norm: in which the errors are meant.
        squared_errors: of the layers.
        correct_bias: the bias takes up the change of the mean.
    """
    weight = _weight(layer)
    error = weight - _weight(fitted)
    size, whole = power(with_weight(layer, error), norm), power(layer, norm)
    if size <= _NOTHING * whole:
        return
    for squared_error in squared_errors:
        change = math.sqrt(squared_error * whole / size) * error
        probe = with_weight(layer, weight - change)
        if correct_bias and norm.moments is not None:
            _correct_bias(probe, change, norm.moments)
        yield squared_error, probe.to(layer.get_parameter("weight").dtype)


def _weight(layer: nn.Module) -> Tensor:
    return ordinary_weight(layer).detach().double().cpu()


def _correct_bias(layer: nn.Module, change: Tensor, moments: LayerMoments) -> None:
    bias: Any = getattr(layer, "bias", None)
    if bias is not None:
        groups, patch = moments.mean.shape
        mean = change.reshape(groups, -1, patch) @ moments.mean[..., None]
        bias += mean.reshape(bias.shape).to(bias)
