"""A network with a layer of every kind and option, as files must hold them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

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

GROUPED = {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2, "bias": False}
CIRCULAR = {"padding": "same", "padding_mode": "circular"}

Convert = Callable[[Any], nn.Module]

# For each place: arguments of the plain convolution from 8 to 12 channels, and what replaces it.
CONVOLUTIONS: dict[str, tuple[dict[str, Any], Convert | None]] = {
    "plain": ({"padding": 1}, None),
    "spatial": ({"padding": 1}, lambda conv: SKConv2d.from_conv(conv, rank=2, seed=1)),
    "channel": (
        GROUPED,
        lambda conv: SKConv2d.from_conv(
            conv, rank=1, num_sketches=2, mixing="channel", scale="normalized", seed=2**62 + 3
        ),
    ),
    "blocks": (
        CIRCULAR,
        lambda conv: SKConv2d.from_conv(conv, rank=1, blocks=4, signs="hadamard", seed=5),
    ),
    "framed": (
        {},
        lambda conv: SKConv2d.from_conv(conv, rank=2, scale=0.3, frame="signs", seed=6),
    ),
    "tucker": (GROUPED, lambda conv: TuckerConv2d.from_conv(conv, (2, 3))),
    "one_side": ({}, lambda conv: TuckerConv2d.from_conv(conv, (None, 4))),
    "cp": (CIRCULAR, lambda conv: CPConv2d.from_conv(conv, 5, starts=1, max_sweeps=2)),
    "low_rank": (GROUPED, lambda conv: LowRankConv2d.from_conv(conv, 3)),
    "hashed": (GROUPED, lambda conv: HashedConv2d.from_conv(conv, buckets=40, seed=7)),
    "fresh": ({}, lambda conv: FreshConv2d.from_conv(conv, buckets=60, alpha=0.5, seed=8)),
    "dictionary": (
        {"padding": 1},
        lambda conv: DictionaryConv2d.from_conv(
            conv, rank=9, num_columns=2, length=2.0, ridge=0.2, seed=9
        ),
    ),
    "covariance": (
        GROUPED,
        lambda conv: DictionaryConv2d.from_conv(conv, rank=3, kernel="covariance", seed=10),
    ),
    "in_half": ({}, lambda conv: SKConv2d.from_conv(conv, rank=2, seed=11).half()),
    "in_double": ({}, lambda conv: FreshConv2d.from_conv(conv.double(), buckets=50, seed=12)),
}

# The same for fully connected layers from 10 to 12 features.
LINEARS: dict[str, Convert | None] = {
    "plain": None,
    "sketch": lambda linear: SKLinear.from_linear(linear, rank=2, seed=13),
    "blocks": lambda linear: SKLinear.from_linear(
        linear, rank=1, num_sketches=2, blocks=2, seed=14
    ),
    "low_rank": lambda linear: LowRankLinear.from_linear(linear, 3),
    "hashed": lambda linear: HashedLinear.from_linear(linear, buckets=30, seed=15),
    "dictionary": lambda linear: DictionaryLinear.from_linear(
        linear, rank=4, kernel="covariance", seed=16
    ),
    "brain": lambda linear: SKLinear.from_linear(linear, rank=1, seed=17).bfloat16(),
}


class Network(nn.Module):
    """Every layer on its own, two that are one, tied weights, and tensors outside of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.ModuleDict(
            {
                name: nn.Conv2d(8, 12, 3, **arguments)
                for name, (arguments, _) in CONVOLUTIONS.items()
            }
        )
        self.linear = nn.ModuleDict({name: nn.Linear(10, 12) for name in LINEARS})
        self.norm = nn.BatchNorm2d(12)
        self.shared = nn.Linear(10, 10)
        self.again = nn.Sequential(self.shared, nn.ReLU(), self.shared)
        self.tied = nn.Linear(10, 10, bias=False)
        self.tied_too = nn.Linear(10, 10, bias=False)
        self.tied_too.weight = self.tied.weight
        self.gain = nn.Parameter(torch.randn(3))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("floor", torch.tensor(-torch.inf))

    def outputs(self) -> dict[str, Tensor]:
        """What the layers make of an input that is always the same."""
        image = torch.linspace(-1, 1, 8 * 5 * 6).reshape(1, 8, 5, 6).sin()
        row = torch.linspace(-1, 1, 20).reshape(2, 10)
        outputs = {}
        for name, layer in self.conv.items():
            outputs[f"conv.{name}"] = layer(image.to(next(layer.parameters()).dtype))
        for name, layer in self.linear.items():
            outputs[f"linear.{name}"] = layer(row.to(next(layer.parameters()).dtype))
        outputs["norm"] = self.norm(outputs["conv.plain"])
        outputs["again"] = self.again(row)
        outputs["tied"] = self.tied(row) + self.tied_too(row)
        return outputs


def compressed(seed: int = 0) -> Network:
    """The network with every layer of every kind in its place; in evaluation mode."""
    torch.manual_seed(seed)
    network = Network().eval()
    for name, (_, convert) in CONVOLUTIONS.items():
        if convert is not None:
            network.conv[name] = convert(network.conv[name])
    for name, convert in LINEARS.items():
        if convert is not None:
            network.linear[name] = convert(network.linear[name])
    network.shared = SKLinear.from_linear(network.shared, rank=2, seed=18)
    network.again[0] = network.again[2] = network.shared
    network.conv["spatial"].path = "factored"
    network.norm.running_mean.normal_()
    return network


class Tiny(nn.Module):
    """Three layers: small enough to be damaged thousands of times."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.classifier = nn.Linear(4, 4)


def tiny() -> Tiny:
    """Compressed."""
    torch.manual_seed(0)
    network = Tiny().eval()
    network.features = SKConv2d.from_conv(network.features, rank=1, seed=3)
    network.classifier = DictionaryLinear.from_linear(network.classifier, rank=2, seed=4)
    return network
