"""Layers that are wrong by a given amount, to see what that does to a network.

What the smallest singular components of a weight carry is taken away in part: in the norm of the
outputs that is what every method loses, and no fit is needed for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sketchlayers.compression.calibration.moments import LayerMoments
from sketchlayers.compression.fitting.layer import Norm, for_method, with_weight
from sketchlayers.decompose._norm import OutputNorm
from sketchlayers.decompose.svd import spectrum, tail_errors
from sketchlayers.nn._geometry import ordinary_weight
from sketchlayers.nn._groups import groups_of


@torch.no_grad()
def probes(
    layer: nn.Module, norm: Norm, squared_errors: Sequence[float], *, correct_bias: bool
) -> Iterator[nn.Module]:
    """Yields the plain layer with each of some squared relative errors in a norm.

    Args:
        layer: the original.
        norm: in which the errors are meant.
        squared_errors: between 0 and 1.
        correct_bias: the bias takes up the change of the mean.
    """
    weight = ordinary_weight(layer).detach().double().cpu()
    moment = None if norm.moments is None else for_method(norm.moments.second_moment)
    spectra = []
    count = getattr(layer, "groups", 1)
    for group in groups_of("compress", weight, count, moment, for_method(norm.sensitivity)):
        found = OutputNorm("compress", group.weight, group.second_moment, group.sensitivity)
        spectra.append((found, *spectrum(found)))
    for squared_error in squared_errors:
        changes = torch.cat([_change(*one, squared_error) for one in spectra])
        probe = with_weight(layer, weight - changes.reshape(weight.shape))
        if correct_bias and norm.moments is not None:
            _correct_bias(probe, changes, norm.moments)
        yield probe.to(layer.get_parameter("weight").dtype)


def _change(norm: OutputNorm, values: Tensor, vectors: Tensor, squared_error: float) -> Tensor:
    """What is taken away from a weight, ``(T, n)``: least components, so much of them."""
    tails = tail_errors(values).square()
    rank = int((tails >= squared_error).sum()) - 1  # they fall
    if rank < 0:  # a weight without effect
        return torch.zeros_like(norm.weight)
    lost = vectors[:, rank:]
    share = math.sqrt(squared_error / float(tails[rank]))
    return share * norm.restore(lost) @ (lost.mT @ norm.target)


def _correct_bias(layer: nn.Module, changes: Tensor, moments: LayerMoments) -> None:
    bias: Any = getattr(layer, "bias", None)
    if bias is not None:
        by_group = changes.unflatten(0, (len(moments.mean), -1))
        bias += (by_group @ moments.mean[..., None]).reshape(bias.shape).to(bias)
