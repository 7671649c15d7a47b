"""Shared values nearest to a weight, in the norm of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import check_count, check_tolerance
from ._norm import OutputNorm, relative
from ._solve import conjugate_gradients

Target = tuple[Tensor, Tensor | None, Tensor | None]


class SharedValues(NamedTuple):
    """Values, float64, and what they leave.

    Attributes:
        values: ``(K,)``.
        relative_error: ``|W - W~| / |W|`` in the norm of the second moment: the relative change of
            the layer's output on the calibration data.
    """

    values: Tensor
    relative_error: float


@torch.no_grad()
def hashed_least_squares(
    form: Callable[[Tensor], Tensor],
    count: int,
    targets: Sequence[Target],
    *,
    max_iterations: int = 100,
    tolerance: float = 1e-6,
) -> SharedValues:
    """The values ``v`` for which ``R v`` is nearest to a weight: least squares.

    ``R`` is linear, and every value is used in entries of its own: ``R^T R`` is diagonal, as it is
    of hashing and of hashed cosine coefficients. Without second moment and sensitivity the values
    are then means over their entries. In the norm of a second moment the normal equations
    ``R^T(F R(v) Sigma) = R^T(F W Sigma)`` couple them, and are solved by conjugate gradients that
    begin at those means, so that the error is never above theirs. A value without an entry is zero.

    Args:
        form: ``R``, differentiable: from ``(K,)`` to ``(groups, T, n)``, in the type given.
        count: ``K``.
        targets: of each group the weight ``W (T, ...)`` with ``n`` entries in a row; the second
            moment ``Sigma (n, n)`` of its patches; and the sensitivity ``F``, ``(T, T)`` or its
            diagonal ``(T,)``. None is the identity.
        max_iterations: of conjugate gradients.
        tolerance: of the residual, relative to the right-hand side.

    Raises:
        RuntimeError: shapes that do not fit together.
        TypeError: tensors that are not floating point, or a count that is not a whole number.
        ValueError: NaN or infinite entries, a second moment or sensitivity that is not symmetric
            positive semidefinite, or numbers out of bounds.
    """
    owner = "hashed_least_squares"
    check_count(owner, "count", count)
    check_count(owner, "max_iterations", max_iterations)
    check_tolerance(owner, tolerance)
    norms = [OutputNorm(owner, *target) for target in targets]
    weight = torch.stack([norm.weight for norm in norms])
    ones = torch.ones(count, dtype=torch.float64, device=weight.device)
    if form(ones).shape != weight.shape:
        raise RuntimeError(
            f"{owner}: form must give one matrix of each weight's shape, {tuple(weight.shape)} "
            f"(got {tuple(form(ones).shape)})"
        )

    def adjoint(matrix: Tensor) -> Tensor:
        with torch.enable_grad():
            values = torch.zeros_like(ones).requires_grad_()
            return torch.autograd.grad((form(values) * matrix).sum(), values)[0]

    uses = adjoint(form(ones)).clamp_min(0)
    inverse = torch.where(uses > 0.5, 1 / uses.clamp_min(0.5), 0.0)
    values = inverse * adjoint(weight)
    if any(norm.second_moment is not None for norm in norms) or any(
        sensitivity is not None for _, _, sensitivity in targets
    ):
        sensitivities = [sensitivity for _, _, sensitivity in targets]

        def spread(matrix: Tensor) -> Tensor:
            parts = zip(norms, sensitivities, matrix, strict=True)
            return torch.stack([_spread(*part) for part in parts])

        values = conjugate_gradients(
            lambda vector: adjoint(spread(form(vector))),
            adjoint(spread(weight)),
            max_iterations,
            tolerance,
            start=values,
            inverse=inverse,
        )
    changes = zip(norms, form(values), strict=True)
    squares = [norm.square(norm.weight - matrix) for norm, matrix in changes]
    sizes = [norm.square(norm.weight) for norm in norms]
    return SharedValues(values, relative(sum(squares), sum(sizes)))


def _spread(norm: OutputNorm, sensitivity: Tensor | None, matrix: Tensor) -> Tensor:
    """``F matrix Sigma``."""
    image = norm.times_second_moment(matrix)
    if sensitivity is None:
        return image
    weights = sensitivity.to(image)
    return weights @ image if weights.dim() == 2 else weights[:, None] * image
