"""Sums of products of input patches, ``sum of x x^T``, in two ways that give the same.

`PatchProducts` forms the patches, part by part, and multiplies them: any geometry. What is on and
above the diagonal is computed only.

`ShiftProducts` never forms patches. Where the stride is 1, the value at (channel, tap) of a patch
is the feature map's at a place that moves with the tap, so that the block of two taps is a
correlation of the map with itself, shifted by the difference of the taps: for a 3x3 kernel there
are 25 shifts instead of 81 blocks, and 13 by symmetry. Blocks of one shift differ at the borders
only, where one tap or the other leaves the map. The map's pixels are therefore parted, for each
shift, into rectangles that belong to the same blocks as a whole; every block is a sum over
rectangles, with nothing to subtract and thus no cancellation. A map of H x W pixels, kernel 3x3 and
padding 1 has 29 rectangles, the 13 shifts' pixels in all.

Measured, milliseconds for one batch through a 3x3 layer with padding 1 (one thread of an AMD EPYC,
float32, PyTorch 2.15): products of patches, the same without what symmetry saves, and shifts:

    channels @ map, images    3 @ 32, 256   8 @ 32   16 @ 32   32 @ 16   64 @ 8
    patches, all                       13       40       140       129      129
    patches                            12       36       127       106       88
    shifts                             11       33        38        27       19

    channels @ map, images    64 @ 56, 32   128 @ 28   256 @ 14   512 @ 7   512 @ 14
    patches, all                      728        724        715       790       3103
    patches                           497        443        412       425       1684
    shifts                            154        131        120       126        479

Shifts win wherever there are channels enough to fill a matrix product: see `suits_shifts`.

Maps of volumes have boxes in place of rectangles. `PhaseProducts` parts a transposed convolution
into ordinary ones of stride 1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise, product
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sketchlayers._runtime.threads import Task, in_parallel
from sketchlayers.compression.calibration.patches import (
    PART_BYTES,
    PART_POSITIONS,
    PatchGeometry,
    Phase,
)

_PRODUCT_BYTES = 8 << 20  # of products that wait to be summed, in each thread
_CHANNELS = 16  # whose blocks are put together at once, so that they stay in the cache
_FEWEST_CHANNELS = 8  # with fewer, products of whole patches are faster


class Products(Protocol):
    """Sums of products of patches."""

    def add(self, maps: Tensor) -> None:
        """Adds the patches of maps, (images, channels, rows, columns)."""

    def take(self) -> Tensor:
        """Returns the sum, (groups, n, n) float64, and starts again from zero."""


def products(geometry: PatchGeometry, device: torch.device) -> Products:
    """Returns the fastest way for this layer on this device, where the sum is kept."""
    if geometry.is_transposed:
        return PhaseProducts(geometry, device)
    if suits_shifts(geometry) and device.type == "cpu":
        return ShiftProducts(geometry, device)
    return PatchProducts(geometry, device)


def suits_shifts(geometry: PatchGeometry) -> bool:
    """Tells whether shifts of the map are faster than patches, on a CPU."""
    return (
        set(geometry.stride) == {1}
        and geometry.groups == 1
        and math.prod(geometry.kernel_size) > 1
        and geometry.channels >= _FEWEST_CHANNELS
    )


def working_bytes(geometry: PatchGeometry) -> int:
    """Returns the memory that the sum of products takes at most, until it has been taken."""
    size = 8 * geometry.groups * geometry.inputs**2
    if geometry.is_transposed:
        return size + sum(working_bytes(phase.geometry) for phase in geometry.phases())
    if not suits_shifts(geometry):
        return size
    # No larger map has more.
    reach = 4 * sum(geometry.kernel_size) * max(geometry.dilation) + sum(map(abs, geometry.padding))
    boxes = _boxes(geometry, [reach] * len(geometry.kernel_size))
    return size + 8 * geometry.channels**2 * len(boxes)


class PatchProducts:
    """Forms the patches and multiplies them."""

    def __init__(self, geometry: PatchGeometry, device: torch.device) -> None:
        self._geometry = geometry
        self._device = device
        self._sum: Tensor | None = None

    def add(self, maps: Tensor) -> None:
        """Adds the patches of maps, (images, channels, rows, columns)."""
        total = self._sum = self._started()
        for part in self._geometry.patches(maps):
            rows_of_blocks = _blocks_of_rows(self._geometry.inputs)
            _run([partial(_add_rows, total, part, rows) for rows in rows_of_blocks], self._device)

    def take(self) -> Tensor:
        """Returns the sum, (groups, n, n) float64, and starts again from zero."""
        total, self._sum = self._started(), None
        blocks = _blocks_of_rows(self._geometry.inputs)
        _run([partial(_mirror, total, rows) for rows in blocks], self._device)
        return total

    def _started(self) -> Tensor:
        n = self._geometry.inputs
        return (
            _zeros((self._geometry.groups, n, n), self._device) if self._sum is None else self._sum
        )


def _blocks_of_rows(size: int, largest: int = 128) -> list[slice]:
    """Parts of a symmetric product: small enough to save what is left of them, not too small."""
    block = min(largest, max(16, math.ceil(size / 8)))
    return [slice(start, min(start + block, size)) for start in range(0, size, block)]


def _add_rows(total: Tensor, patches: Tensor, rows: slice) -> None:
    """Adds some rows of ``patches @ patches^T``, without what is left of the diagonal."""
    total[:, rows, rows.start :] += patches[:, rows] @ patches[:, rows.start :].mT


def _mirror(total: Tensor, rows: slice) -> None:
    """Copies what is above the diagonal in some rows below it."""
    block = total[:, rows, rows]
    block.copy_(block.triu() + block.triu(1).mT)
    total[:, rows.stop :, rows] = total[:, rows, rows.stop :].mT


class PhaseProducts:
    """Takes the ordinary convolutions that a transposed one consists of, one by one."""

    def __init__(self, geometry: PatchGeometry, device: torch.device) -> None:
        self._geometry = geometry
        self._device = device
        self._parts: list[tuple[Phase, Products]] = [
            (phase, products(phase.geometry, device)) for phase in geometry.phases()
        ]

    def add(self, maps: Tensor) -> None:
        """Adds the patches of maps, (images, channels, rows, columns)."""
        for _, part in self._parts:
            part.add(maps)

    def take(self) -> Tensor:
        """Returns the sum, (groups, n, n) float64, and starts again from zero."""
        geometry = self._geometry
        taps = math.prod(geometry.kernel_size)
        channels = geometry.channels // geometry.groups
        total = _zeros((geometry.groups, channels, taps, channels, taps), self._device)
        for phase, part in self._parts:
            count = len(phase.taps)
            own = torch.tensor(phase.taps, device=self._device)
            blocks = part.take().reshape(-1, channels, count, channels, count)
            total[:, :, own[:, None], :, own] += blocks.permute(2, 4, 0, 1, 3)
        return total.reshape(-1, channels * taps, channels * taps)


class Interval(NamedTuple):
    """Neighbouring rows (or columns) of a map, and the taps for which they count."""

    start: int
    stop: int
    taps: tuple[int, ...]


class Box(NamedTuple):
    """Pixels of a map that are multiplied by those ``shift`` taps away, a rectangle in 2-D.

    The taps are those of the first pixel; the second one's are ``shift`` further. There is a number
    and an interval for each axis.
    """

    shift: tuple[int, ...]
    sides: tuple[Interval, ...]


class ShiftProducts:
    """Correlates shifted feature maps; stride 1 and no groups."""

    def __init__(self, geometry: PatchGeometry, device: torch.device) -> None:
        self._geometry = geometry
        self._device = device
        self._boxes: list[Box] = []
        self._products: Tensor | None = None  # (boxes, channels, channels)
        self._sum: Tensor | None = None

    def add(self, maps: Tensor) -> None:
        """Adds the patches of maps, (images, channels, rows, columns)."""
        if self._geometry.padding_mode != "zeros":  # then padding is something to multiply
            maps = self._geometry.pad(maps)
        products = self._laid_out(maps.shape[2:])
        bytes_of_image = maps[:1].nbytes
        most = max(1, PART_BYTES // max(1, bytes_of_image))
        for part in maps.split(most):
            grid = _images_inside(part)
            tasks = [
                partial(_correlate, total, grid, box, self._geometry.dilation)
                for box, total in zip(self._boxes, products, strict=True)
            ]
            _run(tasks, self._device)

    def take(self) -> Tensor:
        """Returns the sum, (1, n, n) float64, and starts again from zero."""
        self._put_together()
        total, self._sum = self._started(), None
        return total[None]

    def _laid_out(self, size: Sequence[int]) -> Tensor:
        """The boxes' products for maps of this size; sizes with the same blocks share them."""
        geometry = _without_padding(self._geometry)
        boxes = _boxes(geometry, size)
        if self._products is None or not _same_blocks(boxes, self._boxes):
            self._put_together()
            shape = len(boxes), geometry.channels, geometry.channels
            self._products = _zeros(shape, self._device)
        self._boxes = boxes
        return self._products

    def _put_together(self) -> None:
        """Adds the boxes' products to the sum of patches."""
        if self._products is None:
            return
        total = self._sum = self._started()
        kernel = self._geometry.kernel_size
        tasks = [
            partial(_add_blocks, total, self._products, self._boxes, kernel, some)
            for some in _blocks_of_rows(self._geometry.channels, _CHANNELS)
        ]
        _run(tasks, self._device)
        self._products = None

    def _started(self) -> Tensor:
        n = self._geometry.inputs
        return _zeros((n, n), self._device) if self._sum is None else self._sum


