"""torchvision's classification networks: one of each family for real, all on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

import sketchlayers
from sketchlayers.compress import Report

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

# Small enough to fit the weights of; the others start from random factors.
FITTED = {"mobilenet_v3", "shufflenet", "squeezenet", "swin", "vit"}
# The largest matrices are folded sooner at a smaller rate.
RATES = {"alexnet": 0.2, "vgg": 0.1, "wide_resnet": 0.2}


@pytest.mark.filterwarnings("ignore:compress.*training:UserWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_one_of_every_family(family: str) -> None:
    build, size = FAMILIES[family]
    rate = RATES.get(family, 0.5)
    # In float64, since a deep network makes rounding errors grow by any factor.
    model, x = build().double().eval(), torch.randn(2, 3, size, size, dtype=torch.float64)
    bring_to_life(model, x)
    small, report = sketchlayers.compress(
        model,
        rate=rate,
        example_inputs=x,
        init="fit" if family in FITTED else "random",
        seed=1,
    )
    assert_adds_up(report, model, small)
    assert abs(report.rate - rate) <= 0.01 * rate, report.notes
    assert report.multiply_adds_before
    assert report.replaced

    output = small(x)
    assert output.shape == model(x).shape and output.isfinite().all()
    assert not torch.equal(output[0], output[1])
    output.square().mean().backward()
    for row in report.replaced:
        layer = small.get_submodule(row.name)
        assert layer.s1.grad is not None and layer.s2.grad is not None, row.name

    folded = sketchlayers.fold(small)
    assert [type(m) for m in folded.modules()] == [type(m) for m in model.modules()]
    with torch.no_grad():
        again = folded(x)
    error = (again - output).norm() / output.norm()
    assert error < 1e-9


@pytest.mark.parametrize("name", models.list_models(module=models))
def test_all_on_the_meta_device(name: str) -> None:
    with parameters_on_meta():
        model = models.get_model(name, weights=None, **_QUICK.get(name, {})).eval()
    small, report = sketchlayers.compress(model, rate=0.5, init="random", seed=1)
    assert_adds_up(report, model, small)
    assert abs(report.rate - 0.5) <= 0.005, report.notes
    assert all(p.is_meta for p in small.parameters())
    for row in report.layers:
        before, after = model.get_submodule(row.name), small.get_submodule(row.name)
        if row.method is None:
            assert row.reason
            assert type(after) is type(before)
        else:
            assert after.weight.shape == before.weight.shape == row.shape


# Values do not matter on the meta device, and drawing them takes long.
_QUICK: dict[str, dict[str, Any]] = {
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
}


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Modules made here have parameters without memory; all else is computed as usual."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "register_parameter", on_meta)
        yield


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
