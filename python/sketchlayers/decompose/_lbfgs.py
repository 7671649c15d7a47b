"""Minimisation by limited-memory BFGS with a preconditioner, for functions that never rise.

The decompositions without a closed form have one for some of their factors, given the others
(variable projection: Golub and Pereyra, SIAM J. Numer. Anal. 1973). What is left is a smooth
function of few variables, whose gradient costs next to nothing once the function is known; a
quasi-Newton step (Nocedal, Math. Comp. 1980) then gains in one sweep what alternating exact least
squares gain in several.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Protocol, TypeVar

from torch import Tensor

_MEMORY = 10
_SUFFICIENT = 1e-4  # share of the linear prediction that a step must gain (Armijo)
_SHORTEST_STEP = 1e-4
_ROUNDING = 1e-15  # of a squared relative error, which is a difference from 1


class Point(Protocol):
    """The function at one value of its variables."""

    square: float  # the function, a squared relative error

    def gradient(self) -> Tensor:
        """The gradient, of the shape of the variables."""

    def precondition(self, vector: Tensor) -> Tensor:
        """A cheap inverse Hessian, symmetric positive definite, times ``vector``."""


AnyPoint = TypeVar("AnyPoint", bound=Point)


def minimise(
    evaluate: Callable[[Tensor], AnyPoint],
    start: Tensor,
    *,
    max_sweeps: int,
    tolerance: float,
) -> tuple[AnyPoint, tuple[float, ...]]:
    """Lowest point found, and the relative errors of the sweeps, which never rise.

    A start at which the function is infinite is all that is found.

    Args:
        evaluate: the function.
        start: its variables.
        max_sweeps: the most points to accept, the first included.
        tolerance: stop when a sweep lowers the error by less than this part of it, and does so
            once more without what past sweeps seemed to tell.
    """
    variables, point = start, evaluate(start)
    errors = [point.square**0.5]
    history: deque[tuple[Tensor, Tensor]] = deque(maxlen=_MEMORY)
    if max_sweeps == 1 or point.square <= _ROUNDING or math.isinf(point.square):
        return point, tuple(errors)
    gradient = point.gradient()
    while True:
        direction = _direction(point, gradient, history)
        step = _line_search(evaluate, variables, point.square, gradient, direction)
        if step is None and history:  # once more without what past sweeps seemed to tell
            history.clear()
            continue
        if step is None:
            break
        length, point = step
        errors.append(point.square**0.5)
        gains_little = errors[-2] - errors[-1] <= tolerance * errors[-1]
        if len(errors) == max_sweeps or point.square <= _ROUNDING or (gains_little and not history):
            break
        change = length * direction
        variables = variables + change
        previous, gradient = gradient, point.gradient()
        bend = gradient - previous
        if gains_little:
            history.clear()
        elif _dot(change, bend) > 0:
            history.append((change, bend))
    return point, tuple(errors)


def _direction(point: Point, gradient: Tensor, history: deque[tuple[Tensor, Tensor]]) -> Tensor:
    """Minus the inverse Hessian times the gradient, by the two loops of Nocedal."""
    direction = -gradient
    shares = []
    for change, bend in reversed(history):
        share = _dot(change, direction) / _dot(change, bend)
        direction = direction - share * bend
        shares.append(share)
    direction = point.precondition(direction)
    if history:
        change, bend = history[-1]
        direction *= _dot(change, bend) / _dot(bend, point.precondition(bend))
    for (change, bend), share in zip(history, reversed(shares), strict=True):
        correction = _dot(bend, direction) / _dot(change, bend)
        direction = direction + (share - correction) * change
    return direction


def _line_search(
    evaluate: Callable[[Tensor], AnyPoint],
    variables: Tensor,
    square: float,
    gradient: Tensor,
    direction: Tensor,
) -> tuple[float, AnyPoint] | None:
    """Step length and the point there, or None where no step lowers the function."""
    slope = _dot(gradient, direction)
    if not slope < 0:
        return None
    length = 1.0
    while length >= _SHORTEST_STEP:
        point = evaluate(variables + length * direction)
        if point.square <= square + _SUFFICIENT * length * slope:
            return length, point
        # The minimum of the parabola through both values and the slope, within reason.
        excess = point.square - square - length * slope
        length *= min(0.5, max(0.1, -slope * length / (2 * excess)))
    return None


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum())
