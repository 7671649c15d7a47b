"""Networks whose parameters are whole numbers of a few bits times scales."""

from __future__ import annotations

import torch
from torch import nn

from sketchlayers.compression.fitting.rounding import round_layer
from sketchlayers.nn import LowRankConv2d, TuckerConv2d
from sketchlayers.nn._rounding import roundings

from .networks import Tiny, tiny


class Several(nn.Module):
    """Layers of several kinds, in several numbers of bits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1)
        self.grouped = nn.Conv2d(6, 6, 3, groups=3)
        self.norm = nn.BatchNorm2d(6)
        self.tucker = nn.Conv2d(6, 8, 3)
        self.low_rank = nn.Conv2d(8, 8, 3)
        self.linear = nn.Linear(8, 5)
        self.table = nn.Embedding(7, 3)
        self.plain = nn.Linear(5, 3)
        self.gain = nn.Parameter(torch.randn(3))


def several(seed: int = 0) -> Several:
    """Rounded, but for ``plain``; in evaluation mode."""
    torch.manual_seed(seed)
    network = Several().eval()
    network.tucker = TuckerConv2d.from_conv(network.tucker, (3, 4))
    network.low_rank = LowRankConv2d.from_conv(network.low_rank, 3)
    round_layer(network.conv, 4)
    round_layer(network.grouped, 3, group_size=9)
    round_layer(network.tucker, 5)
    round_layer(network.low_rank, 2)
    round_layer(network.linear, 8)
    round_layer(network.table, 11)
    network.norm.running_mean.normal_()
    return network


BITS = {
    "conv.weight": 4,
    "grouped.weight": 3,
    "tucker.input.weight": 5,
    "tucker.core.weight": 5,
    "tucker.output.weight": 5,
    "linear.weight": 8,
    "table.weight": 11,
}
"""Of `several`, but for the factors of ``low_rank``."""


def tiny_rounded() -> Tiny:
    """`tiny`, with numbers of 3 bits in one layer and of 8 in the other."""
    network = tiny()
    round_layer(network.features, 3)
    round_layer(network.classifier, 8)
    return network


def assert_noted(network: nn.Module, expected: nn.Module) -> None:
    """The same notes, and they hold."""
    found, wanted = dict(roundings(network)), dict(roundings(expected))
    assert found.keys() == wanted.keys() and found
    for name, one in wanted.items():
        assert found[name].bits == one.bits and torch.equal(found[name].scale, one.scale), name
        assert found[name].integers(network.get_parameter(name)) is not None, name
