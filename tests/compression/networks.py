"""Small networks that the tests of this folder share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import sketchlayers
from sketchlayers.compression import Compressed


class Small(nn.Module):
    """Convolutions and linear layers of several kinds; takes (N, 3, 12, 12)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.body = nn.Sequential(
            nn.Conv2d(16, 32, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2, padding=1, groups=2),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1, groups=32),
        )
        self.head = nn.Linear(32, 40)
        self.classifier = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.norm(self.first(x)).relu()).mean((2, 3))
        return self.classifier(self.head(x).relu())


def network(seed: int = 0) -> nn.Sequential:
    """Three convolutions and a linear layer; takes (N, 3, 8, 8)."""
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)),
    ).eval()


class OutOfOrder(nn.Module):
    """Runs its layers in another order than it registers them, and never calls one."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(24, 24)
        self.unused = nn.Linear(24, 24)
        self.early = nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.early(x).relu()) + self.last(x)


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 12, 12)


def random_init(model: nn.Module, rate: object, **options: object) -> Compressed:
    """`compress` for training from scratch: nothing to fit, so nothing to warn of."""
    return sketchlayers.compress(model, rate=rate, init="random", **options)


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of all tensors, to compare with later."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_unchanged(model: nn.Module, modules: list[nn.Module], state: dict[str, Tensor]) -> None:
    """The same modules hold the same values as before."""
    assert list(model.modules()) == modules
    now = model.state_dict()
    assert now.keys() == state.keys()
    for name, tensor in now.items():
        assert torch.equal(tensor, state[name]) or (tensor.isnan() == state[name].isnan()).all()
