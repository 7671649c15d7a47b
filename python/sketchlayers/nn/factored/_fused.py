"""Convolutions that one operator may compute, in place of plain ones one after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from sketchlayers import _extension
from sketchlayers.nn._autocast import autocast_type
from sketchlayers.nn._geometry import Geometry, output_size, pad

_PLAIN = (nn.Parameter, Tensor)
"""Types of weights; a tensor's own is that of a call by ``torch.func.functional_call``."""

_has_extension: bool | None = None


class ChainPlan(NamedTuple):
    """How a layer of factors would compute one forward call.

    Attributes:
        path: ``"fused"``, in one pass over tiles of pixels, or ``"plain"``, by PyTorch's
            convolutions one after the other.
        reason: one sentence.
        multiply_adds: of the call, without the bias.
    """

    path: Literal["fused", "plain"]
    reason: str
    multiply_adds: int


def may_fuse(layer: nn.Module, input: object) -> bool:
    """Tells whether the operator may compute a layer of plain convolutions.

    It may not where parts are more than these, where the package has no compiled extension, on
    other devices than CPUs, and where a call is recorded to run without this package.
    """
    return (
        isinstance(input, Tensor)
        and input.is_cpu
        and not torch.jit.is_tracing()
        and not torch.compiler.is_exporting()
        and all(part is None or _is_untouched(part) for part in layer._modules.values())
        and _extension_is_there()
    )


def tucker(layer: Any, input: Tensor, first: Any, core: Any, last: Any) -> Tensor:
    """Computes a 1x1 convolution, the core and another 1x1 one; None are not there."""
    from sketchlayers import ops

    input, padding = pad(layer, input)
    return ops.tucker_conv2d(
        input,
        None if first is None else first.weight,
        core.weight,
        None if last is None else last.weight,
        (core if last is None else last).bias,
        *(layer.stride, padding, layer.dilation, layer.groups),
    )


def cp(layer: Any, input: Tensor) -> Tensor:
    """Computes the chain of a CP decomposition, with whatever parts it has."""
    from sketchlayers import ops

    if layer.rows is None and layer.columns is None:
        return tucker(layer, input, None, layer.input, layer.output)
    if layer.rows is None or layer.columns is None:
        only = layer.rows if layer.columns is None else layer.columns
        return tucker(layer, input, layer.input, only, layer.output)
    input, padding = pad(layer, input)
    return ops.cp_conv2d(
        input,
        layer.input.weight,
        layer.rows.weight,
        layer.columns.weight,
        layer.output.weight,
        layer.output.bias,
        *(layer.stride, padding, layer.dilation, layer.groups),
    )


def plan(
    layer: Any, input_shape: Sequence[int], *, channels_last: bool, depthwise: bool, core: int
) -> ChainPlan:
    """Tells how a call of a layer would be computed, and why; gradients count if recorded."""
    multiply_adds = layer.multiply_adds(input_shape)
    weights = [part.get_parameter("weight") for part in layer.children()]
    device, dtype = weights[0].device, weights[0].dtype
    if not may_fuse(layer, torch.empty(0, device=device)):
        return ChainPlan(
            "plain", "its parts are no plain convolutions on a CPU, or no extension", multiply_adds
        )
    if dtype == torch.float32:
        dtype = autocast_type(device.type) or dtype
    fused, reason = _extension.require(type(layer).__name__).plan_chain(
        device=device.type,
        dtype=str(dtype).removeprefix("torch."),
        training=torch.is_grad_enabled() and any(weight.requires_grad for weight in weights),
        channels_last=channels_last,
        depthwise=depthwise,
        core=float(core),
        multiply_adds=float(multiply_adds),
        pixels=float(math.prod(output_size(Geometry.of(layer), input_shape[-2:]))),
    )
    return ChainPlan("fused" if fused else "plain", reason, multiply_adds)


def _is_untouched(part: Any) -> bool:
    """Whether a part computes what a convolution with its weight does, and nobody looks on."""
    return (
        type(part) is nn.Conv2d
        and type(part._parameters.get("weight")) in _PLAIN
        and not (part._forward_hooks or part._forward_pre_hooks)
        and not (part._backward_hooks or part._backward_pre_hooks)
        and "forward" not in part.__dict__
    )


def _extension_is_there() -> bool:
    global _has_extension
    if _has_extension is None and not torch.compiler.is_compiling():
        _has_extension = _extension.problem() is None
    return bool(_has_extension)
