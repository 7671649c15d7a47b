"""The operators as the mathematics states them, in float64 NumPy.

One sketch at a time, one pixel at a time: nothing here is fast, and nothing comes from the package
or from PyTorch's own convolution, so agreement with the operators means that both are right.
Symbols are those of Kasiviswanathan, Narodytska and Jin, "Network Approximation using Tensor
Sketching" (IJCAI 2018), equation (1) and Definitions 2 and 3. Sizes: ``g`` groups, ``lk`` = number
of sketches times rank, ``d1`` outputs, ``d2`` inputs, an ``h x w`` kernel and ``n = d2/g*h*w``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Words = NDArray[np.int32]

FORMAT_VERSION = 1
FRAME_MATRIX = 2**31 + 2**30
COLUMNS_PER_BLOCK = 128

_LOW_32_BITS = np.uint64(0xFFFFFFFF)


def philox_4x32_10(counter: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """The Philox 4x32-10 generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3".

    Args:
        counter: 32-bit values held in 64-bit words, shape (..., 4).
        key: the 64-bit key; its low word comes first.

    Returns:
        Four 32-bit words for each counter, shape (..., 4).
    """
    c0, c1, c2, c3 = np.moveaxis(counter, -1, 0)
    k0, k1 = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    for _ in range(10):
        product0 = np.uint64(0xD2511F53) * c0
        product1 = np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (product1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            product1 & _LOW_32_BITS,
            (product0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            product0 & _LOW_32_BITS,
        )
        k0 = (k0 + 0x9E3779B9) & 0xFFFFFFFF
        k1 = (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1)


def sign_words(seed: int, matrix: int, rows: int, columns: int) -> Words:
    """The packed signs of one matrix, shape (rows, 4*ceil(columns/128)), padding bits included."""
    blocks = -(-columns // COLUMNS_PER_BLOCK)
    counter = np.zeros((rows, blocks, 4), dtype=np.uint64)
    counter[..., 0] = np.arange(blocks)
    counter[..., 1] = np.arange(rows)[:, None]
    counter[..., 2] = matrix
    counter[..., 3] = FORMAT_VERSION
    words = philox_4x32_10(counter, seed).astype(np.uint32)
    return words.reshape(rows, 4 * blocks).view(np.int32)


def unpack(words: Words, columns: int) -> Array:
    """Signs (..., rows, columns): bit b of word j is column 32*j + b, and 1 means -1."""
    bits = (words.view(np.uint32)[..., None] >> np.arange(32, dtype=np.uint32)) & 1
    return 1.0 - 2.0 * bits.reshape(*words.shape[:-1], -1)[..., :columns].astype(np.float64)


@dataclass(frozen=True)
class Signs:
    """The fixed matrices of a layer as +-1 in float64; the leading axis is the group."""

    u1: Array
    u2: Array
    frame: Array | None = None


@dataclass(frozen=True)
class Sketch:
    """What turns (s1, s2) into a dense weight, besides the signs."""

    mixing: str = "spatial"
    num_sketches: int = 1
    scale: float | None = None
    blocks: int = 1

    @property
    def factor(self) -> float:
        """The factor c of W_hat = c (A S1 + S2 B); the paper's 1/(2l) unless another is given."""
        return 1 / (2 * self.num_sketches) if self.scale is None else self.scale


def _right_matrix(u2: Array, rank: int, kernel: tuple[int, int], mixing: str) -> Array:
    """U2_i of one sketch as the matrix (rank*h*w, n) that multiplies S2_i from the right."""
    taps = kernel[0] * kernel[1]
    if mixing == "spatial":
        return u2 / math.sqrt(rank * taps)
    return np.kron(u2 / math.sqrt(rank), np.eye(taps))


def per_sketch(
    signs: Signs, sketch: Sketch, group: int, stacked: int, kernel: tuple[int, int], block: int = 0
) -> list[tuple[slice, Array, Array]]:
    """For each sketch of one group: its rows of the stack, U1_i (k, d1/g) and U2_i (k*h*w, n).

    A block has signs of its own, which come after those of the blocks before it.
    """
    rank = stacked // sketch.num_sketches
    mixed = rank * kernel[0] * kernel[1] if sketch.mixing == "spatial" else rank
    parts = []
    for i in range(sketch.num_sketches):
        at = block * sketch.num_sketches + i
        u1 = signs.u1[group, at * rank : (at + 1) * rank] / math.sqrt(rank)
        u2 = signs.u2[group, at * mixed : (at + 1) * mixed]
        parts.append(
            (
                slice(i * rank, (i + 1) * rank),
                u1,
                _right_matrix(u2, rank, kernel, sketch.mixing),
            )
        )
    return parts


