"""Checks on the tensors that a decomposition takes, done before any work."""

from __future__ import annotations

from torch import Tensor


def check_finite(owner: str, name: str, tensor: Tensor) -> None:
    """Refuse NaN and infinite entries.

    Raises:
        TypeError: ``tensor`` is not real floating point.
        ValueError: some entry is NaN or infinite; the message says how many.
    """
    if not tensor.is_floating_point():
        raise TypeError(f"{owner}: {name} must be real floating point (got dtype={tensor.dtype})")
    if not tensor.isfinite().all():
        nan, infinite = int(tensor.isnan().sum()), int(tensor.isinf().sum())
        raise ValueError(
            f"{owner}: {name} must be finite (got {nan} NaN and {infinite} infinite entries "
            f"among {tensor.numel()})"
        )
