"""Sums of products of input patches, ``sum of x y^T``, in two ways that give the same.

`PatchProducts` forms the patches, part by part, and multiplies them: any geometry. A product with
itself is computed on and above the diagonal only.

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

from sketchlayers.compress._patches import PART_BYTES, PART_POSITIONS, Padding, PatchGeometry
from sketchlayers.compress._threads import Task, in_parallel

_PRODUCT_BYTES = 8 << 20  # of products that wait to be summed, in each thread
_CHANNELS = 16  # whose blocks are put together at once, so that they stay in the cache
_FEWEST_CHANNELS = 8  # with fewer, products of whole patches are faster

Pair = tuple[int, int]


class Products(Protocol):
    """Sums of products of patches, over all pairs of some inputs that are asked for."""

    def add(self, maps: Sequence[Tensor]) -> None:
        """Adds the patches of these maps, (images, channels, rows, columns), alike in shape."""

    def take(self) -> list[Tensor]:
        """The sums, (groups, n, n) float64 for each pair; begins anew."""


def products(
    geometry: PatchGeometry, pairs: Sequence[Pair], device: torch.device
) -> PatchProducts | ShiftProducts:
    """The faster of the two ways on this device.

    Args:
        geometry: of the layer.
        pairs: which products to sum: (i, j) is that of the patches of map i with those of map j.
        device: where the sums are kept.
    """
    if suits_shifts(geometry) and device.type == "cpu":
        return ShiftProducts(geometry, pairs, device)
    return PatchProducts(geometry, pairs, device)


def suits_shifts(geometry: PatchGeometry) -> bool:
    """Whether shifts of the map are faster than patches, on a CPU."""
    return (
        geometry.stride == (1, 1)
        and geometry.groups == 1
        and math.prod(geometry.kernel_size) > 1
        and geometry.channels >= _FEWEST_CHANNELS
    )


def working_bytes(geometry: PatchGeometry) -> int:
    """Memory that the sum of products of one pair takes at most, until it has been taken."""
    size = 8 * geometry.groups * geometry.inputs**2
    if not suits_shifts(geometry):
        return size
    (rows, columns), dilation = geometry.kernel_size, max(geometry.dilation)
    reach = 4 * (rows + columns) * dilation + sum(geometry.padding)  # no larger map has more
    return size + 8 * geometry.channels**2 * len(_rectangles(geometry, reach, reach, half=True))


class PatchProducts:
    """Forms the patches and multiplies them."""

    def __init__(
        self, geometry: PatchGeometry, pairs: Sequence[Pair], device: torch.device
    ) -> None:
        self._geometry = geometry
        self._pairs = tuple(pairs)
        self._device = device
        self._sums: list[Tensor] = []

    def add(self, maps: Sequence[Tensor]) -> None:
        """Adds the patches of these maps, (images, channels, rows, columns), alike in shape."""
        sums = self._started()
        for parts in zip(*map(self._geometry.patches, maps), strict=True):
            tasks = [
                partial(_add_rows, total, parts[i], parts[j], rows, upper=i == j)
                for total, (i, j) in zip(sums, self._pairs, strict=True)
                for rows in _blocks_of_rows(self._geometry.inputs)
            ]
            _run(tasks, self._device)

    def take(self) -> list[Tensor]:
        """The sums, (groups, n, n) float64 for each pair; begins anew."""
        sums, self._sums = self._started(), []
        tasks = [
            partial(_mirror, total, rows)
            for total, (i, j) in zip(sums, self._pairs, strict=True)
            for rows in _blocks_of_rows(self._geometry.inputs)
            if i == j
        ]
        _run(tasks, self._device)
        return sums

    def _started(self) -> list[Tensor]:
        n = self._geometry.inputs
        if not self._sums:
            shape = (self._geometry.groups, n, n)
            self._sums = [_zeros(shape, self._device) for _ in self._pairs]
        return self._sums


def _blocks_of_rows(size: int, largest: int = 128) -> list[slice]:
    """Parts of a symmetric product: small enough to save what is left of them, not too small."""
    block = min(largest, max(16, math.ceil(size / 8)))
    return [slice(start, min(start + block, size)) for start in range(0, size, block)]


def _add_rows(total: Tensor, left: Tensor, right: Tensor, rows: slice, *, upper: bool) -> None:
    """Adds some rows of ``left @ right^T``; with ``upper`` without what is left of the diagonal."""
    columns = slice(rows.start if upper else 0, None)
    total[:, rows, columns] += left[:, rows] @ right[:, columns].mT


def _mirror(total: Tensor, rows: slice) -> None:
    """Copies what is above the diagonal in some rows below it."""
    block = total[:, rows, rows]
    block.copy_(block.triu() + block.triu(1).mT)
    total[:, rows.stop :, rows] = total[:, rows, rows.stop :].mT


class Interval(NamedTuple):
    """Neighbouring rows (or columns) of a map, and the taps for which they count."""

    start: int
    stop: int
    taps: tuple[int, ...]


class Rectangle(NamedTuple):
    """Pixels of a map that are multiplied by those ``shift`` taps away.

    The taps are those of the first pixel; the second one's are ``shift`` further.
    """

    shift: tuple[int, int]
    rows: Interval
    columns: Interval


class ShiftProducts:
    """Correlates shifted feature maps; stride 1 and no groups."""

    def __init__(
        self, geometry: PatchGeometry, pairs: Sequence[Pair], device: torch.device
    ) -> None:
        self._geometry = geometry
        self._pairs = tuple(pairs)
        self._device = device
        self._rectangles: list[list[Rectangle]] = []  # for each pair
        self._products: list[Tensor] = []  # for each pair (rectangles, channels, channels)
        self._sums: list[Tensor] = []

    def add(self, maps: Sequence[Tensor]) -> None:
        """Adds the patches of these maps, (images, channels, rows, columns), alike in shape."""
        if self._geometry.padding_mode != "zeros":  # then padding is something to multiply
            maps = [self._geometry.pad(x) for x in maps]
        images, channels, rows, columns = maps[0].shape
        self._lay_out(rows, columns)
        bytes_of_image = channels * rows * columns * maps[0].element_size()
        most = max(1, PART_BYTES // max(1, bytes_of_image))
        for start in range(0, images, most):
            grids = [_images_inside(x[start : start + most]) for x in maps]
            tasks = [
                partial(_correlate, total, grids[i], grids[j], rectangle, self._geometry.dilation)
                for (i, j), rectangles, sums in zip(
                    self._pairs, self._rectangles, self._products, strict=True
                )
                for rectangle, total in zip(rectangles, sums, strict=True)
            ]
            _run(tasks, self._device)

    def take(self) -> list[Tensor]:
        """The sums, (1, n, n) float64 for each pair; begins anew."""
        self._put_together()
        n = self._geometry.inputs
        sums = self._sums or [_zeros((n, n), self._device) for _ in self._pairs]
        self._sums = []
        return [total.view(1, n, n) for total in sums]

    def _lay_out(self, rows: int, columns: int) -> None:
        """Gets ready for maps of this size; sums of sizes with the same rectangles go together."""
        geometry = _without_padding(self._geometry)
        layout = [_rectangles(geometry, rows, columns, half=i == j) for i, j in self._pairs]
        if not _same_blocks(layout, self._rectangles):
            self._put_together()
            channels = geometry.channels
            self._products = [
                _zeros((len(rectangles), channels, channels), self._device) for rectangles in layout
            ]
        self._rectangles = layout

    def _put_together(self) -> None:
        """Adds the rectangles' products to the sums of patches."""
        if not self._products:
            return
        n = self._geometry.inputs
        self._sums = self._sums or [_zeros((n, n), self._device) for _ in self._pairs]
        for total, (i, j), rectangles in zip(
            self._sums, self._pairs, self._rectangles, strict=True
        ):
            products = self._products.pop(0)
            kernel = self._geometry.kernel_size
            tasks = [
                partial(_add_blocks, total, products, rectangles, kernel, some, mirrored=i == j)
                for some in _blocks_of_rows(self._geometry.channels, _CHANNELS)
            ]
            _run(tasks, self._device)
        self._rectangles = []


