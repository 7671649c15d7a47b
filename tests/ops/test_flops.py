"""PyTorch's counter of operations counts the operators."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sketchlayers.nn import (
    CPConv2d,
    DictionaryConv2d,
    DictionaryLinear,
    FreshConv2d,
    HashedConv2d,
    HashedLinear,
    LowRankConv2d,
    LowRankLinear,
    SKConv2d,
    SKLinear,
    TuckerConv2d,
)

CONV = {"in_channels": 16, "out_channels": 24, "kernel_size": (3, 2), "stride": (2, 1), "groups": 2}
SKETCHES = {
    "spatial": lambda: SKConv2d(**CONV, rank=2, num_sketches=2),
    "channel": lambda: SKConv2d(**CONV, rank=2, mixing="channel"),
    "blocks": lambda: SKConv2d(**CONV, rank=2, blocks=4),
    "pointwise": lambda: SKConv2d(16, 24, 1, rank=3, mixing="channel"),
    "linear": lambda: SKLinear(16, 24, rank=3, num_sketches=2, blocks=2),
}


def counted(module: nn.Module, value: torch.Tensor, *, backward: bool = False) -> int:
    value.requires_grad_(backward)
    with FlopCounterMode(display=False) as counter:
        output = module(value)
        if backward:
            output.sum().backward()
    total: int = counter.get_total_flops()
    return total


def input_of(module: nn.Module) -> torch.Tensor:
    return torch.randn(5, 16, 9, 7) if hasattr(module, "kernel_size") else torch.randn(5, 3, 16)


@pytest.mark.parametrize("path", ["factored", "folded"])
@pytest.mark.parametrize("kind", SKETCHES)
def test_a_sketch_costs_what_its_plan_says(kind: str, path: str) -> None:
    layer = SKETCHES[kind]()
    layer.path = path
    value = input_of(layer)
    plan = layer.plan(value.shape)
    expected = 2 * getattr(plan, f"{path}_multiply_adds")
    assert counted(layer, value) == expected == 2 * layer.multiply_adds(value.shape)
    if path == "folded":  # PyTorch counts the convolution's part
        return
    # Products with trained factors have two gradients, and those with signs have one.
    assert expected < counted(layer, value, backward=True) - expected <= 2 * expected


@pytest.mark.parametrize(
    "layer",
    [
        TuckerConv2d(16, 24, 3, ranks=(4, 6)),
        CPConv2d(16, 24, 3, rank=6),
        LowRankConv2d(16, 24, 3, rank=6),
        LowRankLinear(16, 24, rank=6),
        HashedConv2d(16, 24, 3, rate=0.5),
        HashedLinear(16, 24, rate=0.5),
        FreshConv2d(16, 24, 3, rate=0.5),
        DictionaryConv2d(16, 24, 3, rate=0.5),
        DictionaryLinear(16, 24, rate=0.5),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_other_layers_cost_what_they_say(layer: nn.Module) -> None:
    value = input_of(layer)
    assert counted(layer, value) == 2 * layer.multiply_adds(value.shape)  # type: ignore[operator]


@pytest.mark.parametrize("first", ["sketchlayers", "torch.utils.flop_counter"])
def test_a_counter_counts_in_whatever_order_things_are_imported(first: str) -> None:
    program = f"""
import {first}
import sketchlayers, torch
assert {first == "torch.utils.flop_counter"} or "torch.utils.flop_counter" not in sys.modules
layer = sketchlayers.SKLinear(8, 8, rank=2)
layer.path = "factored"
from torch.utils.flop_counter import FlopCounterMode
with FlopCounterMode(display=False) as counter:
    layer(torch.randn(3, 8))
print(counter.get_total_flops() == 2 * layer.multiply_adds((3, 8)) > 0)
"""
    result = subprocess.run(
        [sys.executable, "-c", f"import sys{program}"], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["True"]
