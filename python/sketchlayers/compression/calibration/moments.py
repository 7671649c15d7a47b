"""Moments of layers' inputs, summed batch by batch: tensors in, moments out.

Sums are float64. Products of float32 inputs are formed in float32 for at most `PART_POSITIONS`
patches at a time, so that an entry of the second moment is wrong by at most ``PART_POSITIONS *
2^-24`` of ``E|x_i x_j|`` (2.4e-4); measured, on positive inputs of very uneven channels, the error
of an entry is below 1e-7 of ``sqrt(E x_i^2 E x_j^2)`` and the whole matrix is off by 3e-7 of its
mean eigenvalue in the spectral norm. Float64 inputs stay float64, half types become float32.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sketchlayers._runtime.settings import full_float32
from sketchlayers.compression.calibration.patches import PatchGeometry
from sketchlayers.compression.calibration.products import products

Reduce = Callable[[Tensor], Tensor]
"""Makes a sum of this process that of all processes."""
Share = Callable[[int], float]
"""What part of so many patches to take."""

_CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class LayerMoments:
    """First and second moment of the input patches of one layer.

    Attributes:
        second_moment: ``E[x x^T]`` over all images and output positions, (groups, n, n) float64.
        mean: ``E[x]``, (groups, n) float64.
        count: how many patches a group has had; a part of them, drawn at random, may have been
            enough for the moments (``patches_per_input`` of `calibrate`).
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


def pooled_moments(first: LayerMoments | None, second: LayerMoments | None) -> LayerMoments | None:
    """Returns the moments over the patches of both; None without any."""
    if first is None or second is None:
        return first or second
    count = first.count + second.count
    share = second.count / count
    return LayerMoments(
        torch.lerp(first.second_moment, second.second_moment, share),
        torch.lerp(first.mean, second.mean, share),
        count,
        first.geometry,
    )


class MomentSums:
    """Sums up the moments of one layer's inputs: count, sums and sums of products of the patches.

    Example:
        >>> sums = MomentSums(PatchGeometry.of(layer))
        >>> for inputs in batches:
        ...     sums.add(inputs)
        >>> moments = sums.take()
    """

    def __init__(self, geometry: PatchGeometry) -> None:
        """Takes the geometry of the layer."""
        self._geometry = geometry
        self._generator = torch.Generator("cpu").manual_seed(0)
        with exactly(_CPU):
            self._begin()

    @property
    def inputs(self) -> int:
        """Length of a patch."""
        return self._geometry.inputs

    def add(self, inputs: Tensor, share: Share | None = None) -> None:
        """Adds the patches of the input of one call of the layer.

        Args:
            inputs: of the layer.
            share: what part of them to take, whole images drawn at random; None: all.

        Raises:
            ValueError: a value is NaN or infinite, or the values are too large to be summed up.
            RuntimeError: the shape does not fit the layer.
        """
        device = inputs.device
        if device.type != "cuda":  # others need not know float64
            device = _CPU
        with exactly(device):
            maps = self._geometry.maps(inputs.detach().to(device))
            count = self._geometry.count(maps)
            if count == 0:
                return
            if share is not None:
                maps = self._drawn(maps, share(count))
            total = self._sum(maps)
            if self._count == 0 and device != self._device:
                self._begin(device)
            self._total += total.to(self._device)
            self._products.add(maps.to(self._device))
            self._count += count
            self._drawn_count += self._geometry.count(maps)

    def take(self, reduce: Reduce | None = None) -> LayerMoments | None:
        """Returns the moments so far, on the CPU, and starts again; None without patches.

        Args:
            reduce: makes each sum that of all processes.

        Raises:
            ValueError: a product of values was too large for their type.
        """
        with exactly(self._device):
            moment, total = self._products.take(), self._total
            counts = torch.tensor([self._count, self._drawn_count], device="cpu").double()
            self._begin()
            if reduce is not None:
                moment, total, counts = reduce(moment), reduce(total), reduce(counts)
            count, drawn = map(int, counts.tolist())
            if count == 0:
                return None
            moment /= drawn
            if not moment.diagonal(dim1=1, dim2=2).isfinite().all():
                raise NonFiniteError("values whose squares are too large for their type")
            return LayerMoments(moment.cpu(), (total / drawn).cpu(), count, self._geometry)

    def _begin(self, device: torch.device = _CPU) -> None:
        shape = self._geometry.groups, self._geometry.inputs
        self._device = device
        self._count = self._drawn_count = 0
        self._total = torch.zeros(shape, dtype=torch.float64, device=device)
        self._products = products(self._geometry, device)

    def _drawn(self, maps: Tensor, share: float) -> Tensor:
        """Some of the maps, which all are finite."""
        images = len(maps)
        count = math.ceil(share * images)
        if count >= images:
            return maps
        if not maps.sum(dtype=torch.float64).isfinite():
            raise NonFiniteError(_what_is_not_finite(maps))
        order = torch.randperm(images, generator=self._generator, device="cpu")
        return maps[order[:count].sort().values.to(maps.device)]

    def _sum(self, maps: Tensor) -> Tensor:
        """Sum of all patches, (groups, n) float64: the patches of the sum of all images."""
        total = maps.sum(0, keepdim=True, dtype=torch.float64)
        if not total.isfinite().all():
            raise NonFiniteError(_what_is_not_finite(maps))
        if not self._geometry.is_transposed:
            return _summed(self._geometry, total)
        taps = math.prod(self._geometry.kernel_size)
        found = total.new_zeros(self._geometry.groups, self._geometry.inputs // taps, taps)
        for phase in self._geometry.phases():
            part = _summed(phase.geometry, total)
            found[:, :, phase.taps] += part.unflatten(1, (-1, len(phase.taps)))
        return found.flatten(1)


def _summed(geometry: PatchGeometry, maps: Tensor) -> Tensor:
    """Sum of the maps' patches, (groups, n)."""
    parts = [part.sum(-1) for part in geometry.patches(maps)]
    if not parts:
        return maps.new_zeros(geometry.groups, geometry.inputs)
    return torch.stack(parts).sum(0)


class NonFiniteError(ValueError):
    """Inputs, or sums of their products, are not finite; ``found`` says what there is instead."""

    def __init__(self, found: str) -> None:
        super().__init__(f"moments: inputs must be finite (got {found})")
        self.found = found


def _what_is_not_finite(values: Tensor) -> str:
    counts = {"NaN": int(values.isnan().sum()), "Inf": int(values.isinf().sum())}
    found = [f"{name} {count} times" for name, count in counts.items() if count]
    return " and ".join(found) or "values too large to be summed up"


@contextlib.contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """Turns off gradients, autocast and inference mode, and computes in full float32.

    Convolutions' products too.
    """
    with (
        full_float32,
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device.type, enabled=False),
    ):
        yield
