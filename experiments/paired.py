"""Two networks on the same images: the difference of their accuracies and its standard error."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def paired_difference(correct: Tensor, reference: Tensor) -> tuple[float, float]:
    """Accuracy minus that of a reference, in points, and the standard error of this difference.

    Images on which both are right, or both wrong, say nothing about it (McNemar, Psychometrika
    1947): with shares ``b`` and ``c`` of images that only one of the two has right, the difference
    is ``b - c`` and its variance ``(b + c - (b - c)^2) / N``.

    Args:
        correct: whether each image's class was found, bool ``(N,)``.
        reference: the same of the other network.

    Raises:
        ValueError: the two are not of the same images.
    """
    if correct.shape != reference.shape:
        raise ValueError(
            "paired_difference: both must be of the same images "
            f"(got {len(correct)} and {len(reference)})"
        )
    gained = float((correct & ~reference).double().mean())
    lost = float((~correct & reference).double().mean())
    variance = (gained + lost - (gained - lost) ** 2) / len(correct)
    return 100 * (gained - lost), 100 * math.sqrt(variance)


def bits_to_text(bits: Tensor) -> str:
    """Booleans ``(N,)`` as hexadecimal digits, the first in the highest place."""
    return np.packbits(bits.numpy()).tobytes().hex()


def text_to_bits(text: str, count: int) -> Tensor:
    """The inverse of `bits_to_text`."""
    packed = np.frombuffer(bytes.fromhex(text), dtype=np.uint8)
    return torch.from_numpy(np.unpackbits(packed, count=count).astype(bool))
