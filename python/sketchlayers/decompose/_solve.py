"""Linear systems: with a second moment and a ridge, and with what is known by its products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._norm import ridged_cholesky

# From this size on, and for this many times fewer right-hand sides, a factorisation in float32 and
# a few products in float64 take less time and memory than a factorisation in float64.
_LARGE, _FEW = 2048, 16
_TOLERANCE = 1e-12  # of every residual, relative to its right-hand side
_MOST_STEPS = 30  # four to seven are the rule
_SMALLEST = torch.finfo(torch.float64).tiny  # a column that has converged to zero stays there


def solve_ridged(owner: str, name: str, moment: Tensor, ridge: float, right: Tensor) -> Tensor:
    """``(moment + ridge I)^-1 right`` in float64.

    Large systems are solved by conjugate gradients to a residual of 1e-12 of the right-hand side,
    preconditioned by a Cholesky factor in float32. Where these do not converge, and for small
    systems, by a Cholesky factor in float64.

    Args:
        owner: name of the caller, for messages.
        name: what the caller calls the moment.
        moment: symmetric ``(n, n)``, float64.
        ridge: at least 0.
        right: ``(n, T)``, float64.

    Raises:
        ValueError: the moment is not positive semidefinite.
    """
    if len(moment) >= max(_LARGE, _FEW * right.shape[1]):
        solution = _preconditioned(moment, ridge, right)
        if solution is not None:
            return solution
    shifted = moment.clone()
    shifted.diagonal().add_(ridge)
    return torch.cholesky_solve(right, ridged_cholesky(owner, name, shifted)[0])


def _preconditioned(moment: Tensor, ridge: float, right: Tensor) -> Tensor | None:
    """By conjugate gradients, each column for itself; None where they do not converge."""
    scale = float(moment.diagonal().mean()) + ridge
    if not scale > 0:
        return None
    single = torch.empty_like(moment, dtype=torch.float32)
    torch.mul(moment, 1 / scale, out=single)  # entries that float32 can hold
    single.diagonal().add_(ridge / scale)
    factor, info = torch.linalg.cholesky_ex(single)
    del single
    if info:
        return None
    sizes = torch.linalg.vector_norm(right, dim=0)
    unit = torch.where(sizes > 0, sizes, 1.0)  # so that the residuals, too, fit into float32
    residual = right / unit
    solution, direction = torch.zeros_like(residual), torch.zeros_like(residual)
    before = residual.new_ones(residual.shape[1])
    for _ in range(_MOST_STEPS):
        if bool((torch.linalg.vector_norm(residual, dim=0) <= _TOLERANCE).all()):
            return solution * unit
        solved = torch.cholesky_solve(residual.float(), factor).double()
        product = (residual * solved).sum(0)
        direction = solved + product / before.clamp(min=_SMALLEST) * direction
        image = moment @ direction + ridge * direction
        step = product / (direction * image).sum(0).clamp(min=_SMALLEST)
        solution += step * direction
        residual -= step * image
        before = product
    return None


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    right: Tensor,
    max_iterations: int,
    tolerance: float,
    *,
    start: Tensor | None = None,
    inverse: Tensor | float = 1.0,
) -> Tensor:
    """Solves ``apply(x) = right`` for vectors.

    Args:
        apply: symmetric positive semidefinite.
        right: the right-hand side.
        max_iterations: the most steps.
        tolerance: of the residual, relative to the right-hand side.
        start: first guess; None is zero.
        inverse: diagonal preconditioner.
    """
    solution = torch.zeros_like(right) if start is None else start
    residual = right if start is None else right - apply(start)
    direction = torch.zeros_like(right)
    previous = 1.0
    enough = tolerance * float(right.norm())
    for _ in range(max_iterations):
        if float(residual.norm()) <= enough:
            break
        scaled = inverse * residual
        size = float(residual @ scaled)
        direction = scaled + size / previous * direction
        image = apply(direction)
        bend = float(direction @ image)
        if bend <= 0:  # what is left lies where nothing is seen
            break
        step = size / bend
        solution = solution + step * direction
        residual = residual - step * image
        previous = size
    return solution
