"""Sign matrices of the subsampled randomised Hadamard transform, in the format of `ops`."""

from __future__ import annotations

import torch
from torch import Tensor

from sketchlayers import ops

# Numbers of the sign matrices that decide a transform: part of the file format, as those of
# `ops.sign_matrix` are, and above those of any group's own matrices.
_DIAGONALS = 2**30
_ORDERS = 2**30 + 2**29

_MOST_BITS = 1 << 22
"""Entries that are made at a time."""


def hadamard_signs(
    seed: int,
    matrix: int,
    rows: int,
    columns: int,
    *,
    device: torch.device | str | None = None,
) -> Tensor:
    """Rows of ``H D``, packed: ``H`` of Walsh and Hadamard, ``D`` random signs on the diagonal.

    ``H`` has the next power of two of rows, as the paper pads it; those taken are chosen at random
    and differ, so that the rows are orthogonal where ``columns`` is a power of two. When there are
    not enough, more come from another diagonal and another order. Over the seeds an entry is +1 and
    -1 equally often and two entries of one row are uncorrelated.

    Args:
        seed: 64-bit key.
        matrix: which of the matrices of this seed, below ``2^29``.
        rows: number of rows.
        columns: number of signs in a row.
        device: where to make them.

    Returns:
        int32 tensor ``(rows, words)`` as `ops.sign_matrix` gives it; bits beyond ``columns`` are
        arbitrary.
    """
    size = 1 << (columns - 1).bit_length()
    transforms = -(-rows // size)
    diagonals = ops.sign_matrix(seed, _DIAGONALS + matrix, transforms, columns, device=device)
    if diagonals.is_meta:
        return diagonals.new_empty(rows, diagonals.shape[1])
    chosen = _order(seed, matrix, transforms, size, device)
    packed = torch.cat(
        [
            _packed_rows(indices, 32 * diagonals.shape[1])
            for indices in chosen.flatten()[:rows].split(max(1, _MOST_BITS // size))
        ]
    )
    return packed ^ diagonals.repeat_interleave(size, 0)[:rows]


def _order(
    seed: int, matrix: int, transforms: int, size: int, device: torch.device | str | None
) -> Tensor:
    """A random order of the rows for each transform, ``(transforms, size)``."""
    words = ops.sign_matrix(seed, _ORDERS + matrix, transforms * size, 64, device=device)
    low, high = words[:, 0].long() & 0xFFFFFFFF, words[:, 1].long()
    return ((high << 32) | low).view(transforms, size).argsort(dim=1, stable=True)


def _packed_rows(indices: Tensor, columns: int) -> Tensor:
    """Rows of the Walsh-Hadamard matrix: bit 1, a minus, where row and column share odd bits."""
    shared = indices[:, None] & torch.arange(columns, device=indices.device)
    for shift in (32, 16, 8, 4, 2, 1):
        shared = shared ^ (shared >> shift)
    bits = (shared & 1).view(len(indices), -1, 32)
    words = (bits << torch.arange(32, device=indices.device)).sum(2)
    return words.to(torch.int32)
