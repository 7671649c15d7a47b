"""The norm in which a decomposition is fitted: how much the outputs of a layer change.

With the second moment ``Sigma = E[x x^T]`` of the input patches and the sensitivity ``F`` to errors
of the outputs, the squared norm of a change ``E (T, n)`` of the weight is ``tr(F E Sigma E^T)``.
With ``F = K K^T`` it is the norm of ``K^T E`` for ``F = I``: wherever the factor of the outputs is
free, the sensitivity is a change of variables.
"""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from ._checks import check_finite, check_shape

# Ridges, relative to the mean of the diagonal, of a matrix that should be positive definite: what
# float64 resolves with room to spare, and what a rounded second moment may need at most.
SMALLEST_RIDGE = 1e-10
_LARGEST_RIDGE = 1e-2
_ASYMMETRY = 1e-3
_NOTHING = torch.finfo(torch.float32).smallest_normal  # below are only rounding errors of float32
_TILE = 160  # so small that PyTorch takes one thread for it, which waits for no other


class OutputNorm:
    """A weight as a matrix, and the norm in which it is approximated, in float64.

    Attributes:
        owner: name of the caller, for messages.
        weight: ``W (T, n)``.
        target: ``K^T W (T, n)``, what the factors approximate before `restore`.
        second_moment: ``Sigma (n, n)``, or None for the identity.
    """

    def __init__(
        self,
        owner: str,
        weight: Tensor,
        second_moment: Tensor | None,
        sensitivity: Tensor | None,
    ) -> None:
        """Check everything.

        Args:
            owner: name of the caller, for messages.
            weight: ``(T, ...)``.
            second_moment: ``(n, n)`` for ``n = weight[0].numel()``, or None.
            sensitivity: ``(T, T)``, or ``(T,)`` for a diagonal one, or None.

        Raises:
            RuntimeError: wrong shapes.
            TypeError: tensors that are not floating point.
            ValueError: NaN or infinite entries, a second moment or sensitivity that is not
                symmetric, or has negative diagonal entries; a sensitivity that is not positive
                semidefinite.
        """
        check_finite(owner, "weight", weight)
        self.owner = owner
        self.weight = weight.detach().double().flatten(1)
        outputs, inputs = self.weight.shape
        self.second_moment = None
        self._without_input = False
        if second_moment is not None:
            check_shape(owner, "second_moment", second_moment, [(inputs, inputs)])
            moment = as_moment(owner, "second_moment", second_moment.to(weight.device))
            self._without_input = not moment.diagonal().any()
            self.second_moment = None if self._without_input else moment
        self._root = None
        if sensitivity is not None:
            check_shape(owner, "sensitivity", sensitivity, [(outputs, outputs), (outputs,)])
            is_diagonal = sensitivity.dim() == 1
            sensitivity = as_moment(
                owner, "sensitivity", sensitivity.to(weight.device), is_diagonal=is_diagonal
            )
            self._root = sensitivity_root(owner, sensitivity)
        self.target = self.weigh(self.weight)

    @property
    def is_relative_error(self) -> bool:
        """Whether what is minimised is `relative_error` itself, for want of a sensitivity."""
        return self._root is None and not self._without_input

    def weigh(self, matrix: Tensor) -> Tensor:
        """``K^T matrix`` for a ``matrix (T, m)``."""
        return matrix if self._root is None else weigh_outputs(self._root, matrix)

    def restore(self, matrix: Tensor) -> Tensor:
        """``K^-T matrix`` for a ``matrix (T, m)``, the inverse of `weigh`."""
        return matrix if self._root is None else restore_outputs(self._root, matrix)

    def times_second_moment(self, matrix: Tensor) -> Tensor:
        """``matrix Sigma`` for a ``matrix (..., n)``."""
        return matrix if self.second_moment is None else matrix @ self.second_moment

    @cached_property
    def image(self) -> Tensor:
        """``K^T W Sigma (T, n)``."""
        return self.times_second_moment(self.target)

    @cached_property
    def moment_root(self) -> Tensor | None:
        """``L`` with ``Sigma = L L^T``, with a ridge where that is singular; None for the identity.

        Raises:
            ValueError: the second moment is not positive semidefinite.
        """
        if self.second_moment is None:
            return None
        return ridged_cholesky(self.owner, "second_moment", self.second_moment)[0]

    def coefficients(self, target: Tensor, basis: Tensor) -> Tensor:
        """``C`` for which ``|(target - C basis) Sigma^(1/2)|`` is least.

        By a pseudo-inverse, so that dependent rows of the basis do no harm.
        """
        root = self.moment_root
        if root is None:
            return target @ torch.linalg.pinv(basis)
        return (target @ root) @ torch.linalg.pinv(basis @ root)

    def square(self, matrix: Tensor) -> float:
        """``tr(matrix Sigma matrix^T)`` for a ``matrix (..., n)``."""
        image = self.times_second_moment(matrix)
        return max(0.0, float(torch.vdot(image.flatten(), matrix.flatten())))

    @cached_property
    def target_square(self) -> float:
        """``tr(F W Sigma W^T)``."""
        return max(0.0, float((self.image * self.target).sum()))

    @cached_property
    def _weight_square(self) -> float:
        return self.target_square if self._root is None else self.square(self.weight)

    def relative_error(self, approximation: Tensor) -> float:
        """``|(W - W~) Sigma^(1/2)| / |W Sigma^(1/2)|``, of outputs as they are, not sensitivities.

        A layer without any input (``Sigma = 0``) has the error 0.
        """
        if self._without_input:
            return 0.0
        difference = self.weight - approximation.flatten(1)
        return relative(self.square(difference), self._weight_square)

    def ridged_second_moment(self) -> Tensor:
        """``Sigma (n, n)`` with the smallest ridge that makes it positive definite.

        Raises:
            ValueError: it is not positive semidefinite.
        """
        if self.second_moment is None:
            return torch.eye(self.weight.shape[1]).to(self.weight)
        ridge = _last_checked.ridge_of(self.second_moment)
        if ridge is None:
            _, ridge = ridged_cholesky(self.owner, "second_moment", self.second_moment)
            _last_checked.note_ridge(self.second_moment, ridge)
        if not ridge:
            return self.second_moment
        moment = self.second_moment.clone()
        moment.diagonal().add_(ridge)
        return moment


