"""The weight that makes up for compressed layers before it."""

from __future__ import annotations

import math

from torch import Tensor

from ._checks import check_dimensions, check_finite, check_shape
from ._norm import as_moment
from ._solve import solve_ridged


def corrected_weight(
    weight: Tensor, cross_moment: Tensor, second_moment: Tensor, *, ridge: float = 1e-3
) -> Tensor:
    """Weight that maps the inputs a layer will really get to its original output.

    Once the layers before it are compressed, a layer gets ``x~`` in place of ``x``. With the
    moments ``C = E[y x~^T]`` of its original output ``y = W x`` and ``S = E[x~ x~^T]``,
    ``E|y - W' x~|^2 + lambda |W - W'|^2`` is least for::

        W' = (C + lambda W) (S + lambda I)^-1 = W + (C - W S) (S + lambda I)^-1.

    The ridge keeps ``W'`` at ``W`` in the directions in which ``x~`` hardly varies. Its default
    changed nothing where patches were many, and helped where they were few, on held-out images.
    With thousands of inputs and few outputs it is solved iteratively, to a residual of 1e-12.

    Args:
        weight: ``W``, ``(T, S, h, w)`` or ``(T, S)``.
        cross_moment: ``C (T, n)``, ``n = S h w``.
        second_moment: ``S (n, n)``.
        ridge: ``lambda`` relative to the mean of the diagonal of ``S``.

    Returns:
        ``W'``, float64, of the shape of ``weight``.

    Raises:
        RuntimeError: shapes that do not fit together.
        TypeError: tensors that are not floating point.
        ValueError: NaN or infinite entries, a second moment that is not symmetric positive
            semidefinite, a negative ridge.
    """
    owner = "corrected_weight"
    check_dimensions(owner, weight, (2, 3, 4, 5))
    inputs = weight[0].numel()
    check_shape(owner, "cross_moment", cross_moment, [(len(weight), inputs)])
    check_shape(owner, "second_moment", second_moment, [(inputs, inputs)])
    check_finite(owner, "weight", weight)
    check_finite(owner, "cross_moment", cross_moment)
    if not 0 <= ridge < math.inf:
        raise ValueError(f"{owner}: ridge must be at least 0 (got ridge={ridge})")
    matrix = weight.detach().double().flatten(1)
    cross = cross_moment.detach().to(matrix)
    moment = as_moment(owner, "second_moment", second_moment.to(weight.device))
    right = (cross - matrix @ moment).mT
    amount = ridge * float(moment.diagonal().mean())
    change = solve_ridged(owner, "second_moment", moment, amount, right).mT
    return (matrix + change).reshape(weight.shape)
