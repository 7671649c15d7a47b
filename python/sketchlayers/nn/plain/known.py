"""The kinds of layers that are known from the start.

Those of other packages are matched by name and never imported.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sketchlayers.nn.plain.attention import PlainAttention
from sketchlayers.nn.plain.encoder import PlainEncoder
from sketchlayers.nn.plain.experts import PlainExperts
from sketchlayers.nn.plain.form import Plain, sharing
from sketchlayers.nn.plain.registry import register_layer


def register() -> None:
    """Makes them known."""
    register_layer(nn.MultiheadAttention, PlainAttention)
    register_layer(nn.TransformerEncoder, PlainEncoder)
    register_layer("transformers.models.*Experts", PlainExperts)
    for name in (
        "timm.layers.conv2d_same.Conv2dSame",
        "efficientnet_lite_pytorch.utils.Conv2dDynamicSamePadding",
        "efficientnet_pytorch.utils.Conv2dDynamicSamePadding",
    ):
        register_layer(name, before=pad_same)
    for name in (
        "efficientnet_lite_pytorch.utils.Conv2dStaticSamePadding",
        "efficientnet_pytorch.utils.Conv2dStaticSamePadding",
    ):
        register_layer(name, before=_pad_static)
    for name in (
        "transformers.pytorch_utils.Conv1D",
        "transformers.modeling_utils.Conv1D",
    ):
        register_layer(name, dense=_transposed, restore=_transpose_back)


def pad_same(conv: Any, input: Tensor) -> Tensor:
    """Pads with zeros as TensorFlow does with "SAME": the odd row and column come last.

    Args:
        conv: with kernel_size, stride and dilation.
        input: (..., H, W).
    """
    sides: list[int] = []
    sizes = zip(input.shape[-2:], conv.kernel_size, conv.stride, conv.dilation, strict=True)
    for length, kernel, stride, dilation in sizes:
        outputs = -(-length // stride)
        total = max(0, (outputs - 1) * stride + dilation * (kernel - 1) + 1 - length)
        sides = [total // 2, total - total // 2, *sides]
    return F.pad(input, sides) if any(sides) else input


def _pad_static(conv: Any, input: Tensor) -> Tensor:
    padded: Tensor = conv.static_padding(input)
    return padded


def _transposed(layer: Any) -> Plain:
    """The linear layer of a ``Conv1D``, whose weight is (inputs, outputs)."""
    return sharing(layer.weight.T, layer.bias)


def _transpose_back(layer: nn.Module, plain: Any) -> None:
    weight = nn.Parameter(plain.weight.detach().T.contiguous(), plain.weight.requires_grad)
    layer.register_parameter("weight", weight)
    layer.register_parameter("bias", plain.bias)
