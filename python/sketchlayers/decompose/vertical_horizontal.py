"""A kernel as vertical filters followed by horizontal ones (Tai et al., ICLR 2016, 1511.06067)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import check_count, check_dimensions
from ._norm import OutputNorm
from ._separable import SeparableMoment


class VerticalHorizontal(NamedTuple):
    """``W~[t,s,i,j] = sum_r vertical[r,s,i] horizontal[t,r,j]``, float64.

    The two filters of a component have the same norm.

    Attributes:
        vertical: ``(R, S, h)``.
        horizontal: ``(T, R, w)``.
        relative_error: ``|W - W~| / |W|`` in the norm of the second moment: the relative change of
            the layer's output on the calibration data.
    """

    vertical: Tensor
    horizontal: Tensor
    relative_error: float


def vertical_horizontal(
    weight: Tensor,
    rank: int,
    *,
    second_moment: Tensor | None = None,
    sensitivity: Tensor | None = None,
) -> VerticalHorizontal:
    """Vertical and horizontal filters near ``weight``, in closed form.

    Without second moment and sensitivity they are the nearest: the singular vectors of the weight
    as a matrix ``(S h, w T)`` (Tai et al., theorem 1). The horizontal ones of a given set of
    vertical ones are always the best in the norm of the outputs. The vertical ones are those of the
    weight, or of the weight in the norm of the second moment as far as it is one of the channels,
    whichever is better; so the error is never above that of the published form, but it is no
    optimum.

    Args:
        weight: ``(T, S, h, w)``.
        rank: ``R``, from 1 to ``min(S h, T w)``, which is enough for every weight.
        second_moment, sensitivity: as for `tucker2`.

    Raises:
        RuntimeError, TypeError, ValueError: as for `tucker2`.
    """
    owner = "vertical_horizontal"
    check_dimensions(owner, weight, (4,))
    outputs, channels, height, width = weight.shape
    check_count(owner, "rank", rank, min(channels * height, outputs * width))
    norm = OutputNorm(owner, weight, second_moment, sensitivity)
    target = norm.target.reshape(weight.shape)
    verticals = [_vertical(target, rank)]
    if norm.second_moment is not None:
        channel_root = SeparableMoment(norm.second_moment, target.flatten(2)).channel_root
        seen = _vertical(torch.einsum("tsij,su->tuij", target, channel_root), rank)
        back = torch.linalg.pinv(channel_root, hermitian=True)
        verticals.append(torch.einsum("rui,us->rsi", seen, back))
    found = [(vertical, *_horizontal(norm, vertical, width)) for vertical in verticals]
    vertical, horizontal, change = min(found, key=lambda one: norm.square(one[2]))
    size = torch.linalg.vector_norm(vertical, dim=(1, 2))
    other = torch.linalg.vector_norm(horizontal, dim=(0, 2))
    balance = torch.where((size > 0) & (other > 0), (other / size).sqrt(), 1.0)
    approximation = norm.restore(norm.target - change)
    return VerticalHorizontal(
        vertical * balance[:, None, None],
        norm.restore(horizontal.flatten(1)).reshape(horizontal.shape) / balance[:, None],
        norm.relative_error(approximation),
    )


def _vertical(target: Tensor, rank: int) -> Tensor:
    """The leading left singular vectors of the weight as a matrix ``(S h, w T)``: ``(R, S, h)``."""
    matrix = target.permute(1, 2, 3, 0).flatten(2).flatten(0, 1)
    vectors = torch.linalg.svd(matrix, full_matrices=False)[0]
    return vectors[:, :rank].mT.reshape(rank, *target.shape[1:3])


def _horizontal(norm: OutputNorm, vertical: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The best horizontal filters ``(T, R, w)``, not restored, and what they leave ``(T, n)``.

    They are the coefficients of ``Z[(r,j'),(s,i,j)] = vertical[r,s,i] delta_jj'``.
    """
    columns = torch.eye(width).to(vertical)
    rank = len(vertical)
    basis = torch.einsum("rsi,kj->rksij", vertical, columns).flatten(2).flatten(0, 1)
    horizontal = norm.coefficients(norm.target, basis)
    return horizontal.unflatten(1, (rank, width)), norm.target - horizontal @ basis
