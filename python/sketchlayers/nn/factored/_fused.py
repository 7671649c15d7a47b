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
        path: ``"fused"``, by this package's kernels, in one pass over tiles of pixels if it has 1x1
            factors, or ``"plain"``, by PyTorch's convolutions one after the other.
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
        and all(part is None or is_plain(part, nn.Conv2d) for part in layer._modules.values())
        and _extension_is_there()
    )


class Chain(NamedTuple):
    """The parts of a layer, as the operators take them.

    Attributes:
        inputs: the first 1x1 convolution; None is none.
        core: the convolution between them, or the vertical one of two.
        columns: the horizontal one, or None.
        outputs: the last 1x1 convolution; None is none.
    """

    inputs: Any
    core: Any
    columns: Any
    outputs: Any

    @property
    def is_depthwise(self) -> bool:
        """Whether every feature has a filter of its own."""
        return self.inputs is not None and self.core.groups == self.inputs.out_channels


class OnePassConv2d:
    """A convolution of factors that the operators may compute, for those that have this first."""

    def _chain(self) -> Chain | None:
        """The parts; None where the operators should not compute them."""
        raise NotImplementedError

    def _in_one_pass(self, input: Tensor) -> Tensor | None:
        layer: Any = self
        chain = self._chain() if may_fuse(layer, input) else None
        return None if chain is None else _computed(layer, chain, input)

    def plan(self, input_shape: Sequence[int], *, channels_last: bool = False) -> ChainPlan:
        """Which path would run for an input of this shape, and why.

        Gradients count if they would be recorded.

        Args:
            input_shape: ``(N, in, H, W)`` or ``(in, H, W)``.
            channels_last: whether an image lies in memory with the channels innermost.

        Raises:
            RuntimeError: the shape does not fit the layer.
        """
        layer: Any = self
        count = layer.multiply_adds(input_shape)
        weights = [part.get_parameter("weight") for part in layer.children()]
        device, dtype = weights[0].device, weights[0].dtype
        if not may_fuse(layer, torch.empty(0, device=device)):
            reason = "its parts are no plain convolutions on a CPU, or no extension"
            return ChainPlan("plain", reason, count)
        chain = self._chain()
        if chain is None:
            return ChainPlan("plain", "its filters are large, rows and columns apart small", count)
        if dtype == torch.float32:
            dtype = autocast_type(device.type) or dtype
        fused, reason = _extension.require(type(self).__name__).plan_chain(
            device=device.type,
            dtype=str(dtype).removeprefix("torch."),
            training=torch.is_grad_enabled() and any(weight.requires_grad for weight in weights),
            channels_last=channels_last,
            factors=not (chain.inputs is None and chain.outputs is None),
            depthwise=chain.is_depthwise,
            core=float(chain.core.weight.numel()),
            multiply_adds=float(count),
            pixels=float(math.prod(output_size(Geometry.of(layer), input_shape[-2:]))),
        )
        return ChainPlan("fused" if fused else "plain", reason, count)


def _computed(layer: Any, chain: Chain, input: Tensor) -> Tensor:
    """The layer's output, with the bias of its last part."""
    from sketchlayers import ops  # which loads the extension

    input, padding = pad(layer, input)
    inputs, core, columns, outputs = map(_weight, chain)
    bias = (chain.outputs or chain.columns or chain.core)._parameters["bias"]
    window = layer.stride, padding, layer.dilation, layer.groups
    if columns is None:
        return ops.tucker_conv2d(input, inputs, core, outputs, bias, *window)
    if inputs is None:
        return ops.low_rank_conv2d(input, core, columns, bias, *window)
    return ops.cp_conv2d(input, inputs, core, columns, outputs, bias, *window)


def _weight(part: Any) -> Any:
    """Its weight, as ``part.weight`` would take longer to find it."""
    return None if part is None else part._parameters["weight"]


def is_plain(part: Any, kind: type[nn.Module]) -> bool:
    """Whether a part computes what one of this kind with its weight does, and nobody looks on."""
    return (
        type(part) is kind
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
