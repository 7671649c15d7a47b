"""A second moment taken as a Kronecker product, for starts and preconditioners."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

# Inputs of a patch up to which a layer is small: its fit keeps one core busy, and PyTorch's threads
# would wait for each other longer than they work. Above, float32 is worth its rounding.
SMALL_PATCH = 1200

# Of the preconditioners alone, relative to the mean of the diagonal: a matter of speed.
_RIDGE = 1e-6
_RIDGES = 6  # each ten times the one before


class SeparableMoment:
    """``Sigma ~ channels (x) positions``.

    Attributes:
        channels: ``sum_p Sigma_pp (S, S)``.
        positions: ``(p, p)``, the traces of the ``Sigma_pp'`` relative to the trace of ``Sigma``.
    """

    def __init__(self, second_moment: Tensor, like: Tensor) -> None:
        """Of ``second_moment (n, n)``, for a weight ``like (T, S, p)``."""
        channels, positions = like.shape[1:]
        blocks = second_moment.reshape(channels, positions, channels, positions)
        self.channels = blocks.diagonal(dim1=1, dim2=3).sum(-1)
        traces = blocks.diagonal(dim1=0, dim2=2).sum(-1)
        self.positions = traces / traces.trace()

    @property
    def single(self) -> SeparableMoment:
        """The same in float32, for preconditioners."""
        quick = copy.copy(self)
        quick.__dict__.pop("channel_root", None)
        quick.__dict__.pop("channel_factor", None)
        quick.channels, quick.positions = self.channels.float(), self.positions.float()
        return quick

    def modes(self, kernel: Sequence[int]) -> list[Tensor]:
        """Channels ``(S, S)`` and each axis of the kernel ``(k, k)``, to multiply as Kronecker."""
        modes = [self.channels]
        for axis, size in enumerate(kernel):
            before, after = math.prod(kernel[:axis]), math.prod(kernel[axis + 1 :])
            blocks = self.positions.reshape(before, size, after, before, size, after)
            blocks = blocks.diagonal(dim1=2, dim2=5).sum(-1)
            modes.append(blocks.diagonal(dim1=0, dim2=2).sum(-1))
        return modes

    @cached_property
    def channel_root(self) -> Tensor:
        """Symmetric root of ``channels``."""
        values, vectors = torch.linalg.eigh(self.channels)
        return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT

    @cached_property
    def channel_factor(self) -> Tensor:
        """Cholesky factor of ``channels`` with a ridge."""
        return preconditioner_factor(self.channels)


def preconditioner_factor(moment: Tensor) -> Tensor:
    """Cholesky factor of a positive semidefinite matrix with a ridge; of the identity for 0.

    The ridge covers rounding errors, which in float32 may be larger than it is at first.
    """
    mean = float(moment.diagonal().mean())
    ridge = _RIDGE * mean if mean > 0 else 1.0
    for _ in range(_RIDGES):
        factor, info = torch.linalg.cholesky_ex(_with_ridge(moment, ridge))
        if not info:
            return factor
        ridge *= 10
    return torch.linalg.cholesky(_with_ridge(moment, ridge))  # raises


def _with_ridge(moment: Tensor, ridge: float) -> Tensor:
    shifted = moment.clone()
    shifted.diagonal().add_(ridge)
    return shifted
