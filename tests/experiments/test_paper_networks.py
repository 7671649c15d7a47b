from __future__ import annotations

import pytest
import torch
from torch import nn

from networks import (
    NETWORKS,
    convolutions_and_linears,
    count_parameters,
    googlenet_bn,
    ninn,
    ninn_fc,
)

NINN_WEIGHTS = {
    "CONV_1": 14_400,
    "CONV_2": 30_720,
    "CONV_3": 15_360,
    "CONV_4": 460_800,
    "CONV_5": 36_864,
    "CONV_6": 36_864,
    "CONV_7": 331_776,
    "CONV_8": 36_864,
    "CONV_9": 1_920,
}


def weights(network: nn.Module) -> dict[str, int]:
    return {name: layer.weight.numel() for name, layer in convolutions_and_linears(network)}


@pytest.mark.parametrize(("name", "count"), NINN_WEIGHTS.items())
def test_ninn_layer_has_the_papers_weights(name: str, count: int) -> None:
    assert weights(ninn())[name] == count


def test_ninn_totals() -> None:
    assert list(weights(ninn())) == list(NINN_WEIGHTS)
    assert sum(weights(ninn()).values()) == 965_568
    assert count_parameters(ninn(batch_norm=False)) == 966_986


def test_ninn_fc_replaces_conv_9_by_two_linear_layers() -> None:
    expected = {name: count for name, count in NINN_WEIGHTS.items() if name != "CONV_9"}
    expected |= {"FC_1": 768 * 768, "FC_2": 768 * 10}
    assert weights(ninn_fc()) == expected


def cumulative_rates(counts: dict[str, int], order: list[str], factor: int) -> list[float]:
    """Rates of the whole network when one more layer of `order` is divided by `factor`."""
    total = left = sum(counts.values())
    rates = []
    for name in order:
        left -= counts[name] * (1 - 1 / factor)
        rates.append(left / total)
    return rates


def test_cumulative_rates_of_figure_2() -> None:
    order = [f"CONV_{index}" for index in range(2, 9)]
    expected = [0.971, 0.957, 0.528, 0.493, 0.459, 0.150, 0.115]
    assert cumulative_rates(weights(ninn()), order, 10) == pytest.approx(expected, abs=6e-4)


def test_cumulative_rates_of_figure_3() -> None:
    order = [*(f"CONV_{index}" for index in range(2, 9)), "FC_1"]
    expected = [0.985, 0.978, 0.757, 0.739, 0.721, 0.562, 0.544, 0.261]
    assert cumulative_rates(weights(ninn_fc()), order, 4) == pytest.approx(expected, abs=6e-4)


def test_googlenet_has_the_papers_5x5_branches() -> None:
    with torch.device("meta"):
        network = googlenet_bn(365)
    assert count_parameters(network) == 6_354_957
    kernels = [
        layer.kernel_size
        for _, layer in convolutions_and_linears(network)
        if isinstance(layer, nn.Conv2d)
    ]
    assert kernels.count((5, 5)) == 9
    assert network(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 365)


@pytest.mark.parametrize("name", ["ninn", "ninn_fc"])
@pytest.mark.parametrize("size", [16, 32, 96])
def test_ninn_takes_images_of_any_size(name: str, size: int) -> None:
    network = NETWORKS[name](7, width=0.1)
    images = torch.randn(2, 3, size, size)
    assert network(images).shape == (2, 7)


def test_width_scales_the_channels() -> None:
    layers = dict(convolutions_and_linears(ninn(width=0.5)))
    assert [layer.out_channels for layer in layers.values()] == [96, 80, 48, *[96] * 5, 10]
    assert sum(weights(ninn(width=0.5)).values()) == 245_472


def test_first_pool_is_after_conv_3_and_second_after_conv_6() -> None:
    names = [name for name, _ in ninn().named_children()]
    assert names.index("POOL_3") == names.index("CONV_4") - 2
    assert names.index("POOL_6") == names.index("CONV_7") - 2
    images = torch.randn(1, 3, 32, 32)
    until_pool_3 = ninn(width=0.1)[: names.index("POOL_3") + 1]
    assert until_pool_3(images).shape[2:] == (16, 16)


def test_initial_outputs_neither_vanish_nor_explode() -> None:
    network = ninn(batch_norm=False).eval()
    with torch.no_grad():
        logits = network(torch.randn(4, 3, 32, 32))
    assert 0.05 < logits.abs().mean() < 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0.0}, r"ninn: width must be positive \(got 0.0\)"),
        ({"num_classes": 0}, r"ninn: num_classes must be at least 1 \(got 0\)"),
        ({"dropout": 1.0}, r"ninn: dropout must be in \[0, 1\) \(got 1.0\)"),
    ],
)
def test_bad_arguments(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ninn(**options)
