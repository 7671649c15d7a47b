"""CP factors of a convolution's weight, in the norm of its outputs.

    W~[t, s, i, j] = sum_r outputs[t, r] inputs[s, r] rows[i, r] columns[j, r],

a 1x1 convolution, depthwise ones along rows and along columns, and another 1x1 one. Kernels may
have any number of axes, each with a factor of its own. In the norm of a second moment (Kalle,
Rudkiewicz, Ouerfelli, Tamaazousti, NeurIPS 2025, arXiv 2511.04494).

The factor of the outputs has a closed form, given all others. So the error is a function of these
alone, and that is minimised (`_cp_problem`).

There may be no best approximation: components grow without bound and cancel each other (de Silva
and Lim, SIAM J. Matrix Anal. Appl. 2008), and on the way there every method crawls. A ridge,
``lambda`` times the components' own squared norms, bounds them. It starts large and is lowered as
far as it matters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from sketchlayers._runtime.threads import Task, in_parallel, on_one_thread

from ._checks import check_count, check_dimensions, check_finite, check_shape, check_tolerance
from ._cp_problem import Point, Problem, normalised
from ._lbfgs import minimise
from ._norm import OutputNorm, relative
from .svd import truncated

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
# For errors that are only estimated: sweeps without and with second moment. Sweeps gain by powers:
# each further doubling of their number nearly as much as the last one without second moment, and
# so much (a power) of what the few with it have gained. In layers of ResNet-20 the logarithm of the
# error is then right within 0.1, and up to 0.4 too high in two layers of 16 channels at errors of
# less than 4 %. In large layers those with second moment gain the same at a large rank as at the
# next one.
QUICK_SWEEPS, QUICK_SWEEPS_WITH_MOMENT = 12, 4
_DOUBLING, _REST = 0.87, 0.5


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
    start: Sequence[Tensor] | None = None,
    starts: int = 4,
    seed: int = 0,
    max_sweeps: int = 400,
    tolerance: float = 1e-6,
) -> CPFactors:
    """CP factors near ``weight``: ``tr(F (W - W~) Sigma (W - W~)^T)`` is minimised.

    First without the second moment, which is cheap. One start is made of singular vectors of the
    weight's slices along the principal vectors of the kernel's axes, the others are random; each
    gets a quarter of the sweeps, and the best one all. What they have come to, and, if they are
    several, another one made of singular vectors, are the starts for the norm with the second
    moment; so the error is never above that of a decomposition without it. Every sweep solves for
    the outputs exactly and moves the other factors by a quasi-Newton step. The result is a local
    optimum; for a 1x1 kernel, and at full rank, it is the global one.

    Args:
        weight: ``(T, S, w)``, ``(T, S, h, w)`` or ``(T, S, d, h, w)``.
        rank: ``R``, from 1 to ``d h w min(T, S)``, which is enough for every weight.
        second_moment, sensitivity: as for `tucker2`.
        start: factors to begin with, as in a result, in place of all starts: those of a similar
            weight or norm.
        starts: how many there are.
        seed: of the random starts.
        max_sweeps: the most sweeps of a start, with and without second moment each.
        tolerance: stop when a sweep lowers the error by less than this part of it, or of 0.1 where
            it is below that.

    Raises:
        RuntimeError, TypeError, ValueError: as for `tucker2`.
    """
    owner = "cp"
    full = _checked_full_rank(owner, weight)
    check_count(owner, "rank", rank, full)
    check_count(owner, "starts", starts)
    check_count(owner, "max_sweeps", max_sweeps)
    check_tolerance(owner, tolerance)
    if start is not None:
        _check_start(owner, start, weight, rank)
    norm = OutputNorm(owner, weight, second_moment, sensitivity)
    if weight[0, 0].numel() == 1:
        left, right, relative_error, errors = truncated(norm, weight.shape, rank)
        ones = [torch.ones(1, rank).to(left) for _ in weight.shape[2:]]
        return _balanced([left, right.flatten(1).mT, *ones], relative_error, errors)
    problem = Problem(norm, weight.shape, norm.second_moment)
    if rank == full or problem.square == 0:
        return _factors(problem, *problem.slices(rank), None)
    if start is not None:
        variables = torch.cat([factor.detach().to(norm.weight) for factor in start[1:]])
        (run,) = _race(problem, [variables], _LATE_RIDGE, max_sweeps, tolerance)
        return _factors(problem, run.point.outputs, run.point.variables, run.errors)
    plain = problem if second_moment is None else Problem(norm, weight.shape, None)
    generator = torch.Generator().manual_seed(seed)
    begins = [plain.slices(rank)[1]]
    begins += [plain.random_start(rank, generator) for _ in range(starts - 1)]
    runs = _race(plain, begins, _LARGEST_RIDGE, max_sweeps, tolerance)
    if second_moment is not None:
        begins = [run.point.variables for run in runs]
        if starts > 1:
            begins.append(problem.slices(rank, problem.separable.channel_root)[1])
        runs = _race(problem, begins, _LATE_RIDGE, max_sweeps, tolerance)
    best = min(runs, key=_square)
    return _factors(problem, best.point.outputs, best.point.variables, best.errors)


def _check_start(owner: str, start: Sequence[Tensor], weight: Tensor, rank: int) -> None:
    if len(start) != weight.dim():
        raise RuntimeError(
            f"{owner}: start must be one factor for each axis of the weight, {weight.dim()} "
            f"(got {len(start)})"
        )
    for size, factor in zip(weight.shape, start, strict=True):
        check_shape(owner, "a factor of start", factor, [(size, rank)])
        check_finite(owner, "start", factor)


def cp_errors(
    weight: Tensor,
    ranks: Sequence[int],
    *,
    second_moment: Tensor | None = None,
    sensitivity: Tensor | None = None,
    max_sweeps: int = 400,
) -> Tensor:
    """Relative error of `cp` at some ranks, nearly, for a fraction of its sweeps.

    Args:
        weight, second_moment, sensitivity: as for `cp`.
        ranks: each as for `cp`.
        max_sweeps: of the fits, from one start, whose errors are estimated.

    Returns:
        ``(len(ranks),)``, float64, in the norm that is minimised.

    Raises:
        RuntimeError, TypeError, ValueError: as for `cp`.
    """
    owner = "cp_errors"
    full = _checked_full_rank(owner, weight)
    for rank in ranks:
        check_count(owner, "rank", rank, full)
    check_count(owner, "max_sweeps", max_sweeps)
    norm = OutputNorm(owner, weight, second_moment, sensitivity)
    problem = Problem(norm, weight.shape, norm.second_moment)
    plain = problem if second_moment is None else Problem(norm, weight.shape, None)
    found = torch.zeros(len(ranks), dtype=torch.float64)

    gains: dict[int, float] = {}

    def estimate(place: int) -> None:
        if ranks[place] < full and problem.square > 0:
            is_costly = place == order[0] and len(order) > 1 and not problem.is_small
            found[place], gain = _estimated_error(
                problem, plain, ranks[place], max_sweeps, try_moment=not is_costly
            )
            if gain is not None:
                gains[place] = gain

    order = sorted(range(len(ranks)), key=lambda place: -ranks[place])
    _run([partial(estimate, place) for place in order], problem)  # no thread waits for the largest
    gain = 1.0
    for place in reversed(order):
        gain = gains.get(place, gain)
        found[place] *= gain
    return found


def _estimated_error(
    problem: Problem, plain: Problem, rank: int, max_sweeps: int, *, try_moment: bool
) -> tuple[float, float | None]:
    """What sweeps from one start will come to, from the first few of them.

    Returns:
        The error after those without second moment, and by what factor those with it lower it;
        None if they are not tried.
    """
    few = min(QUICK_SWEEPS, max_sweeps)
    run = _descend(plain, plain.slices(rank)[1], _LARGEST_RIDGE, few, 0.0)
    error = run.errors[-1]
    if error == 0:
        return 0.0, None
    last_doubling = error / run.errors[(len(run.errors) - 1) // 2]
    rest = last_doubling ** (_DOUBLING * math.log2(max_sweeps / few))
    if problem is plain:
        return error * rest, None
    few = min(QUICK_SWEEPS_WITH_MOMENT, max_sweeps) if try_moment else 1
    errors = _descend(problem, run.point.variables, _LATE_RIDGE, few, 0.0).errors
    gain = (errors[-1] / errors[0]) ** (1 + _REST) if errors[0] > 0 else 1.0
    return errors[0] * rest, gain if try_moment else None


def _checked_full_rank(owner: str, weight: Tensor) -> int:
    """The rank that is enough for every weight of this shape."""
    check_dimensions(owner, weight, (3, 4, 5))
    outputs, channels, *kernel = weight.shape
    return math.prod(kernel) * min(outputs, channels)


class _Run(NamedTuple):
    """Where the sweeps from one start have come to."""

    point: Point
    errors: tuple[float, ...]


def _square(run: _Run) -> float:
    return run.point.square


def _race(
    problem: Problem, begins: list[Tensor], ridge: float, max_sweeps: int, tolerance: float
) -> list[_Run]:
    """Some sweeps from every start; those of the best go on to the end."""
    runs: dict[int, _Run] = {}
    trial = max_sweeps if len(begins) == 1 else math.ceil(_TRIAL * max_sweeps)

    def descend(number: int) -> None:
        runs[number] = _descend(problem, begins[number], ridge, trial, tolerance)

    def go_on(number: int) -> None:
        point, errors = runs[number]
        left = max_sweeps - trial
        more = _descend(problem, point.variables, min(point.ridge, _LATE_RIDGE), left, tolerance)
        runs[number] = _Run(more.point, _never_rising([*errors, *more.errors[1:]]))

    _run([partial(descend, number) for number in range(len(begins))], problem)
    best = min(runs, key=lambda number: _square(runs[number]))
    if len(runs[best].errors) == trial < max_sweeps:  # no end by itself
        _run([partial(go_on, best)], problem)
    return [runs[number] for number in range(len(begins))]


def _run(tasks: list[Task], problem: Problem) -> None:
    """Each on one thread of a CPU where that is faster than all threads for one at a time."""
    if problem.is_small and len(tasks) == 1:
        on_one_thread(tasks[0])
    elif problem.is_small:
        in_parallel(tasks)
    else:
        for task in tasks:
            task()


def _descend(
    problem: Problem, variables: Tensor, ridge: float, max_sweeps: int, tolerance: float
) -> _Run:
    """Local optimum from one start, through ever smaller ridges.

    Float32 takes most of the sweeps, in a fraction of the time; the last ones, and those for ridges
    that it would not see, are float64.
    """
    errors: list[float] = []
    stage = max(_SHORTEST_STAGE, math.ceil(_STAGE * max_sweeps))
    exact_sweeps = math.ceil(_DOUBLE * max_sweeps)

    def sweep(problem: Problem, count: int, tolerance: float) -> Point:
        """The start of all sweeps but the first counts as the end of those before."""
        again = 1 if errors else 0
        point, more = minimise(
            partial(Point, problem, ridge),
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


def _factors(
    problem: Problem, outputs: Tensor, variables: Tensor, errors: tuple[float, ...] | None
) -> CPFactors:
    """Balanced, with outputs that are no longer weighed; ``errors`` None are measured."""
    norm = problem.norm
    approximation = outputs @ problem.basis(variables).mT
    if errors is None:
        change = norm.target - approximation
        errors = (relative(norm.square(change), problem.square),)
    parts = [norm.restore(outputs), *problem.split(variables)]
    return _balanced(parts, norm.relative_error(norm.restore(approximation)), errors)


def _balanced(parts: list[Tensor], relative_error: float, errors: tuple[float, ...]) -> CPFactors:
    """The vectors of a component get the same norm."""
    norms = torch.stack([torch.linalg.vector_norm(part, dim=0) for part in parts])
    size = norms.log().mean(0).exp()
    return CPFactors(tuple(normalised(part) * size for part in parts), relative_error, errors)
