"""Images as a trained network expects them, its predictions, and how two networks' compare."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from image_data import MEMORY_LIMIT, ImageFiles, Images, Normalisation


class Pictures:
    """Batches ``(N, 3, size, size)`` in a fixed order; every iteration goes through all images.

    Args:
        source: the images.
        size: height and width that the network gets.
        resize: what the shorter side is scaled to before the centre is cut out; None means `size`.
        normalisation: of the channels.
        batch_size: images in a batch; None: 256 small ones, or 32 of more than 64x64.

    Attributes:
        labels: of the images, int64 ``(N,)``; batches come without.

    Raises:
        ValueError: if a size is out of range.
    """

    def __init__(
        self,
        source: Images | ImageFiles,
        *,
        size: int,
        resize: int | None = None,
        normalisation: Normalisation,
        batch_size: int | None = None,
    ) -> None:
        resize = size if resize is None else resize
        if not 1 <= size <= resize:
            raise ValueError(
                f"images: size must be at least 1 and at most resize (got {size} and {resize})"
            )
        self.labels = source.labels
        self._source = source
        self._size = size
        self._resize = resize
        self._normalisation = normalisation
        self._batch_size = batch_size or (256 if size <= 64 else 32)
        self._pixels: Tensor | None = None

    def __len__(self) -> int:
        """Number of batches."""
        return -(-len(self.labels) // self._batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        every = torch.arange(len(self.labels))
        if self._pixels is None and len(every) * 3 * self._size**2 <= MEMORY_LIMIT:
            self._pixels = torch.cat([self._prepared(part) for part in every.split(1024)])
        for part in every.split(self._batch_size):
            pixels = self._prepared(part) if self._pixels is None else self._pixels[part]
            yield self._normalisation(pixels)

    def _prepared(self, indices: Tensor) -> Tensor:
        pixels = self._source.take(indices).in_memory(self._resize).pixels
        start = (self._resize - self._size) // 2
        return pixels[..., start : start + self._size, start : start + self._size]


def drawn(source: Images | ImageFiles, seed: int, count: int | None = None) -> Images | ImageFiles:
    """So many of the images, or all, in an order that depends on the seed alone."""
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))
    return source.take(order[:count])


@torch.no_grad()
def predictions(network: nn.Module, pictures: Pictures) -> Tensor:
    """The class with the largest output for each image, ``(N,)``; the network is in eval mode."""
    device = next(network.parameters()).device
    return torch.cat([network(batch.to(device)).argmax(1).cpu() for batch in pictures])


def accuracies(correct: Tensor, reference: Tensor) -> dict[str, float]:
    """Cells of a table: accuracy in percent, and the difference to a reference in points.

    Args:
        correct: whether each image's class was found, bool ``(N,)``.
        reference: the same of the network to compare with.
    """
    difference, error = paired_difference(correct, reference)
    accuracy = 100 * float(correct.double().mean())
    return {"accuracy": accuracy, "difference": difference, "standard_error": error}


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
