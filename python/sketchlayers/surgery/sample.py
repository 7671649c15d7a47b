"""Calibration batches that are kept in memory, for what needs them more than once."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from sketchlayers.surgery.batches import Forward, count_images, described, rebuilt, to_device
from sketchlayers.surgery.evaluation import random_numbers

_FEW = 1024
"""Values of a tensor without a row for each image that are compared."""


@dataclass(frozen=True)
class BatchCall:
    """A call of a model with a batch, with random numbers that depend on the batch's number."""

    forward: Forward
    batch: Any
    number: int

    def __call__(self, model: nn.Module) -> object:
        """The model's outputs."""
        with random_numbers(self.number, model):
            return self.forward(model, self.batch)

    def __str__(self) -> str:
        return described(self.batch)


@dataclass(frozen=True)
class Sample:
    """Some batches, on the model's device, and how a model is called with one.

    Attributes:
        batches: as the loader yields them.
        forward: ``forward(model, batch)``.
    """

    batches: tuple[Any, ...]
    forward: Forward

    @property
    def images(self) -> int:
        """How many images there are."""
        return sum(map(count_images, self.batches))

    def calls(self) -> list[Callable[[nn.Module], object]]:
        """Returns one call for each batch; each takes the model.

        All calls for one batch draw the same random numbers.
        """
        return [BatchCall(self.forward, batch, number) for number, batch in enumerate(self.batches)]

    def first(self, images: int) -> Sample:
        """Returns the first batches with at least so many images, each whole, one at least.

        A model may need batches of a certain size.
        """
        count = bisect_left(self._totals(), images) + 1
        return Sample(self.batches[:count], self.forward)

    def at_most(self, images: int) -> Sample:
        """Returns the first batches with no more images than that, each whole, one at least."""
        count = bisect_right(self._totals(), images)
        return Sample(self.batches[: max(1, count)], self.forward)

    def _totals(self) -> list[int]:
        """Images up to the end of each batch."""
        return list(accumulate(map(count_images, self.batches)))

    def in_batches_of(self, most: int) -> Sample:
        """Returns the same images in the same order, no more than so many in a batch."""
        parts = [
            select(batch, slice(start, start + most)) if count_images(batch) > most else batch
            for batch in self.batches
            for start in range(0, count_images(batch), most)
        ]
        return Sample(tuple(parts), self.forward)

    def joined(self) -> list[Any]:
        """Returns all batches of one structure and image size as one, for each of these."""
        return [_join(batches) for batches in self._alike()]

    def like_the_first(self) -> Sample:
        """Returns the batches of the structure and image size that the first one has."""
        return Sample(tuple(self._alike()[0]), self.forward)

    def _alike(self) -> list[list[Any]]:
        groups: dict[Hashable, list[Any]] = {}
        for batch in self.batches:
            groups.setdefault(kind_of_batch(batch), []).append(batch)
        return list(groups.values())

    def split(self, held_out: float, *, whole: bool = False) -> tuple[Sample, Sample]:
        """Splits into two samples; the second has about this share of the images, at least 1.

        With ``whole`` no batch is cut, and the share is one of the batches.
        """
        if whole:
            count = len(self.batches)
            first = count - min(count - 1, max(1, round(held_out * count)))
            parts = self.batches[:first], self.batches[first:]
            return Sample(parts[0], self.forward), Sample(parts[1], self.forward)
        last = min(self.images - 1, max(1, round(held_out * self.images)))
        remaining = self.images - last
        head, tail = [], []
        for batch in self.batches:
            count = count_images(batch)
            if remaining >= count:
                head.append(batch)
            elif remaining <= 0:
                tail.append(batch)
            else:
                head.append(select(batch, slice(remaining)))
                tail.append(select(batch, slice(remaining, None)))
            remaining -= count
        return Sample(tuple(head), self.forward), Sample(tuple(tail), self.forward)


def take(
    loader: Iterable[Any], forward: Forward, device: torch.device | None, most: int
) -> tuple[Sample, bool]:
    """The first batches of a loader that fit in ``most`` bytes, at least one; whether it is all.

    Batches without images are left out.
    """
    batches: list[Any] = []
    for batch in loader:
        if count_images(batch) == 0:
            continue
        batch = to_device(batch, device)
        most -= batch_bytes(batch)
        if batches and most < 0:
            return Sample(tuple(batches), forward), False
        batches.append(batch)
    return Sample(tuple(batches), forward), True


