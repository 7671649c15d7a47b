"""The layers as the paper writes them, one sketch after another."""

import math

import torch
from torch import Tensor

from sketchlayers.nn import SKConv2d, SKLinear


def paper_weight(layer: SKConv2d | SKLinear, s1: Tensor, s2: Tensor) -> Tensor:
    """``c * sum_i (U1_i^T S1_i + S2_i U2_i)`` for each group: equation (1), nothing stacked."""
    u1, u2 = layer.sketch_matrices()
    groups = u1.shape[0] if u1.dim() == 4 else 1
    u1, u2 = (u.reshape(groups, *u.shape[-3:]) for u in (u1, u2))
    kernel = s1.shape[2:]
    taps, channels = math.prod(kernel), s1.shape[1]
    sketches, rank = u1.shape[1:3]
    first = s1.reshape(groups, sketches, rank, channels * taps)
    second = s2.reshape(groups, -1, sketches, rank, taps)
    weights = []
    for g in range(groups):
        total = torch.zeros((), dtype=s1.dtype)
        for i in range(sketches):
            total = total + u1[g, i].T @ first[g, i]
            factor = second[g, :, i]
            if layer.mixing == "spatial":
                total = total + factor.reshape(-1, rank * taps) @ u2[g, i]
            else:
                total = total + torch.einsum("okp,kc->ocp", factor, u2[g, i]).flatten(1)
        weights.append(layer.scale * total)
    return torch.cat(weights).reshape(-1, channels, *kernel)