def _without_padding(geometry: PatchGeometry) -> PatchGeometry:
    """The geometry on maps that have been padded already, unless they are padded with zeros."""
    if geometry.padding_mode == "zeros":
        return geometry
    return dataclasses.replace(geometry, padding=(0,) * len(geometry.padding))


def _images_inside(maps: Tensor) -> Tensor:
    """A copy with the order (rows, columns, images, channels).

    Neighbours in a row of pixels are then one matrix with contiguous rows, at any shift.
    """
    images, channels, *size = maps.shape
    if maps.is_contiguous():  # as a transposed matrix this is much faster than as a permutation
        pixels = maps.view(images * channels, math.prod(size)).t().contiguous()
        return pixels.view(*size, images, channels)
    return maps.movedim((0, 1), (-2, -1)).contiguous()


def _correlate(total: Tensor, grid: Tensor, box: Box, dilation: Sequence[int]) -> None:
    """Adds the sum of ``x y^T`` over a box's pixels x and those y that are a shift away."""
    moves = [shift * step for shift, step in zip(box.shift, dilation, strict=True)]
    *planes, _, _ = [range(start, stop) for start, stop, _ in box.sides]
    window = [slice(start, stop) for start, stop, _ in box.sides[-2:]]
    away = [slice(s.start + by, s.stop + by) for s, by in zip(window, moves[-2:], strict=True)]
    for plane in product(*planes):
        other = tuple(place + by for place, by in zip(plane, moves, strict=False))
        x = grid[plane][*window].flatten(1, 2)
        y = grid[other][*away].flatten(1, 2)
        # One product for each row of pixels, several in one call.
        band = max(1, _PRODUCT_BYTES // (x.element_size() * total.numel()))
        for row, place in product(range(0, x.shape[0], band), range(0, x.shape[1], PART_POSITIONS)):
            part = (slice(row, row + band), slice(place, place + PART_POSITIONS))
            total += torch.bmm(x[part].mT, y[part]).sum(0, dtype=torch.float64)


def _boxes(geometry: PatchGeometry, size: Sequence[int]) -> list[Box]:
    """The boxes of shifts that are not empty, of each two opposite shifts those of one.

    In two dimensions these are the shift 0 and those that look down or, in the same row, to the
    right.
    """
    kernel, none = geometry.kernel_size, (0,) * len(size)
    positions = geometry.output_size(*size)
    found = []
    for shift in product(*(range(1 - taps, taps) for taps in kernel)):
        if shift < none:
            continue
        sides = [
            _intervals(*axis)
            for axis in zip(
                size,
                positions,
                kernel,
                geometry.padding[::2],
                geometry.dilation,
                shift,
                strict=True,
            )
        ]
        found += [Box(shift, one) for one in product(*sides)]
    return found


def _intervals(
    size: int, positions: int, taps: int, padding: int, dilation: int, shift: int
) -> list[Interval]:
    """Parts an axis of a map, so that all pixels of a part count for the same taps.

    Pixel u is under tap a at the output position ``u + padding - a * dilation``. It counts if there
    is such a position and if the pixel ``shift`` taps further, which is under tap ``a + shift``
    then, lies on the map too.
    """
    ranges = {}
    for tap in range(max(0, -shift), min(taps, taps - shift)):
        first = tap * dilation - padding
        start = max(0, first, -shift * dilation)
        stop = min(size, first + positions, size - shift * dilation)
        if start < stop:
            ranges[tap] = range(start, stop)
    ends = sorted({end for r in ranges.values() for end in (r.start, r.stop)})
    parts = (
        Interval(start, stop, tuple(tap for tap, r in ranges.items() if start in r))
        for start, stop in pairwise(ends)
    )
    return [part for part in parts if part.taps]


def _same_blocks(a: list[Box], b: list[Box]) -> bool:
    """Whether the boxes belong to the same blocks, one by one, whatever their sizes."""

    def blocks(boxes: list[Box]) -> list[object]:
        return [(box.shift, [side.taps for side in box.sides]) for box in boxes]

    return blocks(a) == blocks(b)


def _add_blocks(
    total: Tensor,
    products: Tensor,
    boxes: Sequence[Box],
    kernel_size: Sequence[int],
    some: slice,
) -> None:
    """Adds each box's product to all its blocks (tap, tap), for some channels' rows.

    Args:
        total: (n, n), changed.
        products: (boxes, channels, channels), of one shift of two opposite ones: they count for
            the opposite blocks too.
        boxes: their shifts and taps.
        kernel_size: (rows, columns).
        some: which channels.
    """
    channels, taps = products.shape[1], math.prod(kernel_size)
    blocks = products.new_zeros(taps, taps, some.stop - some.start, channels)
    for box, sum_ in zip(boxes, products, strict=True):
        above, below = sum_[some], sum_[:, some].t()
        if not any(box.shift):
            above = (above + below) / 2  # equal but for rounding
        for first, second in _blocks(box, kernel_size):
            blocks[first, second] += above
            if first != second:
                blocks[second, first] += below
    total.view(channels, taps, channels, taps)[some] += blocks.permute(2, 0, 3, 1)


def _blocks(box: Box, kernel_size: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs of taps, numbered row by row, that the box's product belongs to."""
    for taps in product(*(side.taps for side in box.sides)):
        first = second = 0
        for tap, by, size in zip(taps, box.shift, kernel_size, strict=True):
            first, second = first * size + tap, second * size + tap + by
        yield first, second


def _run(tasks: Sequence[Task], device: torch.device) -> None:
    """Runs them in the threads of a CPU; other devices have their own ways."""
    if device.type == "cpu":
        in_parallel(tasks)
    else:
        for task in tasks:
            task()


def _zeros(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=device)
