"""Minimisation by limited-memory BFGS with a preconditioner, for functions that never rise.

The decompositions without a closed form have one for some of their factors, given the others
(variable projection: Golub and Pereyra, SIAM J. Numer. Anal. 1973). What is left is a smooth
function of few variables, whose gradient costs next to nothing once the function is known; a
quasi-Newton step (Nocedal, Math. Comp. 1980) then gains in one sweep what alternating exact least
squares gain in several.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
from torch import Tensor

_MEMORY = 10
_SUFFICIENT = 1e-4  # share of the linear prediction that a step must gain (Armijo)
_SHORTEST_STEP = 1e-4
_ROUNDING = 1e-15  # of a squared relative error, which is a difference from 1
_SMALL = 0.1  # an error below which it is not its own size that counts


class Point(Protocol):
    """The function at one value of its variables."""

    square: float  # the function, a squared relative error

    def gradient(self) -> Tensor:
        """The gradient, of the shape of the variables."""

    def precondition(self, vector: Tensor) -> Tensor:
        """A cheap inverse Hessian, symmetric positive definite, times ``vector``, or several."""


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
        tolerance: stop when a sweep lowers the error by less than this part of it, or of 0.1 where
            it is below, and does so once more without what past sweeps seemed to tell.
    """
    variables, point = start, evaluate(start)
    errors = [point.square**0.5]
    history = _History(start)
    if max_sweeps == 1 or point.square <= _ROUNDING or math.isinf(point.square):
        return point, tuple(errors)
    gradient = point.gradient()
    while True:
        direction = history.direction(point, gradient)
        step = _line_search(evaluate, variables, point.square, gradient, direction)
        if step is None and history.length:  # once more without what past sweeps seemed to tell
            history.clear()
            continue
        if step is None:
            break
        length, point = step
        errors.append(point.square**0.5)
        gains_little = errors[-2] - errors[-1] <= tolerance * max(errors[-1], _SMALL)
        is_last = len(errors) == max_sweeps or point.square <= _ROUNDING
        if is_last or (gains_little and not history.length):
            break
        change = length * direction
        variables = variables + change
        previous, gradient = gradient, point.gradient()
        if gains_little:
            history.clear()
        else:
            history.add(change, gradient - previous)
    return point, tuple(errors)


class _History:
    """The last changes of the variables, and what they changed the gradient by: ``bends``.

    Small vectors cost more to call than to compute. So all products with the history are matrix
    products, and the recursion in between is one of numbers.

    Attributes:
        length: how many changes there are.
    """

    def __init__(self, like: Tensor) -> None:
        """Empty, for variables ``like``."""
        self.length = 0
        self._changes, self._bends = like.new_empty(2, _MEMORY, like.numel())
        self._order: list[int] = []  # places, the oldest first
        self._products = [[0.0] * _MEMORY for _ in range(_MEMORY)]  # of changes and bends

    def clear(self) -> None:
        """Forgets everything."""
        self.length, self._order = 0, []

    def add(self, change: Tensor, bend: Tensor) -> None:
        """Takes one more, in place of the oldest if there are many; none of negative curvature."""
        if not _dot(change, bend) > 0:
            return
        place = self.length if self.length < _MEMORY else self._order.pop(0)
        self._order.append(place)
        self.length = len(self._order)
        self._changes[place], self._bends[place] = change.flatten(), bend.flatten()
        known = slice(self.length)
        rows = (self._changes[known] @ self._bends[place]).tolist()
        columns = (self._bends[known] @ self._changes[place]).tolist()
        for other in range(self.length):
            self._products[other][place] = rows[other]
            self._products[place][other] = columns[other]

    def direction(self, point: Point, gradient: Tensor) -> Tensor:
        """Minus the inverse Hessian times the gradient, by the two loops of Nocedal."""
        if not self.length:
            return -point.precondition(gradient)
        changes, bends = self._changes[: self.length], self._bends[: self.length]
        products, newest = self._products, self._order[-1]
        along = (changes @ gradient.flatten()).tolist()
        shares = [0.0] * self.length
        for at, place in reversed(list(enumerate(self._order))):
            rest = -along[place]
            rest -= sum(shares[later] * products[place][later] for later in self._order[at + 1 :])
            shares[place] = rest / products[place][place]
        weights = gradient.new_tensor(shares)
        residual = -gradient - (weights @ bends).view_as(gradient)
        bend = bends[newest].view_as(gradient)
        direction, bent = point.precondition(torch.stack([residual, bend]))
        direction = direction * (products[newest][newest] / _dot(bend, bent))
        along = (bends @ direction.flatten()).tolist()
        for at, place in enumerate(self._order):
            done = along[place]
            done += sum(shares[earlier] * products[earlier][place] for earlier in self._order[:at])
            shares[place] -= done / products[place][place]
        weights = gradient.new_tensor(shares)
        return direction + (weights @ changes).view_as(gradient)


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