def _without_padding(geometry: PatchGeometry) -> PatchGeometry:
    """The geometry on maps that have been padded already, unless they are padded with zeros."""
    if geometry.padding_mode == "zeros":
        return geometry
    return dataclasses.replace(geometry, padding=Padding(0, 0, 0, 0))


def _images_inside(maps: Tensor) -> Tensor:
    """A copy with the order (rows, columns, images, channels).

    Neighbours in a row of pixels are then one matrix with contiguous rows, at any shift.
    """
    images, channels, rows, columns = maps.shape
    if maps.is_contiguous():  # as a transposed matrix this is much faster than as a permutation
        pixels = maps.view(images * channels, rows * columns).t().contiguous()
        return pixels.view(rows, columns, images, channels)
    return maps.permute(2, 3, 0, 1).contiguous()


def _correlate(
    total: Tensor, first: Tensor, second: Tensor, rectangle: Rectangle, dilation: tuple[int, int]
) -> None:
    """Adds the sum of ``x y^T`` over a rectangle's pixels x of one map and y of another."""
    (top, bottom, _), (start, stop, _) = rectangle.rows, rectangle.columns
    down, right = (shift * step for shift, step in zip(rectangle.shift, dilation, strict=True))
    x = first[top:bottom, start:stop].flatten(1, 2)
    y = second[top + down : bottom + down, start + right : stop + right].flatten(1, 2)
    # One product for each row of pixels, several in one call.
    band = max(1, _PRODUCT_BYTES // (x.element_size() * total.numel()))
    for row, place in product(range(0, x.shape[0], band), range(0, x.shape[1], PART_POSITIONS)):
        part = (slice(row, row + band), slice(place, place + PART_POSITIONS))
        total += torch.bmm(x[part].mT, y[part]).sum(0, dtype=torch.float64)


def _rectangles(geometry: PatchGeometry, rows: int, columns: int, *, half: bool) -> list[Rectangle]:
    """The rectangles of all shifts that are not empty; with ``half`` one of each two opposite ones.

    The shift 0 and those that look down or, in the same row, to the right are the half.
    """
    (height, width), (down, right) = geometry.kernel_size, geometry.dilation
    out_rows, out_columns = geometry.output_size(rows, columns)
    top, _, left, _ = geometry.padding
    found = []
    for shift in product(range(1 - height, height), range(1 - width, width)):
        if half and shift < (0, 0):
            continue
        for row in _intervals(rows, out_rows, height, top, down, shift[0]):
            for column in _intervals(columns, out_columns, width, left, right, shift[1]):
                found.append(Rectangle(shift, row, column))
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


def _same_blocks(a: list[list[Rectangle]], b: list[list[Rectangle]]) -> bool:
    """Whether the rectangles belong to the same blocks, one by one, whatever their sizes."""

    def blocks(layout: list[list[Rectangle]]) -> list[list[object]]:
        return [[(r.shift, r.rows.taps, r.columns.taps) for r in pair] for pair in layout]

    return blocks(a) == blocks(b)


def _add_blocks(
    total: Tensor,
    products: Tensor,
    rectangles: Sequence[Rectangle],
    kernel_size: tuple[int, int],
    some: slice,
    *,
    mirrored: bool,
) -> None:
    """Adds each rectangle's product to all its blocks (tap, tap), for some channels' rows.

    Args:
        total: (n, n), changed.
        products: (rectangles, channels, channels), of one shift of two opposite ones if mirrored.
        rectangles: their shifts and taps.
        kernel_size: (rows, columns).
        some: which channels.
        mirrored: whether the sum is symmetric, so that products count for opposite blocks too.
    """
    channels, taps = products.shape[1], math.prod(kernel_size)
    blocks = products.new_zeros(taps, taps, some.stop - some.start, channels)
    for rectangle, sum_ in zip(rectangles, products, strict=True):
        above, below = sum_[some], sum_[:, some].t()
        if mirrored and rectangle.shift == (0, 0):
            above = (above + below) / 2  # equal but for rounding
        for first, second in _blocks(rectangle, kernel_size[1]):
            blocks[first, second] += above
            if mirrored and first != second:
                blocks[second, first] += below
    total.view(channels, taps, channels, taps)[some] += blocks.permute(2, 0, 3, 1)


def _blocks(rectangle: Rectangle, width: int) -> Iterator[tuple[int, int]]:
    """Pairs of taps, numbered row by row, that the rectangle's product belongs to."""
    down, right = rectangle.shift
    for row, column in product(rectangle.rows.taps, rectangle.columns.taps):
        yield row * width + column, (row + down) * width + column + right


def _run(tasks: Sequence[Task], device: torch.device) -> None:
    """Runs them in the threads of a CPU; other devices have their own ways."""
    if device.type == "cpu":
        in_parallel(tasks)
    else:
        for task in tasks:
            task()


def _zeros(shape: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.zeros(shape, dtype=torch.float64, device=device)