def _block(block: int, blocks: int, size: int) -> slice:
    """One of several equal parts."""
    return slice(block * size // blocks, (block + 1) * size // blocks)


def weight(s1: Array, s2: Array, signs: Signs, sketch: Sketch) -> Array:
    """Equation (1) for every group, with the sign frame where there is one.

    Args:
        s1: (g*lk, d2/g, h, w).
        s2: (d1, lk, h, w).
        signs: u1 (g, b*lk, d1/g), u2 (g, b*lk*h*w, n) or, for channel mixing, (g, b*lk, d2/g), b
            being the number of blocks: the first term of each block of the inputs, and the second
            of each block of the outputs, has signs of its own.
        sketch: mixing, number of sketches, scale and number of blocks.

    Returns:
        W_hat, shape (d1, d2/g, h, w).
    """
    groups = signs.u1.shape[0]
    d1, stacked, *kernel = s2.shape
    outputs = d1 // groups
    result = np.zeros((d1, *s1.shape[1:]))
    for group in range(groups):
        s1_group = s1[group * stacked : (group + 1) * stacked].reshape(stacked, -1)
        s2_group = s2[group * outputs : (group + 1) * outputs]
        total = np.zeros((outputs, s1_group.shape[1]))
        for block in range(sketch.blocks):
            seen = _block(block, sketch.blocks, total.shape[1])
            own = _block(block, sketch.blocks, outputs)
            parts = per_sketch(signs, sketch, group, stacked, (kernel[0], kernel[1]), block)
            for rows, u1, u2 in parts:
                total[:, seen] += u1.T @ s1_group[rows, seen]
                total[own] += s2_group[own, rows].reshape(own.stop - own.start, -1) @ u2
        total *= sketch.factor
        if signs.frame is not None:
            total *= signs.frame[group]
        result[group * outputs : (group + 1) * outputs] = total.reshape(outputs, *s1.shape[1:])
    return result


def weight_adjoint(
    grad: Array, s1_shape: tuple[int, ...], s2_shape: tuple[int, ...], signs: Signs, sketch: Sketch
) -> tuple[Array, Array]:
    """The gradients (dS1, dS2) for G = dLoss/dW_hat: dS1_i = c U1_i G, dS2_i = c G U2_i^T."""
    groups = signs.u1.shape[0]
    d1, stacked, *kernel = s2_shape
    outputs = d1 // groups
    grad_s1, grad_s2 = np.zeros(s1_shape), np.zeros(s2_shape)
    for group in range(groups):
        own = slice(group * outputs, (group + 1) * outputs)
        g = grad[own].reshape(outputs, -1)
        if signs.frame is not None:
            g = g * signs.frame[group]
        g1 = np.zeros((stacked, g.shape[1]))
        g2 = np.zeros((outputs, stacked, *s2_shape[2:]))
        for block in range(sketch.blocks):
            seen = _block(block, sketch.blocks, g.shape[1])
            of = _block(block, sketch.blocks, outputs)
            parts = per_sketch(signs, sketch, group, stacked, (kernel[0], kernel[1]), block)
            for rows, u1, u2 in parts:
                g1[rows, seen] = sketch.factor * u1 @ g[:, seen]
                products = sketch.factor * g[of] @ u2.T
                g2[of, rows] = products.reshape(len(products), -1, *s2_shape[2:])
        grad_s1[group * stacked : (group + 1) * stacked] = g1.reshape(stacked, *s1_shape[1:])
        grad_s2[own] = g2
    return grad_s1, grad_s2


@dataclass(frozen=True)
class Geometry:
    """How a convolution visits its input."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def output_size(self, size: tuple[int, int], kernel: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the output for an input of the given rows and columns."""
        height, width = (
            (s + 2 * p - d * (k - 1) - 1) // step + 1
            for s, k, step, p, d in zip(
                size, kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        return height, width

    def window(self, y: int, x: int, kernel: tuple[int, int]) -> tuple[slice, slice]:
        """The pixels of the padded input that output pixel (y, x) sees."""
        rows, columns = (
            slice(at * step, at * step + d * (k - 1) + 1, d)
            for at, k, step, d in zip((y, x), kernel, self.stride, self.dilation, strict=True)
        )
        return rows, columns


def convolve(x: Array, filters: Array, bias: Array | None, geometry: Geometry) -> Array:
    """Cross-correlation of x (batch, d2, H, W) with filters (d1, d2/g, h, w), pixel by pixel."""
    d1, channels, *kernel = filters.shape
    kernel_size = (kernel[0], kernel[1])
    height, width = geometry.output_size((x.shape[2], x.shape[3]), kernel_size)
    padded = _pad(x, geometry)
    outputs = d1 // geometry.groups
    result = np.zeros((x.shape[0], d1, height, width))
    for y in range(height):
        for column in range(width):
            rows, columns = geometry.window(y, column, kernel_size)
            patch = padded[:, :, rows, columns]
            for group in range(geometry.groups):
                seen = patch[:, group * channels : (group + 1) * channels]
                own = slice(group * outputs, (group + 1) * outputs)
                result[:, own, y, column] = np.einsum("ncij,ocij->no", seen, filters[own])
    if bias is not None:
        result += bias[:, None, None]
    return result


def convolve_adjoint(
    grad: Array, x: Array, filters: Array, geometry: Geometry
) -> tuple[Array, Array, Array]:
    """Gradients of ``convolve`` for its input, its filters and its bias, pixel by pixel."""
    d1, channels, *kernel = filters.shape
    kernel_size = (kernel[0], kernel[1])
    padded = _pad(x, geometry)
    grad_padded, grad_filters = np.zeros_like(padded), np.zeros_like(filters)
    outputs = d1 // geometry.groups
    for y in range(grad.shape[2]):
        for column in range(grad.shape[3]):
            rows, columns = geometry.window(y, column, kernel_size)
            for group in range(geometry.groups):
                seen = slice(group * channels, (group + 1) * channels)
                own = slice(group * outputs, (group + 1) * outputs)
                g = grad[:, own, y, column]
                grad_filters[own] += np.einsum("no,ncij->ocij", g, padded[:, seen, rows, columns])
                grad_padded[:, seen, rows, columns] += np.einsum("no,ocij->ncij", g, filters[own])
    (top, left), (height, width) = geometry.padding, x.shape[2:]
    grad_x = grad_padded[:, :, top : top + height, left : left + width]
    return grad_x, grad_filters, grad.sum(axis=(0, 2, 3))


def _pad(x: Array, geometry: Geometry) -> Array:
    vertical, horizontal = geometry.padding
    return np.pad(x, ((0, 0), (0, 0), (vertical, vertical), (horizontal, horizontal)))
