"""The norm in which a decomposition is fitted: a second moment and its Cholesky factor."""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import check_finite

# Relative to the mean of the diagonal. A direction with less than the first needs a ridge; a matrix
# that needs more than the last is no second moment.
_RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
_ASYMMETRY = 1e-3


def second_moment_factor(owner: str, second_moment: Tensor, groups: int, size: int) -> Tensor:
    """Cholesky factor ``L`` of the second moment of each group, ``Sigma = L L^T``.

    Where a direction has a conditional second moment below 1e-6 of the mean one (dead channels,
    flat image borders, fewer patches than entries), a ridge of 1e-6 of the mean is added to the
    diagonal: the fit then takes the weight's own norm in that direction. A group without any input
    (Sigma = 0) is left with the ridge alone, a multiple of the identity.

    Args:
        owner: name of the caller, for messages.
        second_moment: ``(n, n)``, or ``(groups, n, n)`` with one for each group.
        groups: number of groups.
        size: ``n``, the inputs of one output.

    Returns:
        Lower triangular ``(groups, n, n)``, float64.

    Raises:
        RuntimeError: wrong shape.
        TypeError: not floating point.
        ValueError: NaN or infinite entries, not symmetric, or not positive semidefinite.
    """
    if second_moment.shape not in {(size, size), (groups, size, size)}:
        raise RuntimeError(
            f"{owner}: second_moment must have shape ({size}, {size}) or "
            f"({groups}, {size}, {size}) (got shape={tuple(second_moment.shape)})"
        )
    check_finite(owner, "second_moment", second_moment)
    sigma = second_moment.detach().double().expand(groups, size, size)
    asymmetry = torch.linalg.vector_norm(sigma - sigma.mT)
    if asymmetry > _ASYMMETRY * torch.linalg.vector_norm(sigma):
        raise ValueError(
            f"{owner}: second_moment must be symmetric (got asymmetry={asymmetry:.3g})"
        )
    sigma = (sigma + sigma.mT) / 2
    mean = sigma.diagonal(dim1=-2, dim2=-1).mean(-1)
    if (mean < 0).any():
        raise ValueError(
            f"{owner}: second_moment must be positive semidefinite "
            f"(got trace={mean.min() * size:.3g})"
        )
    mean = torch.where(mean == 0, 1.0, mean)
    identity = torch.eye(size, dtype=torch.float64, device=sigma.device)
    factor, info = torch.linalg.cholesky_ex(sigma)
    smallest = factor.diagonal(dim1=-2, dim2=-1).square().amin(-1)
    weak = (info != 0) | ~(smallest >= _RIDGES[0] * mean)
    for ridge in _RIDGES:
        if not weak.any():
            return factor
        shift = (ridge * mean[weak])[:, None, None] * identity
        factor[weak], info[weak] = torch.linalg.cholesky_ex(sigma[weak] + shift)
        weak = info != 0
    if weak.any():
        raise ValueError(
            f"{owner}: second_moment must be positive semidefinite (got a matrix that is not even "
            f"after adding {_RIDGES[-1]:g} of its mean diagonal)"
        )
    return factor
