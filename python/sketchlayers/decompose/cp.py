"""CP factors of a convolution's weight, in the norm of its outputs.

    W~[t, s, i, j] = sum_r outputs[t, r] inputs[s, r] rows[i, r] columns[j, r],

a 1x1 convolution, depthwise ones along rows and along columns, and another 1x1 one. Kernels may
have any number of axes, each with a factor of its own. In the norm of a second moment (Kalle,
Rudkiewicz, Ouerfelli, Tamaazousti, NeurIPS 2025, arXiv 2511.04494).

For given factors of the inputs and of the kernel's axes, and their column-wise Kronecker product
``Z``, those of the outputs have the closed form ``W Sigma Z (Z^T Sigma Z)^-1``. So the error is a
function of the other factors, whose gradient needs no product with ``Sigma`` but the one of its
value, and that is minimised.

There may be no best approximation: components grow without bound and cancel each other (de Silva
and Lim, SIAM J. Matrix Anal. Appl. 2008), and on the way there every method crawls. A ridge,
``lambda`` times the components' own squared norms, bounds them. It starts large and is lowered as
far as it matters.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import cached_property, partial
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from sketchlayers._runtime.threads import Task, in_parallel, on_one_thread

from ._checks import check_count, check_dimensions, check_tolerance
from ._lbfgs import minimise
from ._norm import OutputNorm, relative
from ._separable import SeparableMoment, preconditioner_factor
from .svd import descending_eigh, truncated

_LARGEST_RIDGE, _SMALLEST_RIDGE = 1e-3, 1e-10
_LATE_RIDGE = 1e-6  # the first for what is near an optimum already
# The ridge is small enough once it makes up less than this part of the squared error.
_IMMATERIAL = 0.01
# Of all sweeps, for each ridge but the last.
_STAGE = 0.1
_SHORTEST_STAGE = 8
# Of all sweeps, for each start; the best one goes on.
_TRIAL = 0.25
# Of all sweeps, in float64 at the end.
_DOUBLE = 0.05
# Ridges, and gains of a sweep, below which float32 sees nothing but its rounding.
_SINGLE_RIDGE, _SINGLE_TOLERANCE = 1e-7, 1e-5
# Inputs of patches up to which PyTorch's threads wait for each other longer than they work.
_SMALL_PATCH = 600


class CPFactors(NamedTuple):
    """``W~[t,s,i,j] = sum_r outputs[t,r] inputs[s,r] rows[i,r] columns[j,r]``, float64.

    The vectors of a component have the same norm.

    Attributes:
        factors: one for each axis of the weight: outputs ``(T, R)``, inputs ``(S, R)``, and one
            for each axis of the kernel, ``(h, R)`` and ``(w, R)`` in two dimensions.
        relative_error: ``|W - W~| / |W|`` in the norm of the second moment: the relative change of
            the layer's output on the calibration data.
        errors: one entry a sweep of the best start, never rising: the relative error in the norm
            that is minimised (ridges and sensitivity in it).
    """

    factors: tuple[Tensor, ...]
    relative_error: float
    errors: tuple[float, ...]


def cp(
    weight: Tensor,
    rank: int,
    *,
    second_moment: Tensor | None = None,
    sensitivity: Tensor | None = None,
    starts: int = 4,
    seed: int = 0,
    max_sweeps: int = 400,
    tolerance: float = 1e-6,
) -> CPFactors:
    """CP factors near ``weight``: ``tr(F (W - W~) Sigma (W - W~)^T)`` is minimised.

    The first start is made of singular vectors of the weight's slices along the principal vectors
    of the kernel's axes, the others are random. Each gets a quarter of the sweeps, and the best one
    all. With a second moment that is done twice, first without it, and what was found there are the
    starts: the decomposition without it is among them, so that this one's error is never above.
    (With one start there is no first time.) Every sweep solves for the outputs exactly and moves
    the other factors by a quasi-Newton step. The result is a local optimum; for a 1x1 kernel, and
    at full rank, it is the global one.

    Args:
        weight: ``(T, S, w)``, ``(T, S, h, w)`` or ``(T, S, d, h, w)``.
        rank: ``R``, from 1 to ``d h w min(T, S)``, which is enough for every weight.
        second_moment, sensitivity: as for `tucker2`.
        starts: how many there are.
        seed: of the random starts.
        max_sweeps: the most sweeps of a start, with and without second moment each.
        tolerance: stop when a sweep lowers the error by less than this part of it.

    Raises:
        RuntimeError, TypeError, ValueError: as for `tucker2`.
    """
    owner = "cp"
    check_dimensions(owner, weight, (3, 4, 5))
    outputs, channels, *kernel = weight.shape
    full = math.prod(kernel) * min(outputs, channels)
    check_count(owner, "rank", rank, full)
    check_count(owner, "starts", starts)
    check_count(owner, "max_sweeps", max_sweeps)
    check_tolerance(owner, tolerance)
    norm = OutputNorm(owner, weight, second_moment, sensitivity)
    if math.prod(kernel) == 1:
        left, right, relative_error, errors = truncated(norm, weight.shape, rank)
        ones = [torch.ones(1, rank).to(left) for _ in kernel]
        return _balanced([left, right.flatten(1).mT, *ones], relative_error, errors)
    problem = _Problem(norm, weight.shape, norm.second_moment)
    if rank == full or problem.square == 0:
        return problem.exact(rank)
    generator = torch.Generator().manual_seed(seed)
    plain = second_moment is None or starts == 1
    first = problem if plain else _Problem(norm, weight.shape, None)
    begins = [(first.slices(rank), _LARGEST_RIDGE)]
    begins += [(first.random_start(rank, generator), _LARGEST_RIDGE) for _ in range(starts - 1)]
    runs = _race(first, begins, max_sweeps, tolerance)
    if not plain:
        begins = [(problem.slices(rank), _LARGEST_RIDGE)]
        begins += [(run.point.variables, _LATE_RIDGE) for run in runs]
        runs = _race(problem, begins, max_sweeps, tolerance)
    best = min(runs, key=_square)
    return best.point.factors(best.errors)


class _Run(NamedTuple):
    """Where the sweeps from one start have come to."""

    point: _Point
    errors: tuple[float, ...]


def _square(run: _Run) -> float:
    return run.point.square


def _race(
    problem: _Problem, begins: list[tuple[Tensor, float]], max_sweeps: int, tolerance: float
) -> list[_Run]:
    """Some sweeps from every start with its first ridge; those of the best go on to the end."""
    if len(begins) == 1:
        return [_descend(problem, *begins[0], max_sweeps, tolerance)]
    trial = math.ceil(_TRIAL * max_sweeps)
    runs: dict[int, _Run] = {}

    def descend(number: int, start: Tensor, ridge: float) -> None:
        runs[number] = _descend(problem, start, ridge, trial, tolerance)

    def go_on(number: int) -> None:
        point, errors = runs[number]
        left = max_sweeps - trial
        more = _descend(problem, point.variables, min(point.ridge, _LATE_RIDGE), left, tolerance)
        runs[number] = _Run(more.point, _never_rising([*errors, *more.errors[1:]]))

    _run([partial(descend, number, *begin) for number, begin in enumerate(begins)], problem)
    best = min(range(len(begins)), key=lambda number: _square(runs[number]))
    if len(runs[best].errors) == trial < max_sweeps:  # no end by itself
        _run([partial(go_on, best)], problem)
    return [runs[number] for number in range(len(begins))]


def _run(tasks: list[Task], problem: _Problem) -> None:
    """Each on one thread of a CPU where that is faster than all threads for one at a time."""
    if problem.is_small:
        in_parallel(tasks) if len(tasks) > 1 else on_one_thread(tasks[0])
    else:
        for task in tasks:
            task()


def _descend(
    problem: _Problem, variables: Tensor, ridge: float, max_sweeps: int, tolerance: float
) -> _Run:
    """Local optimum from one start, through ever smaller ridges.

    Float32 takes most of the sweeps, in a fraction of the time; the last ones, and those for ridges
    that it would not see, are float64.
    """
    errors: list[float] = []
    stage = max(_SHORTEST_STAGE, math.ceil(_STAGE * max_sweeps))
    exact_sweeps = math.ceil(_DOUBLE * max_sweeps)

    def sweep(problem: _Problem, count: int, tolerance: float) -> _Point:
        """The start of all sweeps but the first counts as the end of those before."""
        again = 1 if errors else 0
        point, more = minimise(
            partial(_Point, problem, ridge),
            variables.to(problem.weighed),
            max_sweeps=count + again,
            tolerance=tolerance,
        )
        if math.isfinite(point.square):
            errors.extend(more[again:])
        return point

    is_last = False
    while True:
        left = max_sweeps - len(errors)
        count = left if is_last else min(stage, left)
        exact = exact_sweeps if count == left else 1
        if ridge >= _SINGLE_RIDGE and count > exact:
            before = len(errors)
            quick = sweep(problem.single, count - exact, max(tolerance, _SINGLE_TOLERANCE))
            if math.isfinite(quick.square):
                variables = quick.variables.double()
                count = exact if count < left else count - (len(errors) - before)
        point = sweep(problem, count, tolerance)
        if is_last or len(errors) == max_sweeps or not math.isfinite(point.square):
            return _Run(point, _never_rising(errors))
        variables = point.variables
        is_last = point.ridged <= _IMMATERIAL * point.square or ridge <= _SMALLEST_RIDGE
        ridge = ridge if is_last else ridge / 10


def _never_rising(errors: Sequence[float]) -> tuple[float, ...]:
    """Errors with the rounding of float32 taken out, by what float64 says in the end."""
    return tuple(accumulate(reversed(errors), max))[::-1]


class _Problem:
    """A weight in a norm, with what does not depend on the factors.

    The variables are one matrix ``(S + h + w, R)``: inputs and the kernel's axes.

    Attributes:
        norm: what the outputs are restored from, and the error measured in.
        weighed: ``K^T W Sigma (T, n)``.
        square: ``|K^T W Sigma^(1/2)|^2``.
        separable: what ``Sigma`` is taken for in a start and as preconditioner.
        is_small: on a CPU, and of few numbers.
    """

    def __init__(self, norm: OutputNorm, shape: torch.Size, second_moment: Tensor | None) -> None:
        self.norm = norm
        self.outputs, self.channels, *self.kernel = shape
        self._second_moment = None if second_moment is None else norm.ridged_second_moment()
        self.weighed = self.spread(norm.target.mT).mT
        self.square = float((self.weighed * norm.target).sum())
        self._target = norm.target.reshape(shape)
        self.separable = SeparableMoment(self._second_moment, self._target.flatten(2))
        self.is_small = self._target.is_cpu and self._target[0].numel() <= _SMALL_PATCH

    @cached_property
    def single(self) -> _Problem:
        """The problem in float32."""
        quick = copy.copy(self)
        quick.inverse_moments = [inverse.float() for inverse in self.inverse_moments]
        quick.weighed = self.weighed.float()
        if self._second_moment is not None:
            quick._second_moment = self._second_moment.float()
        quick.separable = self.separable.float()
        return quick

    @cached_property
    def inverse_moments(self) -> list[Tensor]:
        """Of inputs and the kernel's axes, were ``Sigma`` separable; with a ridge."""
        moments = self.separable.modes(self.kernel)
        return [torch.cholesky_inverse(preconditioner_factor(moment)) for moment in moments]

    def spread(self, matrix: Tensor) -> Tensor:
        """``Sigma matrix`` for a ``matrix (n, m)``."""
        return matrix if self._second_moment is None else self._second_moment @ matrix

    def split(self, variables: Tensor) -> tuple[Tensor, ...]:
        """Inputs, and one factor for each axis of the kernel."""
        return variables.split([self.channels, *self.kernel])

    def random_start(self, rank: int, generator: torch.Generator) -> Tensor:
        """Gaussian vectors of norm 1."""
        size = self.channels + sum(self.kernel)
        entries = torch.randn(size, rank, dtype=torch.float64, generator=generator)
        return torch.cat([_normalised(part) for part in self.split(entries.to(self._target))])

    def slices(self, rank: int) -> Tensor:
        """Singular vectors of the slices along the kernel's principal vectors, the largest.

        They would be those of the weight in its norm, were ``Sigma`` separable.
        """
        return self._slices(rank, self.separable.channel_root)[1]

    def _slices(self, rank: int, root: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs ``(T, rank)`` and variables of the slices times ``root (S, S)``."""
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
        vectors, values, _ = torch.linalg.svd(slices @ root, full_matrices=False)
        largest = values.flatten().topk(rank).indices
        *places, _ = torch.unravel_index(largest, (*self.kernel, values.shape[1]))
        place, number = largest // values.shape[1], largest % values.shape[1]
        outputs = vectors[place, :, number].mT
        inputs = (slices.mT @ vectors)[place, :, number].mT
        at = [basis[:, chosen] for basis, chosen in zip(principal, places, strict=True)]
        return outputs, torch.cat([inputs, *at])

    def exact(self, rank: int) -> CPFactors:
        """The weight itself from all slices, as far as ``rank`` goes."""
        outputs, variables = self._slices(rank, torch.eye(self.channels).to(self._target))
        return self.factors(outputs, variables, None)

    def basis(self, variables: Tensor) -> Tensor:
        """``Z (n, R)``."""
        return _products(self.split(variables))

    def factors(
        self, outputs: Tensor, variables: Tensor, errors: tuple[float, ...] | None
    ) -> CPFactors:
        """Balanced, with outputs that are no longer weighed; ``errors`` None are measured."""
        approximation = outputs @ self.basis(variables).mT
        if errors is None:
            change = self.norm.target - approximation
            errors = (relative(self.norm.square(change), self.square),)
        parts = [self.norm.restore(outputs), *self.split(variables)]
        return _balanced(parts, self.norm.relative_error(self.norm.restore(approximation)), errors)


def _products(factors: Sequence[Tensor]) -> Tensor:
    """The column-wise Kronecker product, ``(h w, R)`` for ``(h, R)`` and ``(w, R)``."""
    *others, product = factors
    for factor in reversed(others):
        product = (factor[:, None] * product).flatten(0, 1)
    return product


def _normalised(matrix: Tensor) -> Tensor:
    """Columns of norm 1; a zero column stays."""
    norms = torch.linalg.vector_norm(matrix, dim=0)
    return matrix / torch.where(norms > 0, norms, 1.0)


def _balanced(parts: list[Tensor], relative_error: float, errors: tuple[float, ...]) -> CPFactors:
    """The vectors of a component get the same norm."""
    norms = torch.stack([torch.linalg.vector_norm(part, dim=0) for part in parts])
    size = norms.log().mean(0).exp()
    return CPFactors(tuple(_normalised(part) * size for part in parts), relative_error, errors)


class _Point:
    """The best outputs for the other factors.

    Attributes:
        ridge: in parts of the components' squared norms.
        variables: those of the problem.
        square: squared relative error with the ridge; infinite where the factors are dependent.
        ridged: the part of the ridge in it.
        outputs: ``(T, R)``.
    """

    def __init__(self, problem: _Problem, ridge: float, variables: Tensor) -> None:
        self._problem, self.ridge, self.variables = problem, ridge, variables
        basis = problem.basis(variables)
        self._spread = problem.spread(basis)  # Sigma Z
        gram = basis.mT @ self._spread
        self._squares = gram.diagonal().clone()
        factor, info = torch.linalg.cholesky_ex(gram + torch.diag(ridge * self._squares))
        if info:
            self.square = math.inf
            return
        projected = torch.linalg.solve_triangular(factor, (problem.weighed @ basis).mT, upper=False)
        self.outputs = torch.linalg.solve_triangular(factor.mT, projected, upper=True).mT
        self.square = max(0.0, 1 - float(projected.double().square().sum()) / problem.square)

    @property
    def ridged(self) -> float:
        strengths = self.outputs.square().sum(0) * self._squares
        return self.ridge * float(strengths.sum()) / self._problem.square

    @cached_property
    def _output_gram(self) -> Tensor:
        """Of the outputs, as the Hessian for them fixed has it."""
        gram = self.outputs.mT @ self.outputs
        return gram + torch.diag(self.ridge * gram.diagonal())

    def gradient(self) -> Tensor:
        """By the variables."""
        problem = self._problem
        factors = problem.split(self.variables)
        residual = torch.addmm(
            problem.weighed.mT @ self.outputs, self._spread, self._output_gram, alpha=-1
        )
        parts = []
        for number, factor in enumerate(factors[:-1], 1):  # what is left has one axis less
            residual = residual.unflatten(0, (len(factor), -1))
            parts.append((residual * _products(factors[number:])).sum(1))
            residual = (residual * factor[:, None]).sum(0)
        return torch.cat([*parts, residual]) * (-2 / problem.square)

    def precondition(self, vector: Tensor) -> Tensor:
        """Inverse Hessian of each factor for the others fixed, were ``Sigma`` separable."""
        parts = [
            torch.cholesky_solve((moment @ part).mT, others).mT
            for part, moment, others in zip(
                self._problem.split(vector),
                self._problem.inverse_moments,
                self._preconditioners,
                strict=True,
            )
        ]
        return torch.cat(parts)

    @cached_property
    def _preconditioners(self) -> list[Tensor]:
        """For each factor of the variables: Cholesky factor of all but its moment ``(R, R)``."""
        problem = self._problem
        factors = problem.split(self.variables)
        moments = problem.separable.modes(problem.kernel)
        grams = [part.mT @ moment @ part for part, moment in zip(factors, moments, strict=True)]
        outputs = self._output_gram * (2 / problem.square)
        return [
            preconditioner_factor(math.prod([*grams[:own], *grams[own + 1 :]], start=outputs))
            for own in range(len(grams))
        ]

    def factors(self, errors: tuple[float, ...]) -> CPFactors:
        return self._problem.factors(self.outputs, self.variables, errors)
