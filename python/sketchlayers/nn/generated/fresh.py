"""FreshNets: filters hashed by frequency (Chen, Wilson, Tyree, Weinberger, Chen, KDD 2016)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from sketchlayers import ops
from sketchlayers.nn._checks import number_above
from sketchlayers.nn._export import exporting
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn._layer import Conv2dLayer, Factory, stands_for_dense
from sketchlayers.nn.generated._hashing import HashedLayer
from sketchlayers.nn.generated._layer import FormedLayer

ALPHA, BETA = 0.25, 2.5
"""Parameters of the distribution of values over frequencies."""


@stands_for_dense
class FreshConv2d(Conv2dLayer, HashedLayer):
    r"""Convolution whose filters have hashed cosine coefficients, in place of ``nn.Conv2d``.

    The filters are::

        V = C_h^T F C_w,    F[o, c, j1, j2] = xi(o, c, j1, j2) values_j[h(o, c, j1, j2)],

    with orthonormal cosine transforms ``C``, and for every frequency ``j = j1 + j2`` a table of
    values of its own: low frequencies, which matter more, have more (`frequency_buckets`). Hashes
    and signs are computed from ``seed`` and never stored. It has ``K`` parameters and the bias,
    instead of ``d1 d2 h w / groups``. For a 1x1 kernel it is `HashedConv2d`. All
    groups share the values, and ``h w`` is at most 256.

    Shapes are those of ``nn.Conv2d``: input ``(N, d2, H, W)`` or ``(d2, H, W)``.

    Args:
        buckets: ``K``, from one for each frequency to the entries of the dense weight.
        alpha: first parameter of the distribution over frequencies.
        beta: its second parameter.

    Attributes:
        frequency_buckets: how many of the values each frequency has, ``h + w - 1`` numbers.
        basis: cosine functions, a row for each frequency pair, ``(h w, h w)``; float64 for a
            float64 layer and float32 for any other. Made each time, never stored.

    Example:
        >>> layer = FreshConv2d(96, 192, 5, padding=2, rate=0.1)
        >>> layer(torch.randn(8, 96, 16, 16)).shape
        torch.Size([8, 192, 16, 16])
    """

    _fixed: ClassVar[tuple[str, ...]] = ("hash_key", "basis")

    basis: Tensor

    def _construct(
        self,
        bias: bool,
        factory: Factory,
        *,
        buckets: int | None = None,
        rate: float | None = None,
        alpha: float = ALPHA,
        beta: float = BETA,
        seed: int | None = None,
    ) -> None:
        owner = type(self).__name__
        geometry = Geometry.of(self)
        alpha = number_above(owner, "alpha", alpha, 0)
        beta = number_above(owner, "beta", beta, 0)
        taps = math.prod(geometry.kernel_size)
        if taps > MOST_TAPS:
            raise ValueError(
                f"{owner}: kernel_size must have at most {MOST_TAPS} positions "
                f"(got kernel_size={geometry.kernel_size})"
            )
        FormedLayer.__init__(self, seed, factory["device"])
        self.alpha, self.beta = alpha, beta
        bounds = bucket_bounds(geometry)
        count = self._number_or_nearest("buckets", buckets, rate, bias, bounds)
        filters = geometry.out_channels * geometry.group_inputs
        height, width = geometry.kernel_size
        self.frequency_buckets = frequency_buckets(
            (height, width), filters, count, alpha=alpha, beta=beta
        )
        self._tables = _tables((height, width), self.frequency_buckets)
        self._finish((count,), bias, factory)

    def _make_seeded(self) -> dict[str, Tensor]:
        height, width = (cosines(length) for length in self.kernel_size)
        dtype = torch.promote_types(self.values.dtype, torch.float32)
        basis = torch.kron(height, width).to(self.seed_bits.device, dtype)
        return super()._make_seeded() | {"basis": basis}

    def _shared(self, values: Tensor) -> Tensor:
        shape, (first, buckets) = self._weight_shape, self._tables
        basis = self.basis
        # Not of the layer's own, which are no tensors in a symbolic trace.
        if type(values) is Tensor and values.dtype != self.values.dtype:
            basis = basis.to(torch.promote_types(values.dtype, torch.float32))
        if exporting():
            hashed = self._hashed(values.to(basis.dtype), first=first, buckets=buckets)
            return (hashed.reshape(-1, len(first)) @ basis).reshape(shape).to(values.dtype)
        return ops.fresh_weight(
            values, self.hash_key, basis, shape[0], self._patch, first=first, buckets=buckets
        ).view(shape)

    def _forming_multiply_adds(self) -> int:
        return math.prod(self._weight_shape) * math.prod(self.kernel_size)


MOST_TAPS = 256
"""Positions of a kernel up to which the operator takes a table for each."""


def cosines(length: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II) ``(length, length)``, float64, by frequencies."""
    place = torch.arange(length, dtype=torch.float64)
    matrix = torch.cos(math.pi / length * (place + 0.5) * place[:, None])
    matrix *= math.sqrt(2 / length)
    matrix[0] /= math.sqrt(2)
    return matrix