def relative(square: float, reference: float) -> float:
    """``sqrt(square / reference)``; 0 when both are 0."""
    if reference == 0:
        return 0.0 if square == 0 else math.inf
    return math.sqrt(square / reference)


def as_moment(owner: str, name: str, moment: Tensor, *, is_diagonal: bool = False) -> Tensor:
    """``moment`` in float64, exactly symmetric; zero where it is rounding errors of float32 alone.

    Args:
        owner: name of the caller, for messages.
        name: what the caller calls it.
        moment: positive semidefinite ``(..., n, n)``, or diagonals ``(..., n)``.
        is_diagonal: which of them.

    Raises:
        TypeError: not floating point.
        ValueError: NaN or infinite entries, not symmetric, negative diagonal entries.
    """
    if not is_diagonal and _last_checked.is_of(moment):
        return moment.detach()
    given = moment
    check_finite(owner, name, moment)
    moment = moment.detach().double()
    asymmetry = 0.0 if is_diagonal else _asymmetry(moment)
    if asymmetry > _ASYMMETRY * float(torch.linalg.vector_norm(moment)):
        raise ValueError(f"{owner}: {name} must be symmetric (got asymmetry={asymmetry:.3g})")
    diagonal = moment if is_diagonal else moment.diagonal(dim1=-2, dim2=-1)
    smallest = float(diagonal.min())
    if smallest < 0 and float(diagonal.abs().max()) < _NOTHING:
        return torch.zeros_like(moment)
    if smallest < 0:
        raise ValueError(
            f"{owner}: {name} must be positive semidefinite (got {smallest:.3g} on the diagonal)"
        )
    if asymmetry:
        return (moment + moment.mT) / 2
    if not is_diagonal and given.dtype == torch.float64 and given.numel() >= _LARGE:
        _last_checked.note(given)
    return moment


_LARGE = 1 << 20
"""Entries from which on a moment that has been checked is remembered."""


class _LastChecked:
    """Knows the last large moment that was found to be one, and its ridge: both take their time."""

    def __init__(self) -> None:
        self._storage: StorageWeakRef | None = None  # while it is known, its address is not reused
        self._facts: tuple[object, ...] = ()
        self._ridge: float | None = None

    def note(self, moment: Tensor) -> None:
        """Takes a moment that has passed all checks."""
        if not moment.is_inference():
            self._ridge = None
            self._storage = StorageWeakRef(moment.untyped_storage())
            self._facts = self._facts_of(moment)

    def note_ridge(self, moment: Tensor, ridge: float) -> None:
        """Takes the ridge of the moment, if that is the last one."""
        if self.is_of(moment):
            self._ridge = ridge

    def ridge_of(self, moment: Tensor) -> float | None:
        """Returns the moment's ridge, as far as it is known."""
        return self._ridge if self.is_of(moment) else None

    def is_of(self, moment: Tensor) -> bool:
        """Tells whether the moment is that one, and has not been written to."""
        return (
            self._storage is not None
            and not moment.is_inference()
            and moment.untyped_storage()._cdata == self._storage.cdata
            and self._facts_of(moment) == self._facts
        )

    def _facts_of(self, moment: Tensor) -> tuple[object, ...]:
        return moment.dtype, moment.shape[-2:], moment.numel(), moment.data_ptr(), moment._version


