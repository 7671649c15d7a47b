"""Coefficients in a fixed dictionary nearest to a weight, in the norm of its outputs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import check_finite, check_shape
from ._norm import OutputNorm


class DictionaryFit(NamedTuple):
    """Coefficients, float64, and what they leave.

    Attributes:
        coefficients: ``(columns, T / columns, m)``.
        relative_error: ``|W - W~| / |W|`` in the norm of the second moment: the relative change of
            the layer's output on the calibration data.
    """

    coefficients: Tensor
    relative_error: float


@torch.no_grad()
def dictionary_least_squares(
    weight: Tensor, dictionary: Tensor, *, second_moment: Tensor | None = None
) -> DictionaryFit:
    """``V`` for which ``V U`` is nearest to a weight: ``V = W Sigma U^T (U Sigma U^T)^-1``.

    Every row is a problem of its own, so a sensitivity of the outputs changes nothing. Solved by a
    pseudo-inverse of ``L^T U^T``, ``Sigma = L L^T``, so that dependent rows of ``U`` do no harm.

    Args:
        weight: ``W (T, ...)`` with ``n`` entries in a row.
        dictionary: ``U (columns, m, n)``, each for an equal part of the rows, in order.
        second_moment: ``Sigma = E[x x^T]`` of the input patches ``(n, n)``; None is the identity. A
            singular one gets a ridge of 1e-10 of its mean diagonal.

    Raises:
        RuntimeError: shapes that do not fit together.
        TypeError: tensors that are not floating point.
        ValueError: NaN or infinite entries, or a second moment that is not symmetric positive
            semidefinite.
    """
    owner = "dictionary_least_squares"
    norm = OutputNorm(owner, weight, second_moment, None)
    check_finite(owner, "dictionary", dictionary)
    rows, inputs = norm.weight.shape
    columns, rank = dictionary.shape[0], dictionary.shape[1]
    check_shape(owner, "dictionary", dictionary, [(columns, rank, inputs)])
    if rows % columns:
        raise RuntimeError(
            f"{owner}: the columns must divide the rows of the weight (got {columns} and {rows})"
        )
    target = norm.weight.unflatten(0, (columns, rows // columns))
    atoms = dictionary.double()
    coefficients = norm.coefficients(target, atoms)
    approximation = (coefficients @ atoms).flatten(0, 1)
    return DictionaryFit(coefficients, norm.relative_error(approximation))