def bucket_bounds(geometry: Geometry) -> tuple[int, int]:
    """The fewest values, one for each frequency, and the most that make sense."""
    return sum(geometry.kernel_size) - 1, geometry.weights


def frequency_buckets(
    kernel_size: tuple[int, int],
    filters: int,
    count: int,
    *,
    alpha: float = ALPHA,
    beta: float = BETA,
) -> tuple[int, ...]:
    """How many of ``count`` values the frequencies ``j = j1 + j2`` of a kernel have.

    A frequency with ``N_j`` coefficients has ``r_j N_j``, ``r_j = Z x^(alpha-1) (1-x)^(beta-1)``
    with ``x = (j + 1) / (2 d + 1)`` for a d x d kernel, ``(j + 1) / (h + w + 1)`` for any; a rate
    above 1 is 1, and the others share what is left; no frequency has none. Of the fractions the
    largest are rounded up.

    Args:
        kernel_size: ``(h, w)``.
        filters: ``d1 d2 / groups``.
        count: ``K``, at least ``h + w - 1`` and at most ``filters h w``.
        alpha: as in `FreshConv2d`.
        beta: as in `FreshConv2d`.
    """
    height, width = kernel_size
    diagonals = range(height + width - 1)
    sizes = [filters * sum(0 <= j - row < width for row in range(height)) for j in diagonals]
    shapes = [
        ((j + 1) / (height + width + 1)) ** (alpha - 1)
        * (1 - (j + 1) / (height + width + 1)) ** (beta - 1)
        for j in diagonals
    ]
    fixed: dict[int, float] = {}
    while True:
        free = [j for j in diagonals if j not in fixed]
        total = sum(shapes[j] * sizes[j] for j in free)
        left = count - sum(fixed.values())
        wanted = {j: left * shapes[j] * sizes[j] / total for j in free}
        bounded = {j: min(max(wanted[j], 1.0), float(sizes[j])) for j in free}
        over = {j: bounded[j] for j in free if wanted[j] > sizes[j]}
        under = {j: bounded[j] for j in free if wanted[j] < 1}
        # Those that are capped first: what they leave may lift the others above the least.
        if not over and not under:
            return _rounded(fixed | wanted, count, sizes)
        fixed |= over or under


def _rounded(wanted: dict[int, float], count: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Whole numbers near these, with this sum; the largest fractions are rounded up."""
    order = sorted(wanted)
    numbers = [min(sizes[j], max(1, math.floor(wanted[j] + 1e-9))) for j in order]
    by_fraction = sorted(order, key=lambda j: numbers[j] - wanted[j])
    while sum(numbers) != count:
        step = 1 if sum(numbers) < count else -1
        for j in by_fraction if step > 0 else reversed(by_fraction):
            if sum(numbers) != count and 1 <= numbers[j] + step <= sizes[j]:
                numbers[j] += step
    return tuple(numbers)


def _tables(
    kernel_size: tuple[int, int], buckets: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of each position of the kernel: place of its table's first value, and their number."""
    height, width = kernel_size
    frequencies = [row + column for row in range(height) for column in range(width)]
    starts = [sum(buckets[:j]) for j in range(len(buckets))]
    return tuple(starts[j] for j in frequencies), tuple(buckets[j] for j in frequencies)
