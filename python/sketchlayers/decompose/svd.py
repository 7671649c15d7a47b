"""Two factors of a weight: the truncated singular value decomposition in the norm of the outputs.

Of all matrices of rank ``r``, ``W~ = P W`` is the nearest to ``W`` in ``|(W - W~) Sigma^(1/2)|``
when ``P`` projects on the ``r`` leading eigenvectors of ``W Sigma W^T``: the left singular vectors
of ``W Sigma^(1/2)``, for which no root of ``Sigma`` is needed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import check_count, check_dimensions
from ._norm import OutputNorm, relative

# Relative to the largest eigenvalue; beyond the rounding of second moments summed in float32.
_NEGATIVE = 1e-4


class LowRankFactors(NamedTuple):
    """``W~ = left @ right``, float64.

    Attributes:
        left: ``(T, r)``.
        right: ``(r, S, h, w)``, of as many axes as the weight.
        relative_error: ``|W - W~| / |W|`` in the norm of the second moment: the relative change of
            the layer's output on the calibration data.
        errors: one entry, the relative error in the norm that was minimised.
    """

    left: Tensor
    right: Tensor
    relative_error: float
    errors: tuple[float, ...]


def svd(
    weight: Tensor,
    rank: int,
    *,
    second_moment: Tensor | None = None,
    sensitivity: Tensor | None = None,
) -> LowRankFactors:
    """Weight of rank ``rank`` nearest to ``weight``: the global optimum, in closed form.

    Minimises ``tr(F (W - W~) Sigma (W - W~)^T)``. No inverse of ``Sigma`` is taken, so a singular
    one (fewer patches than inputs) is as good as any.

    Args:
        weight: ``(T, S)``, or ``(T, S, h, w)`` with one to three axes of the kernel.
        rank: from 1 to ``min(T, n)``, ``n = S h w``.
        second_moment: ``Sigma = E[x x^T]`` of the input patches ``(n, n)``; None is the identity.
        sensitivity: ``F``, weight of output errors, ``(T, T)`` or its diagonal ``(T,)``; None is
            the identity. A singular one gets a ridge of 1e-10 of its mean diagonal.

    Raises:
        RuntimeError: shapes that do not fit together.
        TypeError: tensors that are not floating point, a rank that is no whole number.
        ValueError: rank out of bounds, NaN or infinite entries, a second moment or sensitivity
            that is not symmetric positive semidefinite.
    """
    check_dimensions("svd", weight, (2, 3, 4, 5))
    check_count("svd", "rank", rank, min(weight.shape[0], weight[0].numel()))
    norm = OutputNorm("svd", weight, second_moment, sensitivity)
    return truncated(norm, weight.shape, rank)


def svd_errors(
    weight: Tensor,
    *,
    second_moment: Tensor | None = None,
    sensitivity: Tensor | None = None,
) -> Tensor:
    """Relative error of `svd` at every rank, in the norm that it minimises.

    Errors below 1e-8 are rounding.

    Args:
        weight, second_moment, sensitivity: as for `svd`.

    Returns:
        ``(min(T, n) + 1,)``, float64: the error at rank 0 (1, or 0 for a weight without effect),
        1, ..., ``min(T, n)``.

    Raises:
        RuntimeError, TypeError, ValueError: as for `svd`.
    """
    check_dimensions("svd_errors", weight, (2, 3, 4, 5))
    norm = OutputNorm("svd_errors", weight, second_moment, sensitivity)
    return tail_errors(squared_singular_values(norm))


def truncated(norm: OutputNorm, shape: torch.Size, rank: int) -> LowRankFactors:
    """`svd` for arguments that have been checked; ``shape`` is the weight's."""
    leading = spectrum(norm)[1][:, :rank].contiguous()
    left, right = norm.restore(leading), leading.mT @ norm.target
    error = norm.relative_error(left @ right)
    if norm.is_relative_error:
        minimised = error
    else:
        minimised = relative(norm.square(norm.target - leading @ right), norm.target_square)
    return LowRankFactors(left, right.reshape(rank, *shape[1:]), error, (minimised,))


def spectrum(norm: OutputNorm) -> tuple[Tensor, Tensor]:
    """Squared singular values of ``K^T W Sigma^(1/2)``, largest first, and left singular vectors.

    Returns:
        ``(m,)`` and ``(T, m)`` for ``m = min(T, n)``. The vectors lie in the range of ``K^T W``
        even where ``Sigma`` has none, so all ``m`` of them reproduce the weight.

    Raises:
        ValueError: the second moment is not positive semidefinite.
    """
    basis, gram, power = _gram(norm)
    values, vectors = descending_eigh(gram)
    return _checked(norm, values, power), vectors if basis is None else basis @ vectors


def squared_singular_values(norm: OutputNorm) -> Tensor:
    """What `spectrum` returns first, in a fraction of its time.

    Raises:
        ValueError: the second moment is not positive semidefinite.
    """
    _, gram, power = _gram(norm)
    return _checked(norm, torch.linalg.eigvalsh((gram + gram.mT) / 2).flip(-1), power)


def _gram(norm: OutputNorm) -> tuple[Tensor | None, Tensor, float]:
    """A basis of the outputs, if they are not all, products of outputs in it, and the weight's."""
    rows, basis = norm.target, None
    if rows.shape[0] > rows.shape[1]:
        basis, rows = torch.linalg.qr(rows)
    image = norm.image if basis is None else norm.times_second_moment(rows)
    return basis, image @ rows.mT, float(rows.square().sum())


def _checked(norm: OutputNorm, values: Tensor, power: float) -> Tensor:
    """Eigenvalues without rounding errors below zero."""
    unseen = torch.finfo(torch.float32).smallest_normal * power
    if values[-1] < -_NEGATIVE * values[0].abs() - unseen:
        raise ValueError(
            f"{norm.owner}: second_moment must be positive semidefinite "
            f"(got an output with the mean square {float(values[-1]):.3g})"
        )
    return values.clamp(min=0)


def descending_eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of a symmetric matrix, largest first, and the eigenvectors as columns."""
    values, vectors = torch.linalg.eigh((matrix + matrix.mT) / 2)
    return values.flip(-1), vectors.flip(-1)


def tail_errors(values: Tensor) -> Tensor:
    """``sqrt(sum of values[r:] / sum of values)`` for ``r = 0, 1, ..., len(values)``."""
    tails = torch.cat([values.new_zeros(1), values.flip(-1).cumsum(-1)]).flip(-1)
    return (tails / tails[0].clamp(min=torch.finfo(values.dtype).tiny)).sqrt()
