"""The error of a CP decomposition as a function of all factors but that of the outputs.

For given factors of the inputs and of the kernel's axes, and their column-wise Kronecker product
``Z``, the factor of the outputs has the closed form ``W Sigma Z (Z^T Sigma Z)^-1``. The gradient of
what is left needs no product with ``Sigma`` but the one of its value. Without a second moment all
products of ``Z`` follow from those of the factors (Kolda and Bader, SIAM Review 2009), which makes
a sweep several times cheaper.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import cached_property, reduce
from typing import NamedTuple

import torch
from torch import Tensor

from ._norm import OutputNorm
from ._separable import SMALL_PATCH, SeparableMoment, preconditioner_factor
from .svd import descending_eigh


class Components(NamedTuple):
    """Singular components of a weight's slices along the principal vectors of the kernel's axes.

    Attributes:
        principal: ``(k, k)`` for each axis of the kernel.
        left: ``(p, T, m)``, singular vectors, for each choice of principal vectors.
        right: ``(p, S, m)``, the slices' products with these.
        values: ``(p, m)``.
    """

    principal: list[Tensor]
    left: Tensor
    right: Tensor
    values: Tensor


class Problem:
    """A weight in a norm, with what does not depend on the factors.

    The variables are one matrix ``(S + h + w, R)``: inputs and the kernel's axes.

    Attributes:
        norm: what the outputs are restored from.
        channels, kernel: sizes of the axes but the outputs'.
        weighed: ``K^T W Sigma (T, n)``.
        square: ``|K^T W Sigma^(1/2)|^2``.
        second_moment: ``Sigma (n, n)``; None is the identity.
        is_small: on a CPU, and of few numbers.
    """

    def __init__(self, norm: OutputNorm, shape: torch.Size, second_moment: Tensor | None) -> None:
        self.norm = norm
        _, self.channels, *self.kernel = shape
        self.second_moment, self.weighed = None, norm.target
        if second_moment is not None:
            self.second_moment = norm.ridged_second_moment()
            self.weighed = norm.target @ self.second_moment
        self.square = float((self.weighed * norm.target).sum())
        self._target = norm.target.reshape(shape)
        self.is_small = self._target.is_cpu and self._target[0].numel() <= SMALL_PATCH

    @cached_property
    def single(self) -> Problem:
        """The problem in float32."""
        quick = copy.copy(self)
        quick.weighed = self.weighed.float()
        if self.second_moment is not None:
            quick.second_moment = self.second_moment.float()
            quick.modes = [mode.float() for mode in self.modes]
            quick.inverse_modes = [inverse.float() for inverse in self.inverse_modes]
        return quick

    @cached_property
    def separable(self) -> SeparableMoment:
        """What ``Sigma``, if there is one, is taken for in a start and as preconditioner."""
        assert self.second_moment is not None
        return SeparableMoment(self.second_moment, self._target.flatten(2))

    @cached_property
    def modes(self) -> list[Tensor]:
        """Second moments of inputs and of the kernel's axes, were ``Sigma`` separable."""
        return self.separable.modes(self.kernel)

    @cached_property
    def inverse_modes(self) -> list[Tensor]:
        """Their inverses, with a ridge."""
        return [torch.cholesky_inverse(preconditioner_factor(mode)) for mode in self.modes]

    def split(self, variables: Tensor) -> tuple[Tensor, ...]:
        """Inputs, and one factor for each axis of the kernel."""
        return variables.split([self.channels, *self.kernel], dim=-2)

    def random_start(self, rank: int, generator: torch.Generator) -> Tensor:
        """Gaussian vectors of norm 1."""
        size = self.channels + sum(self.kernel)
        entries = torch.randn(size, rank, dtype=torch.float64, generator=generator)
        return torch.cat([normalised(part) for part in self.split(entries.to(self._target))])

    def slices(self, rank: int, root: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs ``(T, rank)`` and variables: the weight's largest components of its slices.

        Its slices are those along the principal vectors of the kernel's axes, their components the
        singular ones, of the slices times ``root (S, S)``. All of them together are the weight. A
        weight that has fewer (of dead channels) gets random ones for the rest, without outputs.
        """
        principal, left, right, values = (
            self._plain_components if root is None else self._components(root)
        )
        largest = values.flatten().topk(rank).indices
        *places, _ = torch.unravel_index(largest, (*self.kernel, values.shape[1]))
        place, number = largest // values.shape[1], largest % values.shape[1]
        outputs, inputs = left[place, :, number].mT, right[place, :, number].mT
        at = [basis[:, chosen] for basis, chosen in zip(principal, places, strict=True)]
        variables = torch.cat([inputs, *at])
        sizes = values[place, number]
        is_none = sizes <= torch.finfo(sizes.dtype).eps * sizes[0]
        others = self.random_start(rank, torch.Generator().manual_seed(0))
        return torch.where(is_none, 0.0, outputs), torch.where(is_none, others, variables)

    @cached_property
    def _plain_components(self) -> Components:
        return self._components(torch.eye(self.channels).to(self._target))

    def _components(self, root: Tensor) -> Components:
        axes = "ijk"[: len(self.kernel)]
        seen = torch.einsum(f"ts{axes},su->tu{axes}", self._target, root)
        principal = []
        for axis in axes:
            other = axes.replace(axis, "l")
            gram = torch.einsum(f"ts{axes},ts{other}->{axis}l", seen, seen)
            principal.append(descending_eigh(gram)[1])
        turned = "abc"[: len(axes)]
        turns = ",".join(map("".join, zip(axes, turned, strict=True)))
        slices = torch.einsum(f"ts{axes},{turns}->{turned}ts", self._target, *principal)
        slices = slices.flatten(0, -3)
        left, values, _ = torch.linalg.svd(slices @ root, full_matrices=False)
        return Components(principal, left, slices.mT @ left, values)

    def basis(self, variables: Tensor) -> Tensor:
        """``Z (n, R)``."""
        return column_products(self.split(variables))


class Point:
    """The best outputs for the other factors.

    Attributes:
        ridge: in parts of the components' squared norms.
        variables: those of the problem.
        square: squared relative error with the ridge; infinite where the factors are dependent.
        outputs: ``(T, R)``.
    """

    def __init__(self, problem: Problem, ridge: float, variables: Tensor) -> None:
        self._problem, self.ridge, self.variables = problem, ridge, variables
        basis = problem.basis(variables)
        if problem.second_moment is None:
            gram = _product(self._grams)
        else:
            self._spread = problem.second_moment @ basis
            gram = basis.mT @ self._spread
        self._squares = gram.diagonal().clone()
        gram.diagonal().add_(self._squares, alpha=ridge)
        factor, info = torch.linalg.cholesky_ex(gram)
        if info:
            self.square = math.inf
            return
        projected = torch.linalg.solve_triangular(factor, (problem.weighed @ basis).mT, upper=False)
        self.outputs = torch.linalg.solve_triangular(factor.mT, projected, upper=True).mT
        self.square = max(0.0, 1 - float(projected.double().square().sum()) / problem.square)

    @property
    def ridged(self) -> float:
        """The part of the ridge in the squared error."""
        strengths = self.outputs.square().sum(0) * self._squares
        return self.ridge * float(strengths.sum()) / self._problem.square

    @cached_property
    def _grams(self) -> list[Tensor]:
        """Of each factor of the variables, in the norm of its mode."""
        factors = self._problem.split(self.variables)
        if self._problem.second_moment is None:
            return [factor.mT @ factor for factor in factors]
        modes = self._problem.modes
        return [factor.mT @ (mode @ factor) for factor, mode in zip(factors, modes, strict=True)]

    @cached_property
    def _output_gram(self) -> Tensor:
        """Of the outputs, as the Hessian for them fixed has it."""
        gram = self.outputs.mT @ self.outputs
        gram.diagonal().mul_(1 + self.ridge)
        return gram * (2 / self._problem.square)

    @cached_property
    def _other_grams(self) -> list[Tensor]:
        """For each factor of the variables the product of all others' grams, outputs included."""
        grams, outputs = self._grams, self._output_gram
        return [_product([outputs, *grams[:own], *grams[own + 1 :]]) for own in range(len(grams))]

    def gradient(self) -> Tensor:
        """By the variables."""
        problem = self._problem
        factors = problem.split(self.variables)
        image = problem.weighed.mT @ (self.outputs * (-2 / problem.square))
        if problem.second_moment is None:
            pairs = zip(factors, self._other_grams, strict=True)
            own = torch.cat([factor @ others for factor, others in pairs])
            return own + torch.cat(_contracted(image, factors))
        return torch.cat(_contracted(image.addmm_(self._spread, self._output_gram), factors))

    def precondition(self, vector: Tensor) -> Tensor:
        """Inverse Hessian of each factor for the others fixed, were ``Sigma`` separable."""
        problem = self._problem
        parts = problem.split(vector)
        if problem.second_moment is not None:
            modes = problem.inverse_modes
            parts = tuple(mode @ part for mode, part in zip(modes, parts, strict=True))
        pairs = zip(parts, self._preconditioners, strict=True)
        return torch.cat([_solved(factor, part) for part, factor in pairs], dim=-2)

    @cached_property
    def _preconditioners(self) -> list[Tensor]:
        """Cholesky factors of `_other_grams`."""
        return [preconditioner_factor(others) for others in self._other_grams]


def column_products(factors: Sequence[Tensor]) -> Tensor:
    """The column-wise Kronecker product, ``(h w, R)`` for ``(h, R)`` and ``(w, R)``."""
    *others, product = factors
    for factor in reversed(others):
        product = (factor[:, None] * product).flatten(0, 1)
    return product


def normalised(matrix: Tensor) -> Tensor:
    """Columns of norm 1; a zero column stays."""
    norms = torch.linalg.vector_norm(matrix, dim=0)
    return matrix / torch.where(norms > 0, norms, 1.0)


def _product(grams: Sequence[Tensor]) -> Tensor:
    """The entrywise product, a new tensor; there are two at least."""
    first, second, *others = grams
    return reduce(torch.mul, others, first * second)


def _contracted(matrix: Tensor, factors: Sequence[Tensor]) -> list[Tensor]:
    """For each factor the sums of ``matrix (n, R)`` times the column products of the others."""
    sums = []
    for number, factor in enumerate(factors[:-1], 1):  # what is left has one axis less
        matrix = matrix.unflatten(0, (len(factor), -1))
        sums.append((matrix * column_products(factors[number:])).sum(1))
        matrix = (matrix * factor[:, None]).sum(0)
    return [*sums, matrix]


def _solved(factor: Tensor, rows: Tensor) -> Tensor:
    """``rows (..., m, R)`` times the inverse of the matrix ``(R, R)`` with this factor."""
    solution = torch.cholesky_solve(rows.flatten(0, -2).mT, factor).mT
    return solution.reshape(rows.shape)
