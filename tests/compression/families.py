"""torchvision's families of classification networks, one of each, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from sketchlayers.compression import Report

models = pytest.importorskip("torchvision.models")

# The smallest of each family; of those that are large throughout, a small one of the same class.
FAMILIES: dict[str, tuple[Callable[..., nn.Module], int]] = {
    "alexnet": (models.alexnet, 64),
    "convnext": (
        partial(
            models.ConvNeXt,
            [
                models.convnext.CNBlockConfig(24, 48, 2),
                models.convnext.CNBlockConfig(48, 96, 1),
                models.convnext.CNBlockConfig(96, None, 1),
            ],
        ),
        64,
    ),
    "densenet": (models.densenet121, 64),
    "efficientnet": (models.efficientnet_b0, 64),
    "efficientnet_v2": (models.efficientnet_v2_s, 64),
    "googlenet": (partial(models.googlenet, init_weights=False), 64),
    "inception": (partial(models.inception_v3, init_weights=False), 80),
    "maxvit": (
        partial(
            models.MaxVit,
            input_size=(64, 64),
            stem_channels=16,
            partition_size=2,
            block_channels=[16, 32],
            block_layers=[1, 1],
            head_dim=8,
            stochastic_depth_prob=0.1,
        ),
        64,
    ),
    "mnasnet": (models.mnasnet0_5, 64),
    "mobilenet_v2": (models.mobilenet_v2, 64),
    "mobilenet_v3": (models.mobilenet_v3_small, 64),
    "regnet_x": (models.regnet_x_400mf, 64),
    "regnet_y": (models.regnet_y_400mf, 64),
    "resnet": (models.resnet18, 64),
    "resnext": (models.resnext50_32x4d, 64),
    "shufflenet": (models.shufflenet_v2_x0_5, 64),
    "squeezenet": (models.squeezenet1_1, 64),
    "swin": (partial(models.SwinTransformer, [4, 4], 32, [1, 1], [2, 2], [4, 4]), 64),
    "swin_v2": (
        partial(
            models.SwinTransformer,
            [4, 4],
            32,
            [1, 1],
            [2, 2],
            [4, 4],
            block=models.swin_transformer.SwinTransformerBlockV2,
            downsample_layer=models.swin_transformer.PatchMergingV2,
        ),
        64,
    ),
    "vgg": (partial(models.vgg11, num_classes=10), 64),
    "vit": (partial(models.VisionTransformer, 64, 16, 2, 4, 64, 128), 64),
    "wide_resnet": (models.wide_resnet50_2, 64),
}


@torch.no_grad()
def bring_to_life(model: nn.Module, x: torch.Tensor) -> None:
    """Gives batch norms the statistics of ``x``, and zero heads values: else outputs may vanish."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.train().momentum = 1.0
    model(x)
    for norm in norms:
        norm.eval()
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            module.reset_parameters()


def assert_adds_up(report: Report, model: nn.Module, small: nn.Module) -> None:
    for which, module in (("before", model), ("after", small)):
        parameters = sum(p.numel() for p in module.parameters())
        stored = sum(t.numel() * t.element_size() for t in module.state_dict().values())
        assert getattr(report, f"parameters_{which}") == parameters
        assert getattr(report, f"bytes_{which}") == stored
