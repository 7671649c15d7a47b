"""A sketched layer in standard operations alone, as ``torch.onnx.export`` traces it.

Signs follow from the seed. They are made outside of the trace, which takes them for constants of
one byte each, which a ``Cast`` brings to the type of the factors. The factors stay what the file
holds of a layer; a dense weight that is formed of them is formed by the runtime, once, when it
folds constants.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sketchlayers.nn._export import scaled
from sketchlayers.ops import Mixing


class Sketch(NamedTuple):
    """The tensors and sizes of equation 1; see `sketchlayers.ops`.

    Attributes:
        s1: ``(groups * l * k, d2 / groups, h, w)`` or ``(l * k, d2)``.
        s2: ``(d1, l * k, h, w)`` or ``(d1, l * k)``.
        u1: signs ``(groups, blocks * l * k, d1 / groups)``, one byte each.
        u2: signs ``(groups, blocks * l * k * taps, columns)``, one byte each.
        frame: signs ``(groups, d1 / groups, n)``, one byte each, or None.
        rank: ``k``.
        rows: ``l k``.
        blocks: equal parts of inputs and outputs that have signs of their own.
        mixing: what ``u2`` mixes.
        scale: ``c``.
    """

    s1: Tensor
    s2: Tensor
    u1: Tensor
    u2: Tensor
    frame: Tensor | None
    rank: int
    rows: int
    blocks: int
    mixing: Mixing
    scale: float

    def output_signs(self, dtype: torch.dtype) -> Tensor:
        """``c A`` transposed: ``(groups, blocks * l * k, d1 / groups)``."""
        return scaled(self.u1.to(dtype), self.scale / math.sqrt(self.rank))

    def input_signs(self, dtype: torch.dtype) -> Tensor:
        """``B``: ``(groups, blocks * l * k * taps, columns)``; its ``c`` is the callers' to add."""
        taps = self.u2.shape[1] // self.u1.shape[1]
        return self.u2.to(dtype) / math.sqrt(self.rank * taps)


def weight(sketch: Sketch) -> Tensor:
    """``W_hat`` in the shape of the dense weight."""
    dtype = torch.promote_types(sketch.s1.dtype, torch.float32)
    s1, s2, kernel = sketch.s1.to(dtype), sketch.s2.to(dtype), sketch.s1.shape[2:]
    groups, outputs = sketch.u1.shape[0], sketch.u1.shape[2]
    rows, blocks, positions = sketch.rows, sketch.blocks, math.prod(kernel)
    inputs = s1.shape[1]
    a = sketch.output_signs(dtype).unflatten(1, (blocks, rows))
    by_inputs = s1.reshape(groups, rows, blocks, -1).transpose(1, 2)
    first = (a.transpose(-1, -2) @ by_inputs).transpose(1, 2).reshape(groups, outputs, -1)
    b = sketch.input_signs(dtype).unflatten(1, (blocks, -1))
    by_outputs = scaled(s2.reshape(groups, blocks, -1, rows * positions), sketch.scale)
    if sketch.mixing == "spatial":
        second = by_outputs @ b
    else:
        by_position = by_outputs.unflatten(-1, (rows, positions)).transpose(-1, -2)
        second = (by_position @ b.unsqueeze(2)).transpose(-1, -2)
    total = first + second.reshape(first.shape)
    if sketch.frame is not None:
        total = total * sketch.frame.to(dtype)
    return total.reshape(-1, inputs, *kernel).to(sketch.s1.dtype)


def conv2d(
    sketch: Sketch,
    input: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """The layer by its factors, ``y = c A (S1 * x) + c S2 * (B x)``; B mixes channels alone.

    Args:
        sketch: with channel mixing, or a kernel of one position; without a frame.
        input: ``(N, d2, H, W)``.
        bias: ``(d1,)`` or None.
        stride: as in ``nn.Conv2d``.
        padding: as in ``nn.Conv2d``.
        dilation: as in ``nn.Conv2d``.
        groups: as in ``nn.Conv2d``.
    """
    blocks, dtype = sketch.blocks, sketch.s1.dtype
    a = sketch.output_signs(dtype).transpose(1, 2).flatten(0, 1)[..., None, None]
    b = sketch.input_signs(dtype).flatten(0, 1)[..., None, None]
    s1 = sketch.s1
    if blocks > 1:
        by_inputs = s1.unflatten(0, (groups, -1)).unflatten(2, (blocks, -1))
        s1 = by_inputs.transpose(1, 2).flatten(0, 2)
    filtered = F.conv2d(input, s1, None, stride, padding, dilation, groups * blocks)
    first = F.conv2d(filtered, a, bias, groups=groups)
    mixed = F.conv2d(input, b, groups=groups)
    s2 = scaled(sketch.s2, sketch.scale)
    return first + F.conv2d(mixed, s2, None, stride, padding, dilation, groups * blocks)


def linear(sketch: Sketch, input: Tensor, bias: Tensor | None) -> Tensor:
    """The layer by its factors, for an input ``(*, d2)``; without a frame."""
    blocks, dtype = sketch.blocks, sketch.s1.dtype
    a, b = sketch.output_signs(dtype)[0], sketch.input_signs(dtype)[0]
    s2 = scaled(sketch.s2, sketch.scale)
    if blocks == 1:
        inner = F.linear(input, torch.cat([sketch.s1, b]))
        return F.linear(inner, torch.cat([a.t(), s2], 1), bias)
    by_inputs = sketch.s1.unflatten(1, (blocks, -1)).permute(1, 2, 0)
    by_outputs = s2.unflatten(0, (blocks, -1)).transpose(1, 2)
    filtered = input.unflatten(-1, (blocks, 1, -1)) @ by_inputs
    mixed = F.linear(input, b).unflatten(-1, (blocks, 1, -1))
    return F.linear(filtered.flatten(-3), a.t(), bias) + (mixed @ by_outputs).flatten(-3)
