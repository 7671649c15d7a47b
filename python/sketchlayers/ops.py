"""The operators of ``torch.ops.sketchlayers``, typed and documented.

One sketched weight (Kasiviswanathan, Narodytska, Jin, IJCAI 2018, equation 1), with the ``l``
sketches of rank ``k`` stacked along the rank axis, is::

    W_hat = c frame o (A S1 + S2 B)

with ``A = U1^T / sqrt(k)`` and ``B = U2 / sqrt(k h w)`` (spatial mixing, Definition 3) or
``B = U2 / sqrt(k)`` applied at every kernel position (channel mixing, Definition 2). ``U1``,
``U2`` and ``frame`` are random signs, packed 32 to a word (:func:`sign_matrix`). With
``b`` blocks every block of the inputs has its own ``A`` and every block of the outputs its own
``B``::

    W_hat[block j, block i] = c (A_i[block j] S1[block i] + S2[block j] B_j[block i])

The number of blocks, 1 in the paper, is the number of rows of ``u1`` over ``lk``; blocks have equal
sizes and come in order.

Sizes: ``g`` groups, ``lk = l * k``, ``d1`` output and ``d2`` input channels, kernel ``(h, w)``,
``n = d2/g * h * w``, ``words(c) = 4 * ceil(c / 128)``.

==============  =============================  =========================
argument        convolution                    fully connected
==============  =============================  =========================
``s1``          ``(g*lk, d2/g, h, w)``         ``(lk, d2)``
``s2``          ``(d1, lk, h, w)``             ``(d1, lk)``
``u1``          ``(g, b*lk, words(d1/g))``     ``(1, b*lk, words(d1))``
``u2``          ``(g, b*lk*h*w, words(n))``,   ``(1, b*lk, words(d2))``
                or ``(g, b*lk, words(d2/g))``
                for channel mixing
``frame``       ``(g, d1/g, words(n))``        ``(1, d1, words(d2))``
==============  =============================  =========================

All take float32, float64, bfloat16 and float16, on the CPU and on CUDA devices; half types
accumulate in float32. Wrong shapes, devices, types and sizes raise ``RuntimeError``, ``TypeError``
or ``ValueError`` before any work is done.

Importing this module registers the operators, which is what a program of ``torch.export.load``
needs. Where the package was built without its compiled extension, calling one raises an
``ImportError`` that says what to type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from sketchlayers import _extension
from sketchlayers._extension import flops

Mixing = Literal["spatial", "channel"]
Path = Literal["auto", "factored", "folded"]
ChainPath = Literal["auto", "fused", "plain"]

_operators = _extension.operators()


def _tell_counters() -> None:
    """A ``FlopCounterMode`` that is active learns what the operators cost."""
    if not torch.compiler.is_compiling() and torch._C._len_torch_dispatch_stack():
        flops.register()


def sign_matrix(
    seed: int, matrix: int, rows: int, columns: int, *, device: torch.device | str | None = None
) -> Tensor:
    """Random signs, a pure function of ``(seed, matrix, row, column)`` on every platform.

    Philox 4x32-10 with the seed as key; bit 1 stands for -1. Rows are padded to blocks of 128
    columns, whose further bits are ignored.

    Args:
        seed: 64-bit key; negative numbers stand for their two's complement.
        matrix: Which of the matrices of this seed, in ``[0, 2^32)``.
        rows: Number of rows.
        columns: Number of signs in a row.
        device: Where to make them; PyTorch's default device if not given.

    Returns:
        int32 tensor of shape ``(rows, 4 * ceil(columns / 128))``.

    Raises:
        ValueError: A number is outside its range.
    """
    if device is None:
        device = torch.get_default_device()
    return _operators.sign_matrix(seed, matrix, rows, columns, device=torch.device(device))


def hadamard_signs(
    seed: int, matrix: int, rows: int, columns: int, *, device: torch.device | str | None = None
) -> Tensor:
    """Rows of ``H D``: ``H`` of Walsh and Hadamard, ``D`` random signs on the diagonal.

    ``H`` has the next power of two of rows, as the paper pads it; those taken are chosen at random
    and differ, so that the rows are orthogonal where ``columns`` is a power of two. When there are
    not enough, more come from another diagonal and another order. Over the seeds an entry is +1 and
    -1 equally often and two entries of one row are uncorrelated. As with :func:`sign_matrix`, the
    bits are the same on every platform and never change.

    Args:
        seed: 64-bit key.
        matrix: Which of the matrices of this seed, in ``[0, 2^29)``.
        rows: Number of rows.
        columns: Number of signs in a row, at least 1.
        device: Where to make them; PyTorch's default device if not given.

    Returns:
        int32 tensor ``(rows, 4 * ceil(columns / 128))``, packed as :func:`sign_matrix` packs them;
        bits beyond ``columns`` are arbitrary.

    Raises:
        ValueError: A number is outside its range.
    """
    if device is None:
        device = torch.get_default_device()
    return _operators.hadamard_signs(seed, matrix, rows, columns, device=torch.device(device))


def unpack_signs(
    packed: Tensor,
    columns: int,
    *,
    start: int = 0,
    dtype: torch.dtype = torch.float32,
    scale: float = 1.0,
) -> Tensor:
    """Columns ``[start, start + columns)`` of packed signs as ``+scale`` and ``-scale``.

    Args:
        packed: Packed signs, int32 ``(..., words)``.
        columns: How many columns to unpack.
        start: The first of them.
        dtype: Floating-point type of the result.
        scale: Magnitude of the result.

    Returns:
        Tensor of shape ``(..., columns)``.
    """
    return _operators.unpack_signs(packed, columns, start=start, dtype=dtype, scale=scale)


def sk_weight(
    s1: Tensor,
    s2: Tensor,
    u1: Tensor,
    u2: Tensor,
    *,
    mixing: Mixing = "spatial",
    num_sketches: int = 1,
    scale: float | None = None,
    frame: Tensor | None = None,
) -> Tensor:
    """The dense weight ``W_hat``.

    Args:
        s1, s2: Trained factors.
        u1, u2: Packed signs.
        mixing: What ``u2`` mixes: ``"spatial"`` (channels and kernel positions) or ``"channel"``.
        num_sketches: ``l``; divides the stacked rank ``lk``.
        scale: ``c``; the paper's ``1 / (2 l)`` if not given.
        frame: Packed signs that the sketch is multiplied with, entry by entry.

    Returns:
        Tensor ``(d1, d2/g, h, w)`` or ``(d1, d2)`` in the type of ``s1``, formed in float32 or
        float64 and rounded once; channels_last if ``s1`` is.
    """
    _tell_counters()
    return _operators.sk_weight(
        s1,
        s2,
        u1,
        u2,
        mixing=mixing,
        num_sketches=num_sketches,
        scale=scale,
        frame=frame,
    )


def hashed_weight(
    values: Tensor,
    seed: Tensor,
    rows: int,
    columns: int,
    *,
    first: Sequence[int] = (),
    buckets: Sequence[int] = (),
) -> Tensor:
    """The weight whose entries are values, found by hash, with random signs (HashedNets).

    It is::

        W[i, j] = xi(i, j) values[first[t] + h(i, j)],    t = j mod len(first),

    with ``h`` below ``buckets[t]``. Hash and sign are a pure function of ``(seed, i, j)`` on every
    platform: Philox 4x32-10 with the seed as key and the counter ``(j >> 2, i, 0, 2)``, of whose
    four words the column takes the ``j mod 4``-th; bit 0 means -1, and the other 31 bits times
    ``buckets[t]``, over ``2^31``, are ``h``. Nothing of it is stored. Differentiable; the gradient,
    ``hashed_weight_backward``, is deterministic.

    Args:
        values: ``(K,)``, with ``1 <= K <= 2^31``.
        seed: int64, one number, on the device of the values.
        rows: ``d1``.
        columns: ``n``.
        first: place of the first value of each table; without tables there is one with all.
        buckets: number of values of each table; there are at most 256 tables.

    Returns:
        Tensor ``(rows, columns)`` in the type of the values.
    """
    return _operators.hashed_weight(
        values, seed, rows, columns, first=list(first), buckets=list(buckets)
    )


def fresh_weight(
    values: Tensor,
    seed: Tensor,
    basis: Tensor,
    rows: int,
    columns: int,
    *,
    first: Sequence[int],
    buckets: Sequence[int],
) -> Tensor:
    """The weight of filters whose cosine coefficients are hashed (FreshNets).

    Each filter is a row of `hashed_weight`, with a table for each of its ``len(first)`` positions,
    times ``basis``. It is formed in the type of the basis and rounded once to that of the values,
    under autocast too.

    Args:
        values, seed, rows, columns, first, buckets: As for :func:`hashed_weight`.
        basis: float32 or float64, a row for each frequency and a column for each position of the
            filter.

    Returns:
        Tensor ``(rows, columns)`` in the type of the values.
    """
    return _operators.fresh_weight(
        values, seed, basis, rows, columns, first=list(first), buckets=list(buckets)
    )


def hash_entries(
    seed: Tensor,
    rows: int,
    columns: int,
    num_values: int,
    *,
    first: Sequence[int] = (),
    buckets: Sequence[int] = (),
) -> Tensor:
    """Where :func:`hashed_weight` finds each entry: its place in the values, int64.

    ``~place``, which is negative, where the sign is -1.

    Args:
        seed, rows, columns, first, buckets: As for :func:`hashed_weight`.
        num_values: ``K``.

    Returns:
        int64 tensor ``(rows, columns)``.
    """
    return _operators.hash_entries(
        seed, rows, columns, num_values, first=list(first), buckets=list(buckets)
    )


def sk_linear(
    input: Tensor,
    s1: Tensor,
    s2: Tensor,
    u1: Tensor,
    u2: Tensor,
    bias: Tensor | None = None,
    *,
    num_sketches: int = 1,
    scale: float | None = None,
    frame: Tensor | None = None,
    path: Path = "auto",
) -> Tensor:
    """The SK-FC layer: ``input @ W_hat.T + bias``.

    Args:
        input: Tensor of shape ``(..., d2)``.
        s1, s2, u1, u2, num_sketches, scale, frame: As for :func:`sk_weight`.
        bias: Tensor of shape ``(d1,)``.
        path: ``"folded"`` forms ``W_hat`` first, ``"factored"`` never does, ``"auto"`` takes the
            one that is estimated to be faster.

    Returns:
        Tensor of shape ``(..., d1)``.
    """
    _tell_counters()
    return _operators.sk_linear(
        input,
        s1,
        s2,
        u1,
        u2,
        bias,
        num_sketches=num_sketches,
        scale=scale,
        frame=frame,
        path=path,
    )


def sk_conv2d(
    input: Tensor,
    s1: Tensor,
    s2: Tensor,
    u1: Tensor,
    u2: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    mixing: Mixing = "spatial",
    num_sketches: int = 1,
    scale: float | None = None,
    frame: Tensor | None = None,
    path: Path = "auto",
) -> Tensor:
    """The SK-CONV layer: ``conv2d(input, W_hat, bias, stride, padding, dilation, groups)``.

    Args:
        input: Tensor of shape ``(batch, d2, height, width)``, or without the batch.
        s1, s2, u1, u2, mixing, num_sketches, scale, frame: As for :func:`sk_weight`.
        bias: Tensor of shape ``(d1,)``.
        stride, padding, dilation: One number, or one for each axis, at most 32768.
        groups: Must be the first size of ``u1``.
        path: As for :func:`sk_linear`.

    Returns:
        Tensor of shape ``(batch, d1, height, width)``; channels_last if ``input`` or ``s1`` is,
        whichever the path.
    """
    _tell_counters()
    return _operators.sk_conv2d(
        input,
        s1,
        s2,
        u1,
        u2,
        bias,
        stride,
        padding,
        dilation,
        groups,
        mixing=mixing,
        num_sketches=num_sketches,
        scale=scale,
        frame=frame,
        path=path,
    )


def tucker_conv2d(
    input: Tensor,
    inputs: Tensor | None,
    core: Tensor,
    outputs: Tensor | None,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    path: ChainPath = "auto",
) -> Tensor:
    """A convolution whose weight is a Tucker-2 decomposition (Kim et al., ICLR 2016, 1511.06530).

    ``conv2d(conv2d(conv2d(input, inputs), core, ...), outputs, bias)``, a 1x1 convolution, one with
    the stride, padding and dilation, and another 1x1 one; in one pass over tiles of pixels, without
    the images between them in memory.

    Args:
        input: Tensor of shape ``(batch, d2, height, width)``, or without the batch.
        inputs: Tensor of shape ``(g*RS, d2/g, 1, 1)``; ``None`` is no factor, ``RS = d2/g``.
        core: Tensor of shape ``(g*RT, RS, h, w)``; or ``(g*R, 1, h, w)`` between factors of
            ``R = RS = RT`` features, each of which then has a filter of its own.
        outputs: Tensor of shape ``(d1, RT, 1, 1)``; ``None`` is no factor, ``RT = d1/g``.
        bias: Tensor of shape ``(d1,)``.
        stride, padding, dilation: One number, or one for each axis, at most 32768.
        groups: ``g``.
        path: ``"fused"``, ``"plain"`` for PyTorch's convolutions one after the other, or ``"auto"``
            for the one that is expected to be faster.

    Returns:
        Tensor of shape ``(batch, d1, height, width)``; channels_last if ``input`` or ``core`` is,
        whichever the path.
    """
    _tell_counters()
    return _operators.tucker_conv2d(
        input, inputs, core, outputs, bias, stride, padding, dilation, groups, path=path
    )


def cp_conv2d(
    input: Tensor,
    inputs: Tensor,
    rows: Tensor,
    columns: Tensor,
    outputs: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    path: ChainPath = "auto",
) -> Tensor:
    """A convolution whose weight is a CP decomposition (Lebedev et al., ICLR 2015, 1412.6553).

    A :func:`tucker_conv2d` of the depthwise core ``rows * columns``.

    Args:
        rows: Tensor of shape ``(g*R, 1, h, 1)``.
        columns: Tensor of shape ``(g*R, 1, 1, w)``.
        input, inputs, outputs, bias, stride, padding, dilation, groups, path: As for
            :func:`tucker_conv2d`, with ``R = RS = RT``.

    Returns:
        As :func:`tucker_conv2d`.
    """
    _tell_counters()
    return _operators.cp_conv2d(
        input, inputs, rows, columns, outputs, bias, stride, padding, dilation, groups, path=path
    )


def low_rank_conv2d(
    input: Tensor,
    vertical: Tensor,
    horizontal: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    path: ChainPath = "auto",
) -> Tensor:
    """Convolves with a filter of low rank, as a vertical and a horizontal convolution.

    ``conv2d(conv2d(input, vertical, ...), horizontal, bias, ...)``, each with the stride, padding
    and dilation of its axis (Tai et al., ICLR 2016, equation 2).

    Args:
        input: Tensor of shape ``(batch, d2, height, width)``, or without the batch.
        vertical: Tensor of shape ``(g*R, d2/g, h, 1)``.
        horizontal: Tensor of shape ``(d1, R, 1, w)``.
        bias, stride, padding, dilation, groups: As for :func:`tucker_conv2d`.
        path: ``"fused"`` for this package's kernels, ``"plain"`` for PyTorch's convolutions, or
            ``"auto"`` for those that are expected to be faster.

    Returns:
        Tensor of shape ``(batch, d1, height, width)``; channels_last if ``input`` or ``vertical``
        is, whichever the path.
    """
    _tell_counters()
    return _operators.low_rank_conv2d(
        input, vertical, horizontal, bias, stride, padding, dilation, groups, path=path
    )
