"""What layers compute with while ``torch.onnx.export`` traces them: standard operations alone.

Signs and hashes follow from the seed. They are made outside of the trace, which takes them for
constants: signs of one byte each, which a ``Cast`` brings to the type of the factors. The factors
stay what the file holds of a layer; a dense weight that is formed of them is formed by the runtime,
once, when it folds constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from sketchlayers import ops

if TYPE_CHECKING:
    from ._sketch import SketchLayer
    from .conv import SKConv2d
    from .linear import SKLinear


def exporting() -> bool:
    """Whether this call is one that ``torch.onnx.export`` traces."""
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()


def constant(make: Callable[[], Tensor]) -> Tensor:
    """A tensor with values, made of no other one, that a trace takes for a constant."""
    with torch.no_grad(), _disable_current_modes():
        return make()


def takes_factors(layer: SketchLayer) -> bool:
    """Whether a call is computed by the factors, where that is possible and fewer operations.

    Spatial mixing is not: its signs, ``l k h w n`` of them, outweigh the factors.
    """
    if layer._needs_folded or layer.path == "folded":
        return False
    positions = math.prod(layer._kernel)
    if layer.mixing == "spatial" and positions > 1:
        return False
    inputs, outputs = layer._group_inputs, layer._group_outputs
    by_signs = layer.blocks * (inputs + outputs)
    by_factors = positions * (inputs + outputs)
    return layer.num_sketches * layer.rank * (by_signs + by_factors) < outputs * layer._patch


def sketched_weight(layer: SketchLayer) -> Tensor:
    """``W_hat`` of equation 1, in the shape of the dense weight; see `sketchlayers.ops`."""
    dtype = torch.promote_types(layer.s1.dtype, torch.float32)
    s1, s2 = layer.s1.to(dtype), layer.s2.to(dtype)
    groups, blocks, outputs, patch = (
        layer._groups,
        layer.blocks,
        layer._group_outputs,
        layer._patch,
    )
    rows, positions = layer.num_sketches * layer.rank, math.prod(layer._kernel)
    a = _output_signs(layer, dtype).unflatten(1, (blocks, rows))
    by_inputs = s1.reshape(groups, rows, blocks, -1).transpose(1, 2)
    weight = (a.transpose(-1, -2) @ by_inputs).transpose(1, 2).reshape(groups, outputs, patch)
    b = _input_signs(layer, dtype).unflatten(1, (blocks, -1))
    by_outputs = _scaled(s2.reshape(groups, blocks, -1, rows * positions), layer.scale)
    if layer.mixing == "spatial":
        second = by_outputs @ b
    else:
        by_position = by_outputs.unflatten(-1, (rows, positions)).transpose(-1, -2)
        second = (by_position @ b.unsqueeze(2)).transpose(-1, -2)
    weight = weight + second.reshape(groups, outputs, patch)
    if layer.frame is not None:
        weight = weight * _signs(layer, "frame_signs").to(dtype)
    if layer.base is not None:
        weight = weight + _scaled(_signs(layer, "base_signs").to(dtype), math.sqrt(2 / patch))
    return weight.reshape(-1, layer._group_inputs, *layer._kernel).to(layer.s1.dtype)


def sketched_conv2d(layer: SKConv2d, input: Tensor, padding: tuple[int, int]) -> Tensor:
    """The layer by its factors, ``y = c A (S1 * x) + c S2 * (B x)``; B mixes channels alone."""
    groups, blocks = layer.groups, layer.blocks
    geometry = layer.stride, padding, layer.dilation
    a = _output_signs(layer, layer.s1.dtype).transpose(1, 2).flatten(0, 1)[..., None, None]
    b = _input_signs(layer, layer.s1.dtype).flatten(0, 1)[..., None, None]
    s1 = layer.s1
    if blocks > 1:
        by_inputs = s1.unflatten(0, (groups, -1)).unflatten(2, (blocks, -1))
        s1 = by_inputs.transpose(1, 2).flatten(0, 2)
    filtered = F.conv2d(input, s1, None, *geometry, groups * blocks)
    first = F.conv2d(filtered, a, layer.bias, groups=groups)
    mixed = F.conv2d(input, b, groups=groups)
    return first + F.conv2d(mixed, _scaled(layer.s2, layer.scale), None, *geometry, groups * blocks)


def sketched_linear(layer: SKLinear, input: Tensor) -> Tensor:
    """The layer by its factors."""
    blocks = layer.blocks
    a = _output_signs(layer, layer.s1.dtype)[0]
    b = _input_signs(layer, layer.s1.dtype)[0]
    s2 = _scaled(layer.s2, layer.scale)
    if blocks == 1:
        inner = F.linear(input, torch.cat([layer.s1, b]))
        return F.linear(inner, torch.cat([a.t(), s2], 1), layer.bias)
    by_inputs = layer.s1.unflatten(1, (blocks, -1)).permute(1, 2, 0)
    by_outputs = s2.unflatten(0, (blocks, -1)).transpose(1, 2)
    filtered = input.unflatten(-1, (blocks, 1, -1)) @ by_inputs
    mixed = F.linear(input, b).unflatten(-1, (blocks, 1, -1))
    return F.linear(filtered.flatten(-3), a.t(), layer.bias) + (mixed @ by_outputs).flatten(-3)


def hashed_weight(
    values: Tensor,
    seed: int,
    rows: int,
    columns: int,
    *,
    first: Sequence[int] = (),
    buckets: Sequence[int] = (),
) -> Tensor:
    """`ops.hashed_weight`, looked up in the values and their negatives at constant places."""
    number, device = len(values), values.device

    def places() -> Tensor:
        key = torch.tensor(seed, device=device)
        entries = ops.hash_entries(key, rows, columns, number, first=first, buckets=buckets)
        found = torch.where(entries < 0, number + ~entries, entries)
        return found.to(torch.int32 if 2 * number < 2**31 else torch.int64)

    both = torch.cat([values, -values])
    return both.index_select(0, constant(places).flatten()).reshape(rows, columns)


def _scaled(tensor: Tensor, factor: float) -> Tensor:
    """Times a number of the tensor's type: PyTorch 2.11's exporter cannot promote half types."""
    return tensor * torch.full((), factor, dtype=tensor.dtype, device=tensor.device)


def _output_signs(layer: SketchLayer, dtype: torch.dtype) -> Tensor:
    """``c A`` transposed: ``(groups, blocks * l * k, d1 / groups)``."""
    return _scaled(_signs(layer, "u1").to(dtype), layer.scale / math.sqrt(layer.rank))


def _input_signs(layer: SketchLayer, dtype: torch.dtype) -> Tensor:
    """``B``: ``(groups, blocks * l * k * taps, columns)``; its ``c`` is the callers' to add."""
    taps, _ = layer._mixed
    return _signs(layer, "u2").to(dtype) / math.sqrt(layer.rank * taps)


def _signs(layer: SketchLayer, name: str) -> Tensor:
    """Signs made from the layer's seed, one byte each: ``(groups, rows, columns)``."""
    columns = {"u1": layer._group_outputs, "u2": layer._mixed[1]}.get(name, layer._patch)
    return constant(lambda: ops.unpack_signs(layer._packed(name), columns).to(torch.int8))
