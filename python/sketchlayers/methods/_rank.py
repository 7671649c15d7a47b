"""The size of a replacement, and what a layer could become at it."""

from __future__ import annotations

from typing import NamedTuple

Rank = int | tuple[int | None, ...]
"""Size of a replacement: one number, or one for each side, None where a side keeps its size."""


class Candidate(NamedTuple):
    """What a layer could become.

    Attributes:
        rank: size of the replacement.
        parameters: of the replacement, bias included.
        squared_error: squared relative error that it would have, in the norm of the fit.
    """

    rank: Rank
    parameters: int
    squared_error: float


def rank_text(rank: Rank) -> str:
    """Writes a rank for tables: "12", "16x24", "-x24"."""
    if isinstance(rank, int):
        return str(rank)
    return "x".join("-" if size is None else str(size) for size in rank)


def one_number(owner: str, rank: Rank) -> int:
    """Returns the rank of a method whose ranks are whole numbers.

    Raises:
        TypeError: the rank is a tuple.
    """
    if not isinstance(rank, int):
        raise TypeError(f"{owner}: rank must be an int (got rank={rank!r})")
    return rank
