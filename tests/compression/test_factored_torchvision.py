"""torchvision's networks with layers that are chains of plain ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from selection import slow_except
from torch import nn

import sketchlayers
from sketchlayers import methods
from sketchlayers.methods import Method, Rank
from sketchlayers.surgery.replace import replace_layers

from .families import FAMILIES, assert_adds_up, bring_to_life

models = pytest.importorskip("torchvision.models")

SIZE = 64


def small_vgg() -> nn.Module:
    """VGG-11 with a classifier of few features, which makes up nearly all of the original one."""
    features = models.vgg.make_layers(models.vgg.cfgs["A"])
    with torch.device("meta"):
        model = models.VGG(features, init_weights=False)
    model.classifier = nn.Sequential(nn.Linear(512 * 7 * 7, 16), nn.ReLU(), nn.Linear(16, 10))
    return model


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": models.resnet18,
    "resnet34": models.resnet34,
    "resnet50": models.resnet50,
    "vgg": small_vgg,
    **{
        name: FAMILIES[name][0]
        for name in (
            "googlenet", "mobilenet_v2", "mobilenet_v3", "densenet", "convnext", "efficientnet",
            "vit",
        )
    },
}  # fmt: skip
# One with blocks, one with depthwise convolutions and gates, one of fully connected layers.
QUICK = ("resnet18", "mobilenet_v3", "vit")


@pytest.mark.parametrize("method", ["tucker2", "svd", "cp"])
@pytest.mark.parametrize("network", slow_except(QUICK, NETWORKS))
def test_every_network(network: str, method: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[network]().double().eval()
    x = torch.randn(1, 3, SIZE, SIZE, dtype=torch.float64)
    bring_to_life(model, x)
    small, report = sketchlayers.compress(
        model, method, rate=0.5, example_inputs=x, init="random", seed=1
    )
    assert_adds_up(report, model, small)
    assert abs(report.rate - 0.5) <= 0.005, report.notes
    assert len(report.replaced) > len(report.layers) / 4
    chosen = methods.get(method)
    for row in report.replaced:
        layer = small.get_submodule(row.name).fold()
        assert row.parameters_after == chosen.parameters(layer, row.rank) < row.parameters_before
        assert row.multiply_adds_after
        assert isinstance(small.get_submodule(row.name), chosen.layers)

    output = small(x)
    assert output.shape == model(x).shape and output.isfinite().all()
    output.square().mean().backward()
    gradients = [
        parameter.grad
        for row in report.replaced
        for parameter in small.get_submodule(row.name).parameters()
    ]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    # Gates that are saturated by these few pixels let none through.
    assert sum(bool(gradient.any()) for gradient in gradients) > 0.9 * len(gradients)
    folded = sketchlayers.fold(small)
    assert [type(m) for m in folded.modules()] == [type(m) for m in model.modules()]
    with torch.no_grad():
        assert (folded(x) - output).norm() < 1e-9 * output.norm()


@pytest.mark.parametrize("method", ["tucker2", "svd", "cp"])
@pytest.mark.parametrize("network", slow_except(QUICK, NETWORKS))
@torch.no_grad()
def test_full_rank_changes_nothing(network: str, method: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[network]().double().eval()
    x = torch.randn(1, 3, SIZE, SIZE, dtype=torch.float64)
    bring_to_life(model, x)
    chosen = methods.get(method)
    layers = [
        layer
        for layer in model.modules()
        if chosen.refusal(layer) is None and layer.weight.numel() <= 150_000
    ]
    assert layers
    replacements = {
        layer: chosen.build(layer, full_rank(chosen, layer), init="fit", seed=0)
        for layer in layers[:12]
    }
    output = replace_layers(model, replacements, inplace=False)(x)
    assert (output - model(x)).norm() < 1e-9 * output.norm()


def full_rank(method: Method, layer: nn.Module) -> Rank:
    """A rank at which every weight can be had."""
    weight = layer.weight
    if isinstance(layer, nn.Linear) or layer.kernel_size == (1, 1) or method.name == "svd":
        groups = getattr(layer, "groups", 1)
        rank = min(weight.shape[0] // groups, weight[0].numel())
        return (None, rank) if method.name == "tucker2" and weight.dim() == 4 else rank
    outputs, inputs, height, width = weight.shape
    outputs //= layer.groups
    if method.name == "tucker2":
        return inputs, outputs
    return min(inputs, outputs) * height * width


@pytest.mark.parametrize("method", ["tucker2", "svd", "cp"])
@pytest.mark.parametrize(
    "name", slow_except(["resnet50"], ["resnet50", "resnet152", "efficientnet_b7"])
)
def test_all_on_the_meta_device(name: str, method: str) -> None:
    with torch.device("meta"):
        model = models.get_model(name, weights=None).eval()
    small, report = sketchlayers.compress(model, method, rate=0.5, init="random", seed=1)
    assert_adds_up(report, model, small)
    assert abs(report.rate - 0.5) <= 0.005, report.notes
    assert all(parameter.is_meta for parameter in small.parameters())
    for row in report.replaced:
        assert small.get_submodule(row.name).weight.shape == row.shape


def test_a_layer_of_groups() -> None:
    torch.manual_seed(0)
    block = models.resnext50_32x4d().layer1[0].double().eval()
    x = torch.randn(1, 64, 8, 8, dtype=torch.float64)
    for method in map(methods.get, ("tucker2", "svd", "cp")):
        conv = block.conv2
        full = method.build(conv, full_rank(method, conv), init="fit", seed=0)
        assert full.groups == 32
        torch.testing.assert_close(
            replace_layers(block, {conv: full}, inplace=False)(x), block(x), rtol=1e-9, atol=1e-10
        )


@pytest.mark.filterwarnings("ignore:compress.*training:UserWarning")
@pytest.mark.parametrize("network", slow_except(QUICK, NETWORKS))
def test_fitted_to_images(network: str) -> None:
    """A few layers of every network, one after the other, in the norm of their outputs."""
    torch.manual_seed(0)
    model = NETWORKS[network]().eval()
    batches = [torch.randn(4, 3, SIZE, SIZE) for _ in range(2)]
    bring_to_life(model, batches[0])
    fits = [
        name
        for name, layer in model.named_modules()
        if methods.get("tucker2").refusal(layer) is None
        and layer.weight.numel() <= 80_000
        and not name.endswith("out_proj")  # attention uses its weight, not the layer
    ]
    names = fits[1 :: max(1, len(fits) // 4)][:4]
    small, report = sketchlayers.compress(
        model, "tucker2", rate=dict.fromkeys(names, 0.5), calibration=batches, seed=0
    )
    assert {row.name for row in report.replaced} == set(names)
    assert report.output_change is not None and 0 <= report.output_change < 1
    for row in report.replaced:
        assert row.rate == pytest.approx(0.5, abs=0.1)
        assert row.relative_error is not None and 0 <= row.relative_error < 1
    output = small(batches[0])
    assert output.shape == model(batches[0]).shape
    output.square().mean().backward()
    for row in report.replaced:
        for parameter in small.get_submodule(row.name).parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all()
