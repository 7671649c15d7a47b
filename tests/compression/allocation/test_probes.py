"""Layers that are wrong by a given amount."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sketchlayers
from sketchlayers.compression.allocation.probes import probes
from sketchlayers.compression.fitting.layer import Norm, power, with_weight, without_mean
from sketchlayers.nn._geometry import ordinary_weight

LAYERS = {
    "linear": lambda: nn.Linear(12, 8),
    "without bias": lambda: nn.Linear(12, 8, bias=False),
    "grouped": lambda: nn.Conv2d(6, 8, 3, padding=1, groups=2),
    "transposed": lambda: nn.ConvTranspose2d(6, 4, 3, groups=2),
    "tall": lambda: nn.Conv1d(2, 16, 1),
}
SQUARED_ERRORS = (0.001, 0.03, 0.3, 0.99)


def somewhat_wrong(layer: nn.Module) -> nn.Module:
    """The layer with another weight, as a fit might have it."""
    return with_weight(
        layer, ordinary_weight(layer) + 0.1 * torch.randn_like(ordinary_weight(layer))
    )


def inputs_of(layer: nn.Module, count: int = 64) -> torch.Tensor:
    if isinstance(layer, nn.Linear):
        return torch.randn(count, layer.in_features) + 1.5
    axes = len(layer.kernel_size)
    return torch.randn(count, layer.in_channels, *[6] * axes) + 1.5


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", list(LAYERS))
def test_errors_are_those_asked_for(name: str, weighted: bool) -> None:
    layer, sensitivity = LAYERS[name](), None
    moments = sketchlayers.calibrate(layer, [inputs_of(layer)])[""]
    if weighted:
        outputs = ordinary_weight(layer).shape[0] // len(moments.mean)
        root = torch.randn(len(moments.mean), outputs, outputs, dtype=torch.float64)
        sensitivity = root @ root.mT
    norm = without_mean(layer, Norm(moments, sensitivity))
    fitted = somewhat_wrong(layer)
    found = list(probes(layer, fitted, norm, SQUARED_ERRORS, correct_bias=True))
    assert [wanted for wanted, _ in found] == list(SQUARED_ERRORS)
    direction = (ordinary_weight(fitted) - ordinary_weight(layer)).flatten().double()
    for wanted, probe in found:
        assert type(probe) is type(layer)
        assert probe.weight.shape == layer.weight.shape
        assert probe.weight.dtype == layer.weight.dtype
        change = ordinary_weight(probe).double() - ordinary_weight(layer).double()
        changed = with_weight(layer, change)
        assert power(changed, norm) / power(layer, norm) == pytest.approx(wanted, rel=1e-3)
        assert torch.cosine_similarity(change.flatten(), direction, dim=0) > 0.999


@pytest.mark.parametrize("name", ["linear", "grouped", "transposed"])
@torch.no_grad()
def test_bias_takes_up_the_mean(name: str) -> None:
    layer = LAYERS[name]()
    inputs, fitted = inputs_of(layer), somewhat_wrong(layer)
    moments = sketchlayers.calibrate(layer, [inputs])[""]
    axes = [0, *range(2, inputs.dim())]
    ((_, probe),) = probes(layer, fitted, Norm(moments), [0.1], correct_bias=True)
    change = probe(inputs) - layer(inputs)
    assert change.abs().max() > 0.1
    assert change.mean(axes).abs().max() < 1e-4
    ((_, probe),) = probes(layer, fitted, Norm(moments), [0.1], correct_bias=False)
    assert torch.equal(probe.bias, layer.bias)


def test_without_data_and_without_effect() -> None:
    layer = nn.Conv2d(4, 6, 3)
    fitted = somewhat_wrong(layer)
    ((_, probe),) = probes(layer, fitted, Norm(), [0.25], correct_bias=True)
    change = (probe.weight - layer.weight).norm() / layer.weight.norm()
    assert change.item() == pytest.approx(0.5, rel=1e-4)
    assert not list(probes(layer, layer, Norm(), [0.25], correct_bias=True))
    with torch.no_grad():
        layer.weight.zero_()
    assert not list(probes(layer, layer, Norm(), [0.25], correct_bias=True))


def test_a_table_has_no_bias() -> None:
    table = nn.Embedding(20, 6)
    ((_, probe),) = probes(table, somewhat_wrong(table), Norm(), [0.1], correct_bias=True)
    change = (probe.weight - table.weight).square().sum() / table.weight.square().sum()
    assert change.item() == pytest.approx(0.1, rel=1e-3)
