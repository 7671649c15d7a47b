"""The random words of `ops.sign_matrix`, made by PyTorch's own operators; slow, but for a few."""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDS = 10
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_FORMAT_VERSION = 1  # of signs, the last word of the counter
_LOW = 0xFFFFFFFF


def random_words(seed: int, matrix: int, rows: int, count: int) -> Tensor:
    """The first words of ``sign_matrix(seed, matrix + i, 1, 32 * count)``, a row for each ``i``.

    Philox 4x32-10 of Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
    SC 2011.

    Args:
        seed: 64-bit key.
        matrix: which of the matrices of this seed, in ``[0, 2^32 - rows]``.
        rows: number of matrices.
        count: number of words of each.

    Returns:
        int32 tensor ``(rows, count)`` on the CPU.
    """
    c0 = torch.arange(-(-count // 4), device="cpu").repeat(rows, 1)
    c1 = torch.zeros_like(c0)
    c2 = torch.arange(matrix, matrix + rows, device="cpu")[:, None].expand_as(c0)
    c3 = torch.full_like(c0, _FORMAT_VERSION)
    k0, k1 = seed & _LOW, seed >> 32 & _LOW
    for _ in range(_ROUNDS):
        high0, low0 = _product(_MULTIPLIERS[0], c0)
        high1, low1 = _product(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW, (k1 + _KEY_STEPS[1]) & _LOW
    words = torch.stack([c0, c1, c2, c3], dim=-1).flatten(1)[:, :count]
    return torch.where(words < 2**31, words, words - 2**32).to(torch.int32)


def _product(factor: int, words: Tensor) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of the products, with no number on the way above 63 bits."""
    by_low = factor * (words & 0xFFFF)
    by_high = factor * (words >> 16) + (by_low >> 16)
    return by_high >> 16, (by_high & 0xFFFF) << 16 | by_low & 0xFFFF
