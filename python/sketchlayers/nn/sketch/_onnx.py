"""A sketched layer in standard operations alone, as ``torch.onnx.export`` traces it.

Signs follow from the seed. They are made outside of the trace, which takes them for constants of
one byte each, which a ``Cast`` brings to the type of the factors. The factors stay what the file
holds of a layer; a dense weight that is formed of them is formed by the runtime, once, when it
folds constants.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sketchlayers import ops
from sketchlayers.nn._export import constant, scaled

if TYPE_CHECKING:
    from sketchlayers.nn.sketch._layer import SketchLayer


def _signs(layer: SketchLayer, name: str, columns: int, dtype: torch.dtype) -> Tensor:
    """``(groups, rows, columns)``, made from the seed."""
    return constant(
        lambda: ops.unpack_signs(layer._packed(name), columns).to(torch.int8)  # one byte each
    ).to(dtype)


def _output_signs(layer: SketchLayer, dtype: torch.dtype) -> Tensor:
    """``c A`` transposed: ``(groups, blocks * l * k, d1 / groups)``."""
    signs = _signs(layer, "u1", layer._group_outputs, dtype)
    return scaled(signs, layer.scale / math.sqrt(layer.rank))


def _input_signs(layer: SketchLayer, dtype: torch.dtype) -> Tensor:
    """``B``: ``(groups, blocks * l * k * taps, columns)``; its ``c`` is the callers' to add."""
    taps, columns = layer._mixed
    return _signs(layer, "u2", columns, dtype) / math.sqrt(layer.rank * taps)


def weight(layer: SketchLayer) -> Tensor:
    """``W_hat`` in the shape of the dense weight."""
    dtype = torch.promote_types(layer.s1.dtype, torch.float32)
    s1, s2, kernel = layer.s1.to(dtype), layer.s2.to(dtype), layer.s1.shape[2:]
    inputs, outputs = layer._group_inputs, layer._group_outputs
    groups, blocks = len(s2) // outputs, layer.blocks
    rows, positions = len(s1) // groups, math.prod(kernel)
    a = _output_signs(layer, dtype).unflatten(1, (blocks, rows))
    by_inputs = s1.reshape(groups, rows, blocks, -1).transpose(1, 2)
    first = (a.transpose(-1, -2) @ by_inputs).transpose(1, 2).reshape(groups, outputs, -1)
    b = _input_signs(layer, dtype).unflatten(1, (blocks, -1))
    by_outputs = scaled(s2.reshape(groups, blocks, -1, rows * positions), layer.scale)
    if layer.mixing == "spatial":
        second = by_outputs @ b
    else:
        by_position = by_outputs.unflatten(-1, (rows, positions)).transpose(-1, -2)
        second = (by_position @ b.unsqueeze(2)).transpose(-1, -2)
    total = first + second.reshape(first.shape)
    if layer.frame is not None:
        total = total * _signs(layer, "frame_signs", inputs * positions, dtype)
    return total.reshape(-1, inputs, *kernel).to(layer.s1.dtype)


def conv2d(
    layer: SketchLayer,
    input: Tensor,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """The layer by its factors, ``y = c A (S1 * x) + c S2 * (B x)``; B mixes channels alone.

    Args:
        layer: with channel mixing, or a kernel of one position; without a frame.
        input: ``(N, d2, H, W)``.
        stride: as in ``nn.Conv2d``.
        padding: as in ``nn.Conv2d``.
        dilation: as in ``nn.Conv2d``.
        groups: as in ``nn.Conv2d``.
    """
    blocks, s1 = layer.blocks, layer.s1
    a = _output_signs(layer, s1.dtype).transpose(1, 2).flatten(0, 1)[..., None, None]
    b = _input_signs(layer, s1.dtype).flatten(0, 1)[..., None, None]
    if blocks > 1:
        by_inputs = s1.unflatten(0, (groups, -1)).unflatten(2, (blocks, -1))
        s1 = by_inputs.transpose(1, 2).flatten(0, 2)
    filtered = F.conv2d(input, s1, None, stride, padding, dilation, groups * blocks)
    first = F.conv2d(filtered, a, layer.bias, groups=groups)
    mixed = F.conv2d(input, b, groups=groups)
    s2 = scaled(layer.s2, layer.scale)
    return first + F.conv2d(mixed, s2, None, stride, padding, dilation, groups * blocks)


def linear(layer: SketchLayer, input: Tensor) -> Tensor:
    """The layer by its factors, for an input ``(*, d2)``; without a frame."""
    blocks, s1 = layer.blocks, layer.s1
    a, b = _output_signs(layer, s1.dtype)[0], _input_signs(layer, s1.dtype)[0]
    s2 = scaled(layer.s2, layer.scale)
    if blocks == 1:
        inner = F.linear(input, torch.cat([s1, b]))
        return F.linear(inner, torch.cat([a.t(), s2], 1), layer.bias)
    by_inputs = s1.unflatten(1, (blocks, -1)).permute(1, 2, 0)
    by_outputs = s2.unflatten(0, (blocks, -1)).transpose(1, 2)
    filtered = input.unflatten(-1, (blocks, 1, -1)) @ by_inputs
    mixed = F.linear(input, b).unflatten(-1, (blocks, 1, -1))
    return F.linear(filtered.flatten(-3), a.t(), layer.bias) + (mixed @ by_outputs).flatten(-3)
