"""Batch norm as a part of the layer before it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sketchlayers.nn._geometry import CONVOLUTIONS
from sketchlayers.nn._layer import CompressedLayer, scale_outputs


def fuse_batch_norm(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """Returns one layer that computes ``norm(layer(input))`` in eval mode; both stay as they are.

    As ``torch.nn.utils.fusion.fuse_conv_bn_eval``, for all layers: with the running mean ``m`` and
    variance ``v`` the outputs are scaled by ``weight / sqrt(v + eps)`` and shifted by
    ``bias - m weight / sqrt(v + eps)``. Layers of factors (Tucker-2, CP, low rank) and dictionaries
    keep their class, sizes and hooks. In sketched and hashed layers outputs share their
    parameters, so the result is the plain layer, of the dense layer's size, as of
    `sketchlayers.fold`.

    Args:
        layer: a layer of this package, a convolution of PyTorch, or ``nn.Linear``.
        norm: ``nn.BatchNorm1d``, ``nn.BatchNorm2d``, ``nn.BatchNorm3d`` or ``nn.SyncBatchNorm``, of
            as many features as the layer has outputs.

    Raises:
        TypeError: another module.
        ValueError: the batch norm is in training mode, has no running statistics or another number
            of features, or the layer is in training mode.

    Example:
        >>> layer = sketchlayers.TuckerConv2d(8, 16, 3, ranks=(4, 8)).eval()
        >>> fused = sketchlayers.fuse_batch_norm(layer, nn.BatchNorm2d(16).eval())
    """
    dense = isinstance(layer, (*CONVOLUTIONS, nn.Linear))
    if not dense and not isinstance(layer, CompressedLayer):
        raise TypeError(
            "fuse_batch_norm: layer must be a layer of sketchlayers, a convolution or nn.Linear "
            f"(got {type(layer).__name__})"
        )
    if not isinstance(norm, _BatchNorm):
        raise TypeError(f"fuse_batch_norm: norm must be a batch norm (got {type(norm).__name__})")
    own: Any = layer
    outputs = own.out_channels if hasattr(own, "out_channels") else own.out_features
    _check(norm, layer.training, outputs)
    assert norm.running_mean is not None and norm.running_var is not None
    scale = torch.rsqrt(norm.running_var.detach().double() + norm.eps)
    if norm.affine:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.detach().double() * scale
    if norm.affine:
        shift = shift + norm.bias.detach().double()
    if isinstance(layer, CompressedLayer):
        return layer._scaled(scale, shift)
    return scale_outputs(copy.deepcopy(layer), "weight", scale, shift)


def _check(norm: _BatchNorm, training: bool, outputs: int) -> None:
    if training or norm.training:
        raise ValueError(
            "fuse_batch_norm: both modules must be in eval mode, since batch norm in training is "
            "no fixed function; call eval() of the model before"
        )
    if norm.running_mean is None:
        raise ValueError(
            "fuse_batch_norm: norm must have running statistics (got track_running_stats=False)"
        )
    if norm.num_features != outputs:
        raise ValueError(
            f"fuse_batch_norm: norm must have as many features as the layer has outputs, {outputs} "
            f"(got {norm.num_features})"
        )
