"""Fully connected layers of low rank."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sketchlayers.nn import LowRankLinear


def test_sizes_attributes_and_output() -> None:
    layer = LowRankLinear(12, 18, rank=4, dtype=torch.float64)
    x = torch.randn(2, 3, 12, dtype=torch.float64)
    assert (layer.in_features, layer.out_features, layer.weight.shape) == (12, 18, (18, 12))
    torch.testing.assert_close(layer(x), x @ layer.weight.T + layer.bias)
    assert layer.rate == (4 * 30 + 18) / (12 * 18 + 18)
    assert LowRankLinear(12, 18, False, rank=4).bias is None
    folded = layer.fold()
    assert type(folded) is nn.Linear and repr(folded) == repr(nn.Linear(12, 18))
    torch.testing.assert_close(folded(x), layer(x))
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert 2 * layer.multiply_adds(x.shape) == counter.get_total_flops()
    assert layer.multiply_adds((12,)) == 4 * 30
    with pytest.raises(RuntimeError, match=r"input_shape must be \(\*, 12\)"):
        layer.multiply_adds((3, 11))


def test_full_rank_reproduces_the_layer() -> None:
    torch.manual_seed(0)
    for sizes in ((12, 18), (18, 12)):
        linear = nn.Linear(*sizes, dtype=torch.float64)
        moment = torch.randn(sizes[0], 5, dtype=torch.float64)
        x = torch.randn(4, sizes[0], dtype=torch.float64)
        for second_moment in (None, moment @ moment.T):  # singular: fewer samples than inputs
            layer = LowRankLinear.from_linear(linear, 12, second_moment=second_moment)
            torch.testing.assert_close(layer(x), linear(x), rtol=1e-9, atol=1e-10)


def test_takes_the_nearest_weight_of_its_rank() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(20, 30, dtype=torch.float64)
    values = torch.linalg.svdvals(linear.weight.detach())
    layer = LowRankLinear.from_linear(linear, rate=0.5)
    assert layer.rank == 6 and layer.rate == (6 * 50 + 30) / 630
    best = values[6:].square().sum().sqrt() / values.square().sum().sqrt()
    assert layer.fit_error == pytest.approx(best.item(), rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "exactly one of rank and rate"),
        ({"rank": 2, "rate": 0.5}, ValueError, "exactly one of rank and rate"),
        ({"rank": 9}, ValueError, "rank must be at most 8, which is enough for every weight"),
        ({"rank": 0}, ValueError, "rank must be at least 1"),
        ({"rank": None, "rate": True}, TypeError, "rate must be a number"),
        ({"rank": 2, "in_features": 0}, ValueError, "in_features must be at least 1"),
    ],
)
def test_wrong_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"LowRankLinear: .*{message}"):
        LowRankLinear(**{"in_features": 8, "out_features": 10, **arguments})
