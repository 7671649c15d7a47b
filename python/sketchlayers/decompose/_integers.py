"""The whole numbers that a few bits tell apart."""

from __future__ import annotations

from torch import Tensor

_MOST_OF_ODD = 7


def step_of(bits: int) -> int:
    """From one whole number of so many bits to the next, from the largest's negative on.

    Of few bits they are the odd ones, of which there are as many as bits tell apart, and 0 is none;
    from 8 bits on all that an ``int8``, or a wider type, has the negative of.
    """
    return 2 if bits <= _MOST_OF_ODD else 1


def largest_integer(bits: int) -> int:
    """The whole numbers of so many bits go from its negative to it."""
    return 2**bits - 1 if bits <= _MOST_OF_ODD else 2 ** (bits - 1) - 1


def nearest_integers(values: Tensor, bits: int) -> Tensor:
    """The whole numbers of so many bits that are nearest to these values."""
    most, step = largest_integer(bits), step_of(bits)
    return ((values + most) / step).round().clamp(0, 2 * most // step) * step - most
