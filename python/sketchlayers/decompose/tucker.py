"""Tucker-2 factors of a convolution's weight, in the norm of its outputs.

    W~[t, s, p] = sum_ab output_factor[t, a] core[a, b, p] input_factor[b, s],

``p`` over the kernel's positions: a 1x1 convolution, one with the small core, and another 1x1 one.
In the norm of a second moment (Kalle, Rudkiewicz, Ouerfelli, Tamaazousti, NeurIPS 2025, arXiv
2511.04494).

For a given input factor, the output factor and the core together have a closed form, reduced-rank
regression (Izenman, J. Multivariate Anal. 1975): with ``B = input_factor (x) I`` the error is that
of the orthogonal projection on the range of ``Sigma^(1/2) B^T`` and of a truncated SVD in it. So
the error is a function of the input factor alone, and that is minimised.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import (
    check_count,
    check_dimensions,
    check_finite,
    check_shape,
    check_tolerance,
)
from ._lbfgs import minimise
from ._norm import OutputNorm
from ._separable import SMALL_PATCH, SeparableMoment, preconditioner_factor
from .svd import descending_eigh, spectrum, squared_singular_values, tail_errors, truncated

_MODES = ("input", "output")
# Of the mean of the diagonal, and gains of a sweep, below which float32 sees only its rounding.
_SINGLE_RIDGE, _SINGLE_TOLERANCE = 3e-6, 1e-5


class TuckerFactors(NamedTuple):
    """``W~[t, s, i, j] = sum_ab output_factor[t, a] core[a, b, i, j] input_factor[b, s]``, float64.

    Attributes:
        input_factor: ``(RS, S)``, orthonormal rows; None when the input mode keeps its size.
        core: ``(RT, RS, h, w)``, with as many axes of the kernel as the weight has, and with ``T``
            and ``S`` for the modes that keep their sizes.
        output_factor: ``(T, RT)``, orthonormal columns without sensitivity; None when the output
            mode keeps its size.
        relative_error: ``|W - W~| / |W|`` in the norm of the second moment: the relative change of
            the layer's output on the calibration data.
        errors: one entry a sweep, never rising: the relative error in the norm that is minimised
            (ridge and sensitivity in it).
    """

    input_factor: Tensor | None
    core: Tensor
    output_factor: Tensor | None
    relative_error: float
    errors: tuple[float, ...]


def tucker2(
    weight: Tensor,
    ranks: tuple[int | None, int | None],
    *,
    second_moment: Tensor | None = None,
    sensitivity: Tensor | None = None,
    start: Tensor | None = None,
    max_sweeps: int = 100,
    tolerance: float = 1e-6,
) -> TuckerFactors:
    """Tucker-2 factors near ``weight``: ``tr(F (W - W~) Sigma (W - W~)^T)`` is minimised.

    The input factor starts at the optimum for a ``Sigma`` that is a Kronecker product of channels
    and kernel positions. Every sweep solves for output factor and core exactly and moves the input
    factor by a quasi-Newton step. It is a local optimum; with an input rank of None, ``S`` or for a
    1x1 kernel it is the global one.

    Args:
        weight: ``(T, S, w)``, ``(T, S, h, w)`` or ``(T, S, d, h, w)``.
        ranks: ``(RS, RT)``, from 1 to ``S`` and ``T``; None keeps that mode's size, without factor.
        second_moment: ``Sigma = E[x x^T]`` of the input patches ``(n, n)``, ``n = S h w``; None is
            the identity. A singular one gets a ridge of 1e-10 of its mean diagonal.
        sensitivity: ``F``, weight of output errors, ``(T, T)`` or its diagonal ``(T,)``; None is
            the identity. A singular one gets a ridge of 1e-10 of its mean diagonal.
        start: input factor to begin with, ``(RS, S)``.
        max_sweeps: the most sweeps.
        tolerance: stop when a sweep lowers the error by less than this part of it, or of 0.1 where
            it is below that.

    Raises:
        RuntimeError: shapes that do not fit together.
        TypeError: tensors that are not floating point, ranks that are no whole numbers.
        ValueError: ranks out of bounds, NaN or infinite entries, a second moment or sensitivity
            that is not symmetric positive semidefinite.
    """
    owner = "tucker2"
    check_dimensions(owner, weight, (3, 4, 5))
    input_rank, output_rank = _checked_ranks(owner, weight, ranks)
    check_count(owner, "max_sweeps", max_sweeps)
    check_tolerance(owner, tolerance)
    channels = weight.shape[1]
    if start is not None:
        check_shape(owner, "start", start, [(input_rank or channels, channels)])
        check_finite(owner, "start", start)
    norm = OutputNorm(owner, weight, second_moment, sensitivity)
    if input_rank is None or input_rank == channels:
        return _with_every_channel(norm, weight, input_rank, output_rank)

    problem = _Problem(norm, weight)
    if start is None:
        basis = None if output_rank is None else spectrum(norm)[1][:, :output_rank]
        first = problem.start(basis, input_rank)
    else:
        first = start.detach().to(norm.weight).mT
    point, errors = _minimise(problem, first, output_rank, max_sweeps, tolerance)
    return point.factors(errors)


def tucker2_errors(
    weight: Tensor,
    input_ranks: Sequence[int | None],
    *,
    second_moment: Tensor | None = None,
    sensitivity: Tensor | None = None,
    sweeps: int = 2,
) -> Tensor:
    """Relative error of `tucker2` for some input ranks and every output rank, nearly.

    For a given input factor one SVD tells the error at every output rank, so only input factors are
    fitted, in a few sweeps. The errors are thus upper bounds, in the norm that is minimised.

    Args:
        weight, second_moment, sensitivity: as for `tucker2`.
        input_ranks: from 1 to ``S``, or None for no input factor.
        sweeps: for each input factor, the start included.

    Returns:
        ``(len(input_ranks), T + 1)``, float64: the error for each input rank at the output ranks
        0 (no output: 1), 1, ..., ``T`` (the same as None).

    Raises:
        RuntimeError, TypeError, ValueError: as for `tucker2`.
    """
    owner = "tucker2_errors"
    check_dimensions(owner, weight, (3, 4, 5))
    for rank in input_ranks:
        _checked_ranks(owner, weight, (rank, None))
    check_count(owner, "sweeps", sweeps)
    norm = OutputNorm(owner, weight, second_moment, sensitivity)
    outputs, channels = weight.shape[:2]
    values = squared_singular_values(norm)
    all_channels = torch.nn.functional.pad(tail_errors(values), (0, outputs - len(values)))
    if all(rank in (None, channels) for rank in input_ranks):
        return all_channels.repeat(len(input_ranks), 1)
    problem = _Problem(norm, weight)
    errors = []
    for rank in input_ranks:
        if rank is None or rank == channels:
            errors.append(all_channels)
            continue
        errors.append(_estimate(problem, rank, sweeps).errors())
    return torch.stack(errors)


def _minimise(
    problem: _Problem, start: Tensor, rank: int | None, max_sweeps: int, tolerance: float
) -> tuple[_Point, tuple[float, ...]]:
    """The best input factor from a start; float32 takes the first sweeps of large problems."""
    factor = torch.linalg.qr(start)[0]
    errors: tuple[float, ...] = (1.0,)
    if problem.is_large and max_sweeps > 1:
        quick, errors = minimise(
            lambda factor: _Point(problem.single, factor, rank),
            factor.float(),
            max_sweeps=max_sweeps - 1,
            tolerance=max(tolerance, _SINGLE_TOLERANCE),
        )
        if math.isfinite(quick.square):
            factor = torch.linalg.qr(quick.variables.double())[0]
    point, more = minimise(
        lambda factor: _Point(problem, factor, rank),
        factor,
        max_sweeps=max_sweeps - len(errors) + 1,
        tolerance=tolerance,
    )
    # Errors of float32 are wrong by its rounding, which what comes after them tells.
    before = accumulate(reversed([*errors[:-1], more[0]]), max)
    return point, (*reversed(list(before)), *more[1:])


def _estimate(problem: _Problem, rank: int, sweeps: int) -> _Point:
    """A point near the best one, with every output; of large problems in float32."""
    start = torch.linalg.qr(problem.start(None, rank))[0]
    for one in [problem.single, problem] if problem.is_large else [problem]:
        point, _ = minimise(
            one.with_every_output, start.to(one.weighed), max_sweeps=sweeps, tolerance=0.0
        )
        if math.isfinite(point.square):
            break
    return point


def _checked_ranks(
    owner: str, weight: Tensor, ranks: tuple[int | None, int | None]
) -> tuple[int | None, int | None]:
    if not isinstance(ranks, tuple | list) or len(ranks) != 2:
        raise TypeError(f"{owner}: ranks must be a pair (input rank, output rank) (got {ranks!r})")
    for name, rank, size in zip(_MODES, ranks, weight.shape[1::-1], strict=True):
        if rank is not None:
            check_count(owner, f"{name} rank", rank, size)
    return ranks[0], ranks[1]


def _with_every_channel(
    norm: OutputNorm, weight: Tensor, input_rank: int | None, output_rank: int | None
) -> TuckerFactors:
    """Nothing to approximate, or one SVD."""
    input_factor = None if input_rank is None else torch.eye(input_rank).to(norm.weight)
    if output_rank is None:
        core = norm.weight.reshape(weight.shape).clone()
        return TuckerFactors(input_factor, core, None, 0.0, (0.0,))
    left, right, relative_error, errors = truncated(norm, weight.shape, output_rank)
    return TuckerFactors(input_factor, right, left, relative_error, errors)


class _Problem:
    """A weight and its norm, with what does not depend on the input factor.

    Positions ``p`` come before channels here, so that products along channels are single GEMMs.

    Attributes:
        norm: what is minimised, but for the ridge.
        shape: of the weight.
        second_moment: ``Sigma`` with its ridge, ``(p, S, p S)``.
        weighed: ``K^T W Sigma (T, p, S)``.
        square: ``|K^T W Sigma^(1/2)|^2``.
        separable: what ``Sigma`` is taken for in a start and as preconditioner.
    """

    def __init__(self, norm: OutputNorm, weight: Tensor) -> None:
        self.norm, self.shape = norm, weight.shape
        outputs, channels, *kernel = weight.shape
        positions = math.prod(kernel)
        moment = norm.ridged_second_moment()
        self.target = norm.target.reshape(outputs, channels, positions)
        self.separable = SeparableMoment(moment, self.target)
        blocks = moment.reshape(channels, positions, channels, positions)
        self.second_moment = blocks.permute(1, 0, 3, 2).flatten(2)
        self.target = self.target.mT.contiguous()
        self.weighed = (self.target.flatten(1) @ self.second_moment.flatten(0, 1)).reshape(
            self.target.shape
        )
        self.square = float((self.weighed * self.target).sum())

    @property
    def is_large(self) -> bool:
        """Whether float64 takes its time."""
        return self.weighed[0].numel() > SMALL_PATCH

    @cached_property
    def single(self) -> _Problem:
        """The problem in float32, with a ridge that covers its rounding."""
        quick = copy.copy(self)
        quick.second_moment = self.second_moment.float()
        diagonal = quick.second_moment.flatten(0, 1).diagonal()
        ridge = _SINGLE_RIDGE * float(diagonal.mean())
        diagonal.add_(ridge)
        quick.weighed = (self.weighed + ridge * self.target).float()
        quick.square = self.square + ridge * float(self.target.square().sum())
        quick.separable = self.separable.single
        return quick

    def with_every_output(self, input_factor: Tensor) -> _Point:
        return _Point(self, input_factor, None)

    def start(self, basis: Tensor | None, rank: int) -> Tensor:
        """Input factor ``(S, rank)`` of the HOSVD of ``basis^T K^T W``, were ``Sigma`` separable.

        ``basis (T, m)`` has orthonormal columns; None is the identity.
        """
        root, rows = self.separable.channel_root, self.target
        if basis is not None:
            rows = torch.tensordot(basis, rows, ([0], [0]))
        gram = torch.einsum("tps,tpu->su", rows, self.separable.positions @ rows)
        _, leading = descending_eigh(root @ gram @ root)
        return gram @ root @ leading[:, :rank]  # spans what root^-1 @ leading does


class _Point:
    """The best output factor and core for one input factor, with ``B = I (x) input_factor^T``.

    Attributes:
        variables: the input factor, transposed, ``(S, RS)``.
        square: squared relative error; infinite where the input factor has dependent columns.
        leading: ``(T, RT)`` orthonormal, or None.
        core: ``(RT, p RS)``.
    """

    def __init__(self, problem: _Problem, input_factor: Tensor, output_rank: int | None) -> None:
        self._problem, self.variables = problem, input_factor
        outputs, positions, channels = problem.weighed.shape
        size = positions * input_factor.shape[1]
        self._rows = (input_factor.mT @ problem.second_moment).reshape(size, -1)  # B Sigma
        gram = (self._rows.reshape(-1, channels) @ input_factor).reshape(size, size)
        factor, info = torch.linalg.cholesky_ex(gram)
        if info:
            self.square = math.inf
            return
        weighed = (problem.weighed @ input_factor).reshape(outputs, size)
        projected = torch.linalg.solve_triangular(factor, weighed.mT, upper=False)
        self.leading = None
        if output_rank is not None:
            _, vectors = descending_eigh(projected.mT @ projected)
            self.leading = vectors[:, :output_rank].contiguous()
            projected = projected @ self.leading
        self._projected = projected
        captured = float(projected.double().square().sum())
        self.core = torch.linalg.solve_triangular(factor.mT, projected, upper=True).mT
        self.square = max(0.0, 1 - captured / problem.square) if problem.square else 0.0

    def gradient(self) -> Tensor:
        """By the input factor, ``(S, RS)``."""
        problem = self._problem
        weighed = problem.weighed.flatten(1)
        if self.leading is not None:
            weighed = self.leading.mT @ weighed
        residual = (weighed - self.core @ self._rows).reshape(-1, problem.weighed.shape[2])
        core = self.core.reshape(len(residual), -1)
        return (residual.mT @ core) * (-2 / problem.square)

    def precondition(self, vector: Tensor) -> Tensor:
        """Inverse Hessian for a fixed core, were ``Sigma`` separable, times ``vector (S, RS)``."""
        vector = torch.cholesky_solve(vector, self._problem.separable.channel_factor)
        return torch.cholesky_solve(vector.mT, self._core_factor).mT

    @cached_property
    def _core_factor(self) -> Tensor:
        problem = self._problem
        core = self.core.unflatten(1, (len(problem.separable.positions), -1))
        moment = torch.einsum("apb,apc->bc", core, problem.separable.positions @ core)
        return preconditioner_factor(moment * (2 / problem.square))

    def errors(self) -> Tensor:
        """Relative errors at the output ranks 0, 1, ..., ``T``, with every output in this one."""
        projected = self._projected.double()
        gram = projected.mT @ projected
        captured = torch.linalg.eigvalsh(gram).clamp(min=0).flip(0).cumsum(0)
        square = self._problem.square
        lost = 1 - captured / square if square else torch.zeros_like(captured)
        first = lost.new_full((1,), 1.0 if square else 0.0)
        return torch.cat([first, lost.clamp(min=0)]).sqrt()

    def factors(self, errors: tuple[float, ...]) -> TuckerFactors:
        """With an orthonormal input factor, and outputs that are no longer weighed."""
        norm = self._problem.norm
        basis, triangle = torch.linalg.qr(self.variables)
        core = self.core.unflatten(1, (-1, basis.shape[1])) @ triangle.mT
        output_factor = None
        if self.leading is None:
            core = norm.restore(core.flatten(1)).reshape(core.shape)
        else:
            output_factor = norm.restore(self.leading)
        weight = (core @ basis.mT).mT
        if output_factor is not None:
            weight = torch.tensordot(output_factor, weight, 1)
        core = core.mT.unflatten(2, self._problem.shape[2:]).contiguous()
        return TuckerFactors(
            basis.mT.contiguous(), core, output_factor, norm.relative_error(weight), errors
        )
