"""Checks on the arguments that a decomposition takes, done before any work."""

from __future__ import annotations

import math

from torch import Tensor


def check_finite(owner: str, name: str, tensor: Tensor) -> None:
    """Refuse NaN and infinite entries.

    Raises:
        TypeError: ``tensor`` is not real floating point.
        ValueError: some entry is NaN or infinite; the message says how many.
    """
    if not tensor.is_floating_point():
        raise TypeError(f"{owner}: {name} must be real floating point (got dtype={tensor.dtype})")
    if tensor.sum().isfinite():  # one pass; a sum of finite entries that overflows is looked into
        return
    if not tensor.isfinite().all():
        nan, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        raise ValueError(
            f"{owner}: {name} must be finite (got {nan} NaN and {infinite} infinite entries "
            f"among {tensor.numel()})"
        )


def check_shape(owner: str, name: str, tensor: Tensor, shapes: list[tuple[int, ...]]) -> None:
    """Refuse a tensor of none of the given shapes.

    Raises:
        RuntimeError: it is so.
    """
    if tuple(tensor.shape) not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise RuntimeError(
            f"{owner}: {name} must have shape {wanted} (got shape={tuple(tensor.shape)})"
        )


def check_dimensions(owner: str, weight: Tensor, dimensions: tuple[int, ...]) -> None:
    """Refuse a weight without entries or with another number of dimensions.

    Raises:
        RuntimeError: it is so.
    """
    if weight.dim() not in dimensions or weight.numel() == 0:
        wanted = " or ".join(map(str, dimensions))
        raise RuntimeError(
            f"{owner}: weight must have {wanted} dimensions, none of size 0 "
            f"(got shape={tuple(weight.shape)})"
        )


def check_count(owner: str, name: str, value: object, largest: int | None = None) -> None:
    """Refuse what is not a whole number from 1 to ``largest``.

    Raises:
        TypeError: not a whole number.
        ValueError: out of bounds.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{owner}: {name} must be a whole number (got {value!r})")
    if value < 1 or (largest is not None and value > largest):
        bounds = "at least 1" if largest is None else f"from 1 to {largest}"
        raise ValueError(f"{owner}: {name} must be {bounds} (got {name}={value})")


def check_tolerance(owner: str, tolerance: float) -> None:
    """Refuse a tolerance that is negative, infinite or NaN.

    Raises:
        ValueError: it is so.
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"{owner}: tolerance must be at least 0 (got tolerance={tolerance})")
