"""Rounding to whole numbers times scales, in the norm of a layer's outputs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._checks import check_dimensions, check_finite, check_shape
from ._integers import largest_integer, nearest_integers
from ._norm import as_moment

DAMPING = 1e-3
"""Of the mean of the second moment's diagonal, added to it: inputs that hardly vary are rounded."""
_SHRUNK = (1 + 2**-8, *(1 - 0.02 * step for step in range(31)))
"""Scales that are tried, over that which reaches the largest entry: first one that does so also
when it is rounded to bfloat16."""
_BLOCK = 128
"""Columns whose errors are passed on together."""
_PASSES = 2
"""Over all columns after the first, each to its best number given all others."""
_FEW_BITS = 7
"""With more every scale is left as it is: bfloat16 would move it by more than a number's step."""
_SMALL = 2048
"""Inputs up to which these are made: their time grows with the square."""


class Rounded(NamedTuple):
    """A weight as whole numbers times scales.

    Attributes:
        integers: of the shape of the weight, float64.
        scale: ``(T, groups)`` or ``(1, groups)``, float64 numbers that bfloat16 holds.
        weight: the product, float64.
        bits: of each whole number.
    """

    integers: Tensor
    scale: Tensor
    weight: Tensor
    bits: int


def rounded(
    weight: Tensor,
    bits: int,
    *,
    second_moment: Tensor | None = None,
    groups: int = 1,
    one_scale: bool = False,
) -> Rounded:
    """The nearest weight of whole numbers of a few bits, with a scale for each output.

    The whole numbers ``Q`` make ``tr(D S D^T)`` small, ``D = W - s Q``. Of less than 8 bits they
    are the odd ones from ``-(2^b - 1)`` to ``2^b - 1``, else all from ``-(2^(b-1) - 1)`` to
    ``2^(b-1) - 1``. Inputs are rounded one after the other, those of the most power first, and the
    errors are passed on to those that are not yet (GPTQ: Frantar, Ashkboos, Hoefler and Alistarh,
    ICLR 2023). Then each scale goes to its best value given the numbers, and each number to its
    best given all others. The scales that this begins with are those of the least error when every
    number is the nearest one.

    Args:
        weight: ``W``, ``(T, S, ...)`` of any dimensions, ``n`` inputs in all.
        bits: ``b``, 2 to 16.
        second_moment: ``S (n, n)`` of the inputs; None for the identity, where every number is the
            nearest one.
        groups: of neighbouring inputs, each with a scale of its own; it divides ``n``.
        one_scale: for all outputs together.

    Raises:
        RuntimeError: shapes that do not fit together.
        TypeError: tensors that are not floating point.
        ValueError: NaN or infinite entries, a second moment that is not symmetric positive
            semidefinite, bits or groups out of range.
    """
    owner = "rounded"
    check_dimensions(owner, weight, (2, 3, 4, 5))
    check_finite(owner, "weight", weight)
    matrix = weight.detach().double().flatten(1)
    inputs = matrix.shape[1]
    if not 2 <= bits <= 16:
        raise ValueError(f"{owner}: bits must be from 2 to 16 (got bits={bits})")
    if groups < 1 or inputs % groups:
        raise ValueError(f"{owner}: groups must divide the {inputs} inputs (got groups={groups})")
    moment = None
    if second_moment is not None:
        check_shape(owner, "second_moment", second_moment, [(inputs, inputs)])
        moment = as_moment(owner, "second_moment", second_moment.to(weight.device))
    power = matrix.new_ones(inputs) if moment is None else moment.diagonal()
    if not power.sum() > 0:
        moment, power = None, torch.ones_like(power)
    by_group = _ByGroup(matrix.shape, groups, one_scale)
    scale = _scales(matrix, power, bits, by_group)
    if moment is None:
        integers = nearest_integers(matrix / by_group.spread(scale), bits)
    else:
        damped = moment.clone()
        damped.diagonal().add_(DAMPING * float(power.mean()))
        integers = _passing_errors_on(matrix, by_group.spread(scale), bits, damped)
        if inputs <= _SMALL:
            for _ in range(_PASSES):
                if bits <= _FEW_BITS:
                    scale = _best_scales(matrix, integers, scale, damped, by_group)
                _improve(matrix, integers, by_group.spread(scale), bits, damped)
    used = by_group.largest(matrix) > 0
    product = integers * by_group.spread(scale)
    product = product.where(by_group.spread(used), 0.0)
    scale = torch.where(used, scale, 0.0)
    return Rounded(integers.reshape(weight.shape), scale, product.reshape(weight.shape), bits)


