"""Checks on the arguments of layers, made before any work."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence

from torch import nn


def whole_number(owner: str, name: str, value: int, least: int = 1, most: int | None = None) -> int:
    """Return ``value`` as an int that is at least ``least`` and at most ``most``.

    Raises:
        TypeError: not a whole number.
        ValueError: below ``least`` or above ``most``.
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{owner}: {name} must be an int (got {name}={value!r})") from None
    if number < least:
        raise ValueError(f"{owner}: {name} must be at least {least} (got {name}={number})")
    if most is not None and number > most:
        raise ValueError(f"{owner}: {name} must be at most {most} (got {name}={number})")
    return number


def whole_numbers(
    owner: str, name: str, value: int | Sequence[int], count: int, least: int, most: int
) -> tuple[int, ...]:
    """Return ``value`` as so many whole numbers; one number stands for all.

    Raises:
        TypeError: not whole numbers.
        ValueError: more or fewer, below ``least`` or above ``most``.
    """
    values = tuple(value) if isinstance(value, Sequence) else (value,) * count
    if len(values) != count:
        number = ("one", "two", "three")[count - 1]
        raise ValueError(
            f"{owner}: {name} must be an int or {number} of them (got {name}={value!r})"
        )
    return tuple(whole_number(owner, name, number, least, most) for number in values)


def one_of(owner: str, name: str, value: object, choices: tuple[object, ...]) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``."""
    if not any(value is choice or value == choice for choice in choices):
        listed = ", ".join(map(repr, choices))
        raise ValueError(f"{owner}: {name} must be one of {listed} (got {name}={value!r})")


def check_one_given(owner: str, name: str, value: object, rate: object) -> None:
    """Raise ValueError unless either a size called ``name`` or a rate is given."""
    if (value is None) == (rate is None):
        raise ValueError(
            f"{owner}: exactly one of {name} and rate must be given "
            f"(got {name}={value}, rate={rate})"
        )


def checked_rate(owner: str, rate: float) -> float:
    """``rate`` as a float in (0, 1].

    Raises:
        TypeError: not a number.
        ValueError: outside of (0, 1].
    """
    if isinstance(rate, bool) or not isinstance(rate, numbers.Real):
        raise TypeError(f"{owner}: rate must be a number (got rate={rate!r})")
    if not 0 < rate <= 1:
        raise ValueError(
            f"{owner}: rate must be in (0, 1] (got rate={rate}): it is the fraction of the "
            f"parameters that is kept{percent_hint('rate', rate)}"
        )
    return float(rate)


def percent_hint(name: str, value: float) -> str:
    """Says what to give where a fraction was given in percent; "" where it cannot have been."""
    return f"; for {value:g} % give {name}={value / 100:g}" if 2 <= value <= 100 else ""


def number_above(owner: str, name: str, value: float, bound: float) -> float:
    """``value`` as a finite float above ``bound``.

    Raises:
        TypeError: not a number.
        ValueError: not finite, or not above ``bound``.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{owner}: {name} must be a number (got {name}={value!r})")
    if not bound < value < math.inf:
        raise ValueError(f"{owner}: {name} must be finite and above {bound} (got {name}={value})")
    return float(value)


def refuse_other_layers(owner: str, dense: nn.Module, dense_class: type[nn.Module]) -> None:
    """Raise unless ``dense`` computes exactly what ``dense_class`` computes.

    Raises:
        TypeError: another class, one that computes its output in its own way, or a lazy layer
            whose sizes are not known yet.
    """
    name = dense_class.__name__
    if not isinstance(dense, dense_class):
        raise TypeError(f"{owner}: layer must be an nn.{name} (got {type(dense).__name__})")
    if isinstance(dense.weight, nn.UninitializedParameter):
        raise TypeError(
            f"{owner}: layer must have its sizes (got {type(dense).__name__}, which has seen no "
            "input yet)"
        )
    for method in ("forward", "_conv_forward"):
        if getattr(type(dense), method, None) is not getattr(dense_class, method, None):
            raise TypeError(
                f"{owner}: layer must compute its output as nn.{name} does "
                f"(got {type(dense).__name__}, which has its own {method})"
            )
