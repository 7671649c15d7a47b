"""Moments of layers' inputs, summed batch by batch: tensors in, moments out.

Sums are float64. Products of float32 inputs are formed in float32 for at most `PART_POSITIONS`
patches at a time, so that an entry of the second moment is wrong by at most ``PART_POSITIONS *
2^-24`` of ``E|x_i x_j|`` (2.4e-4); measured, on positive inputs of very uneven channels, the error
of an entry is below 1e-7 of ``sqrt(E x_i^2 E x_j^2)`` and the whole matrix is off by 3e-7 of its
mean eigenvalue in the spectral norm. Float64 inputs stay float64, half types become float32.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sketchlayers.compress._patches import PatchGeometry
from sketchlayers.compress._products import Pair, products

Reduce = Callable[[Tensor], Tensor]
"""Makes a sum of this process that of all processes."""

_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class LayerMoments:
    """First and second moment of the input patches of one layer.

    Attributes:
        second_moment: ``E[x x^T]`` over all images and output positions, (groups, n, n) float64.
        mean: ``E[x]``, (groups, n) float64.
        count: how many patches a group has seen.
        geometry: how the layer cuts its input into patches.
    """

    second_moment: Tensor
    mean: Tensor
    count: int
    geometry: PatchGeometry

    @property
    def inputs(self) -> int:
        """Length n of a patch."""
        return self.mean.shape[1]


@dataclass(frozen=True, eq=False)
class CrossMoments:
    """Moments of the inputs x that a layer had and x~ that it will really get, patch by patch.

    Attributes:
        second_moment: ``E[x~ x~^T]``, (groups, n, n) float64.
        cross_moment: ``E[x x~^T]``, (groups, n, n) float64.
        original_second_moment: ``E[x x^T]``; None if it was not asked for.
        mean: ``E[x~]``, (groups, n) float64.
        original_mean: ``E[x]``, (groups, n) float64.
        count: how many pairs of patches a group has seen.
    """

    second_moment: Tensor
    cross_moment: Tensor
    original_second_moment: Tensor | None
    mean: Tensor
    original_mean: Tensor
    count: int

    def squared_change(
        self, weight: Tensor, replacement: Tensor, bias_change: Tensor | None = None
    ) -> Tensor:
        """``E|W x - W~ x~ - (b~ - b)|^2``: how far the output moves from the original one.

        Args:
            weight: W, (groups * T, ...) as a layer holds it; flattened to (groups, T, n).
            replacement: W~, alike.
            bias_change: ``b~ - b``, (groups * T,); None for none.

        Returns:
            The mean over patches, summed over outputs; a scalar, float64.

        Raises:
            RuntimeError: ``E[x x^T]`` was not asked for.
        """
        if self.original_second_moment is None:
            raise RuntimeError(
                "squared_change: E[x x^T] must have been summed; use original=True (got None)"
            )
        old, new = (self._by_group(w) for w in (weight, replacement))
        energy = ((old @ self.original_second_moment) * old).sum()
        energy += ((new @ self.second_moment) * new).sum()
        energy -= 2 * ((old @ self.cross_moment) * new).sum()
        if bias_change is not None:
            move = bias_change.to(old).reshape(old.shape[:2])
            means = old @ self.original_mean.unsqueeze(-1) - new @ self.mean.unsqueeze(-1)
            energy += (move * (move - 2 * means.squeeze(-1))).sum()
        return energy.clamp(min=0)

    def _by_group(self, weight: Tensor) -> Tensor:
        groups, n = self.mean.shape
        return weight.detach().to(self.mean).reshape(groups, -1, n)


class MomentSums:
    """Sums up the moments of one layer's inputs.

    Example:
        >>> sums = MomentSums(PatchGeometry.of(layer))
        >>> for inputs in batches:
        ...     sums.add(inputs)
        >>> moments = sums.take()
    """

    def __init__(self, geometry: PatchGeometry) -> None:
        """Takes the geometry of the layer."""
        self._geometry = geometry
        self._sums = _Sums(geometry, [(0, 0)])

    def add(self, inputs: Tensor) -> None:
        """Adds all patches of the input of one call of the layer.

        Raises:
            ValueError: a value is NaN or infinite, or the values are too large to be summed up.
            RuntimeError: the shape does not fit the layer.
        """
        self._sums.add(inputs)

    def take(self, reduce: Reduce | None = None) -> LayerMoments | None:
        """The moments of what was added, on the CPU; None if there were no patches. Begins anew.

        Args:
            reduce: makes each sum that of all processes.

        Raises:
            ValueError: a product of values was too large for their type.
        """
        moments, means, count = self._sums.take(reduce)
        return LayerMoments(moments[0], means[0], count, self._geometry) if count else None


class CrossMomentSums:
    """Sums up the moments of pairs of inputs of one layer: those it had and those it gets.

    Both inputs of a pair are of the same images, so that patches correspond.
    """

    def __init__(self, geometry: PatchGeometry, *, original: bool = False) -> None:
        """Takes the geometry of the layer, and whether to sum ``E[x x^T]`` too."""
        self._sums = _Sums(geometry, [(1, 1), (0, 1), *([(0, 0)] if original else [])])

    def add(self, original: Tensor, actual: Tensor) -> None:
        """Adds all pairs of patches of the inputs of one call of the layer.

        Raises:
            ValueError: a value is NaN or infinite, or the values are too large to be summed up.
            RuntimeError: the shapes differ or do not fit the layer.
        """
        if original.shape != actual.shape:
            raise RuntimeError(
                "moments: both inputs must have one shape "
                f"(got {tuple(original.shape)} and {tuple(actual.shape)})"
            )
        self._sums.add(original, actual.to(original.device))

    def take(self, reduce: Reduce | None = None) -> CrossMoments | None:
        """The moments of what was added, on the CPU; None if there were no patches. Begins anew.

        Args:
            reduce: makes each sum that of all processes.

        Raises:
            ValueError: a product of values was too large for their type.
        """
        moments, means, count = self._sums.take(reduce)
        if count == 0:
            return None
        second, cross, original = (*moments, None)[:3]
        assert second is not None and cross is not None
        return CrossMoments(second, cross, original, means[1], means[0], count)


class NonFiniteError(ValueError):
    """Inputs, or sums of their products, are not finite; ``found`` says what there is instead."""

    def __init__(self, found: str) -> None:
        super().__init__(f"moments: inputs must be finite (got {found})")
        self.found = found


class _Sums:
    """Count, sums and sums of products of the patches of one or more corresponding inputs."""

    def __init__(self, geometry: PatchGeometry, pairs: Sequence[Pair]) -> None:
        self._geometry = geometry
        self._pairs = tuple(pairs)
        with exactly(_CPU):
            self._begin()

    def _begin(self, device: torch.device = _CPU) -> None:
        inputs = 1 + max(map(max, self._pairs))
        shape = (inputs, self._geometry.groups, self._geometry.inputs)
        self._device = device
        self._count = 0
        self._sums = torch.zeros(shape, dtype=torch.float64, device=device)
        self._products = products(self._geometry, self._pairs, device)

    def add(self, *inputs: Tensor) -> None:
        device = inputs[0].device
        if device.type != "cuda":  # others need not know float64
            device = _CPU
        with exactly(device):
            maps = [self._geometry.maps(x.detach().to(device)) for x in inputs]
            dtype = torch.promote_types(maps[0].dtype, maps[-1].dtype)
            sums = torch.stack([self._sum(x) for x in maps])
            count = self._geometry.count(maps[0])
            if count == 0:
                return
            if self._count == 0 and device != self._device:
                self._begin(device)
            self._sums += sums.to(self._device)
            self._products.add([x.to(self._device, dtype) for x in maps])
            self._count += count

    def take(self, reduce: Reduce | None) -> tuple[list[Tensor], Tensor, int]:
        """Moments (groups, n, n) of each pair, means (inputs, groups, n), count; begins anew."""
        with exactly(self._device):
            moments, means, count = self._products.take(), self._sums, self._count
            self._begin()
            if reduce is not None:
                moments = [reduce(moment) for moment in moments]
                means = reduce(means)
                count = int(reduce(torch.tensor(float(count), dtype=torch.float64)))
            if count == 0:
                return [], means, 0
            for moment, (i, j) in zip(moments, self._pairs, strict=True):
                moment /= count
                if i == j and not moment.diagonal(dim1=1, dim2=2).isfinite().all():
                    raise NonFiniteError("values whose squares are too large for their type")
            return [moment.cpu() for moment in moments], (means / count).cpu(), count

    def _sum(self, maps: Tensor) -> Tensor:
        """Sum of all patches, (groups, n) float64: the patches of the sum of all images."""
        total = maps.sum(0, keepdim=True, dtype=torch.float64)
        if not total.isfinite().all():
            raise NonFiniteError(_what_is_not_finite(maps))
        parts = [part.sum(-1) for part in self._geometry.patches(total)]
        shape = self._sums.shape[1:]
        return torch.stack(parts).sum(0) if parts else total.new_zeros(shape, dtype=torch.float64)


def _what_is_not_finite(values: Tensor) -> str:
    counts = {"NaN": int(values.isnan().sum()), "Inf": int(values.isinf().sum())}
    found = [f"{name} {count} times" for name, count in counts.items() if count]
    return " and ".join(found) or "values too large to be summed up"


@contextlib.contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """No gradients, no autocast, no inference tensors, and float32 products in full float32.

    Convolutions' products too.
    """
    backends = (
        torch.backends.mkldnn.matmul,  # type: ignore[attr-defined]
        torch.backends.mkldnn.conv,  # type: ignore[attr-defined]
        torch.backends.cuda.matmul,
        torch.backends.cudnn.conv,  # type: ignore[attr-defined]
    )
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = "ieee"
    try:
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