class _ByGroup(NamedTuple):
    """Which entries of a matrix share a scale."""

    shape: tuple[int, ...]
    groups: int
    together: bool  # all rows

    def spread(self, scale: Tensor) -> Tensor:
        """The scale of every entry."""
        return scale.repeat_interleave(self.shape[1] // self.groups, 1).expand(self.shape)

    def sums(self, entries: Tensor) -> Tensor:
        """Of the entries of every scale."""
        sums = entries.unflatten(1, (self.groups, -1)).sum(-1)
        return sums.sum(0, keepdim=True) if self.together else sums

    def largest(self, entries: Tensor) -> Tensor:
        """Absolute entry of every scale."""
        largest = entries.abs().unflatten(1, (self.groups, -1)).amax(-1)
        return largest.amax(0, keepdim=True) if self.together else largest


def _as_stored(scale: Tensor) -> Tensor:
    """Numbers that bfloat16 holds, above 0."""
    tiny = torch.finfo(torch.bfloat16).tiny
    return scale.clamp_min(tiny).bfloat16().double()


def _scales(matrix: Tensor, power: Tensor, bits: int, by_group: _ByGroup) -> Tensor:
    """Those of the least error of the nearest numbers, inputs weighted by their power."""
    full = by_group.largest(matrix) / largest_integer(bits)
    best = least = None
    for share in _SHRUNK:
        scale = _as_stored(share * full)
        spread = by_group.spread(scale)
        change = matrix - nearest_integers(matrix / spread, bits) * spread
        error = by_group.sums(change.square() * power)
        if best is None or least is None:
            best, least = scale, error
        else:
            better = error < least
            best, least = torch.where(better, scale, best), torch.where(better, error, least)
    assert best is not None
    return best


def _passing_errors_on(matrix: Tensor, scale: Tensor, bits: int, moment: Tensor) -> Tensor:
    """Whole numbers by GPTQ, inputs of the most power first."""
    order = moment.diagonal().argsort(descending=True)
    left, scale = matrix[:, order].clone(), scale[:, order]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moment[order][:, order]))
    upper = torch.linalg.cholesky(inverse, upper=True)
    integers = torch.empty_like(left)
    for start in range(0, left.shape[1], _BLOCK):
        end = min(start + _BLOCK, left.shape[1])
        errors = left.new_empty(len(left), end - start)
        for j in range(start, end):
            number = nearest_integers(left[:, j] / scale[:, j], bits)
            error = (left[:, j] - number * scale[:, j]) / upper[j, j]
            left[:, j + 1 : end].addr_(error, upper[j, j + 1 : end], alpha=-1)
            integers[:, j], errors[:, j - start] = number, error
        left[:, end:].addmm_(errors, upper[start:end, end:], alpha=-1)
    return integers[:, order.argsort()]


def _best_scales(
    matrix: Tensor, integers: Tensor, scale: Tensor, moment: Tensor, by_group: _ByGroup
) -> Tensor:
    """Each scale at its best, the numbers and the other scales given."""
    spread = by_group.spread(scale)
    rest = (matrix - integers * spread) @ moment  # what each entry of the product could change
    gain = by_group.sums(integers * rest)
    if by_group.groups == 1:
        curvature = by_group.sums(integers * (integers @ moment))
    else:  # of each group alone, an upper bound for steps of all together
        curvature = by_group.groups * by_group.sums(integers.square() * moment.abs().sum(1))
    step = torch.where(curvature > 0, gain / curvature, 0.0)
    return _as_stored(scale + step)


def _improve(matrix: Tensor, integers: Tensor, scale: Tensor, bits: int, moment: Tensor) -> None:
    """Brings each number to its best value, all others given, one input after the other."""
    rest = (matrix - integers * scale) @ moment
    for j in moment.diagonal().argsort(descending=True).tolist():
        best = integers[:, j] + rest[:, j] / (moment[j, j] * scale[:, j])
        number = nearest_integers(best, bits)
        change = (number - integers[:, j]) * scale[:, j]
        if not bool((change != 0).any()):
            continue
        rest.addr_(change, moment[j], alpha=-1)
        integers[:, j] = number