_last_checked = _LastChecked()


def _asymmetry(matrix: Tensor) -> float:
    """``|M - M^T|``, by tiles that fit into a cache, without a second matrix in memory."""
    squares = 0.0
    tiles = [slice(start, start + _TILE) for start in range(0, matrix.shape[-1], _TILE)]
    for place, rows in enumerate(tiles):
        for columns in tiles[place:]:
            difference = matrix[..., rows, columns] - matrix[..., columns, rows].mT
            pairs = 1 if rows == columns else 2
            squares += pairs * float(torch.linalg.vector_norm(difference)) ** 2
    return math.sqrt(squares)


def ridged_cholesky(
    owner: str, name: str, matrix: Tensor, smallest: float = SMALLEST_RIDGE
) -> tuple[Tensor, float]:
    """Cholesky factor of a matrix, with the smallest ridge that makes it positive definite.

    Where a direction has a conditional second moment below ``smallest`` of the mean diagonal (dead
    channels, flat image borders, fewer patches than entries), that much is added to the diagonal,
    or the least power of ten times it with which the factorisation succeeds. A zero matrix gets
    the identity.

    Args:
        owner: name of the caller, for messages.
        name: what the caller calls the matrix.
        matrix: symmetric ``(n, n)``, float64.
        smallest: the least ridge, relative to the mean of the diagonal.

    Returns:
        Lower triangular ``(n, n)``, and the ridge that was added to the diagonal.

    Raises:
        ValueError: not positive semidefinite.
    """
    mean = float(matrix.diagonal().mean())
    if mean == 0:
        return torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device), 1.0
    factor, info = torch.linalg.cholesky_ex(matrix)
    if not info and factor.diagonal().square().min() >= smallest * mean:
        return factor, 0.0
    ridges = [smallest]
    while ridges[-1] * 10 <= _LARGEST_RIDGE * 1.1:
        ridges.append(ridges[-1] * 10)
    found = None
    while ridges:  # mostly it is the first one; if not, each trial halves what is left
        middle = 0 if ridges[0] == smallest else len(ridges) // 2
        shifted = matrix.clone()
        shifted.diagonal().add_(ridges[middle] * mean)
        factor, info = torch.linalg.cholesky_ex(shifted)
        if info:
            ridges = ridges[middle + 1 :]
        else:
            found = factor, ridges[middle] * mean
            ridges = ridges[:middle]
    if found is not None:
        return found
    raise ValueError(
        f"{owner}: {name} must be positive semidefinite (got a matrix that is not even "
        f"after adding {_LARGEST_RIDGE:g} of its mean diagonal)"
    )


def sensitivity_root(owner: str, sensitivity: Tensor) -> Tensor:
    """``K`` with ``F = K K^T``: lower triangular ``(T, T)``, or ``(T,)`` for a diagonal ``F``.

    A singular ``F`` gets a ridge that leaves its order of importance as it is.
    """
    if sensitivity.dim() == 2:
        return ridged_cholesky(owner, "sensitivity", sensitivity)[0]
    mean = sensitivity.mean()
    if mean == 0:
        return torch.ones_like(sensitivity)
    return sensitivity.clamp(min=SMALLEST_RIDGE * float(mean)).sqrt()


def weigh_outputs(root: Tensor, matrix: Tensor) -> Tensor:
    """``K^T matrix`` for ``matrix (..., T, m)`` and a root from `sensitivity_root`, or several."""
    is_diagonal = root.dim() < matrix.dim()
    return root[..., None] * matrix if is_diagonal else root.mT @ matrix


def restore_outputs(root: Tensor, matrix: Tensor) -> Tensor:
    """``K^-T matrix``, the inverse of `weigh_outputs`."""
    is_diagonal = root.dim() < matrix.dim()
    if is_diagonal:
        return matrix / root[..., None]
    return torch.linalg.solve_triangular(root.mT, matrix, upper=True)