def batch_bytes(batch: Any) -> int:
    """Returns the bytes of all tensors of a batch."""
    return sum(x.numel() * x.element_size() for x in tree_leaves(batch) if isinstance(x, Tensor))


def select(batch: Any, which: slice | Tensor) -> Any:
    """Returns some images of a batch."""
    count = count_images(batch)

    def part(value: Any) -> Any:
        return value[which] if _is_of_images(value, count) else value

    parts = tree_map(part, _plain(batch))
    return rebuilt(batch, parts) if isinstance(batch, Mapping) else parts


def kind_of_batch(batch: Any, *, counted: bool = False) -> Hashable:
    """Returns what batches that can be joined have in common: all but the images and their number.

    Texts of different lengths, or images of different sizes, are of different kinds.

    Args:
        batch: as a loader yields it.
        counted: the number of images counts as well.
    """
    count = count_images(batch)
    leaves, structure = tree_flatten(_plain(batch))
    kinds = [_kind_of_leaf(leaf, count) for leaf in leaves]
    return str(structure), *kinds, count if counted else None


def _kind_of_leaf(leaf: Any, count: int) -> Hashable:
    if not isinstance(leaf, Tensor):
        return type(leaf).__qualname__
    if _is_of_images(leaf, count):
        return leaf.dtype, leaf.shape[1:]
    few = leaf.numel() <= _FEW
    return leaf.dtype, leaf.shape, tuple(leaf.flatten().tolist()) if few else id(leaf)


def _is_of_images(value: object, count: int) -> bool:
    """Whether a leaf of a batch is a tensor with a row for each image."""
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == count


def outputs_of(result: object) -> list[Tensor]:
    """Returns the floating-point tensors of a model's outputs, each as (images, values).

    Raises:
        TypeError: there are none.
    """
    tensors = [x for x in _leaves(result) if isinstance(x, Tensor) and x.is_floating_point()]
    if not tensors:
        raise TypeError(
            "compress: the model must return floating-point tensors, alone or in a tuple, list, "
            f"dict or dataclass (got {described(result)}); take them from what it returns with "
            "forward=lambda model, batch: model(batch).logits, or the like"
        )
    return [x.flatten(1) if x.ndim > 1 else x.reshape(1, -1) for x in tensors]


def _leaves(result: object) -> list[object]:
    """All that a result holds, also in mappings and dataclasses that PyTorch does not know."""
    found: list[object] = []
    for leaf in tree_leaves(result):
        if isinstance(leaf, Mapping):
            found += [inner for value in leaf.values() for inner in _leaves(value)]
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            fields = dataclasses.fields(leaf)
            found += [inner for field in fields for inner in _leaves(getattr(leaf, field.name))]
        else:
            found.append(leaf)
    return found


class OutputsDifferError(RuntimeError):
    """Outputs of two models, or for two batches, cannot be compared: they differ in shape."""


def squared_distance(results: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Returns the sum of the squared differences of the outputs of two models, over all images.

    Raises:
        OutputsDifferError: they have different shapes.
    """
    shapes = [[tuple(x.shape) for x in outputs] for outputs in (results, targets)]
    if shapes[0] != shapes[1]:
        raise OutputsDifferError(
            f"the smaller network must return outputs of the same shapes (got {shapes[0]} in place "
            f"of {shapes[1]})"
        )
    pairs = zip(results, targets, strict=True)
    return torch.stack([(x.float() - y.float()).square().sum() for x, y in pairs]).sum()


def _join(batches: Sequence[Any]) -> Any:
    """Some batches of one kind as one."""
    count = count_images(batches[0])

    def joined_leaf(*values: Any) -> Any:
        return torch.cat(values) if _is_of_images(values[0], count) else values[0]

    joined = tree_map(joined_leaf, *map(_plain, batches))
    return rebuilt(batches[0], joined) if isinstance(batches[0], Mapping) else joined


def _plain(batch: Any) -> Any:
    """The batch in a form that PyTorch's trees look into."""
    return dict(batch) if isinstance(batch, Mapping) else batch
