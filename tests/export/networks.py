"""The network that the tests of this folder compress, by every method."""

from __future__ import annotations

import torch
from selection import slow_except
from torch import Tensor, nn

import sketchlayers


class Network(nn.Module):
    """Convolutions and fully connected layers; takes ``(N, 3, H, W)`` of any size from 4x4."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.body = nn.Sequential(
            nn.Conv2d(16, 24, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(24, 32, 3, stride=2, padding=1, groups=2),
            nn.ReLU(),
            nn.Conv2d(32, 32, 1),
        )
        self.head = nn.Linear(32, 48)
        self.classifier = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.norm(self.first(x)).relu()).relu().mean((2, 3))
        return self.classifier(self.head(x).relu())


METHODS: dict[str, tuple[str, dict[str, object]]] = {
    "spatial": ("sketch", {}),
    "channel": ("sketch", {"mixing": "channel"}),
    "blocks": ("sketch", {"mixing": "channel", "blocks": 4, "signs": "hadamard"}),
    "frame": ("sketch", {"frame": "signs"}),
    "hashednet": ("hashednet", {}),
    "freshnet": ("freshnet", {}),
    "dictionary": ("dictionary", {"num_columns": 2}),
    "lowrank": ("lowrank", {}),
    "tucker2": ("tucker2", {}),
    "cp": ("cp", {}),
    "svd": ("svd", {}),
}
OWN_OPERATORS = ["spatial", "channel", "blocks", "frame", "hashednet", "freshnet"]
"""Those whose layers call operators of this package; the others are of PyTorch's layers alone."""
KINDS = slow_except(
    ["channel", "frame", "hashednet", "tucker2"], [*OWN_OPERATORS, "dictionary", "tucker2"]
)
"""One of each kind of layer, for what takes seconds: parameters of tests."""


def images(count: int = 4, size: int = 8) -> Tensor:
    return torch.randn(count, 3, size, size)


def compressed(name: str, rate: float = 0.5) -> nn.Module:
    """The network by one of `METHODS`, in eval mode, with some history of batch norm."""
    method, options = METHODS[name]
    small, _ = sketchlayers.compress(Network(), method, rate=rate, init="random", seed=0, **options)
    small(images(16))
    return small.eval()
