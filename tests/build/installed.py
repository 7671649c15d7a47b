"""Run by `make dist-test`, in an environment with a wheel and what it asks for and nothing else.

With --without-extension the wheel is the one that has no compiled extension.

There are no torchvision and pytest there: what the package promises must do without.
"""

from __future__ import annotations

import importlib.metadata
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import sketchlayers


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip


def check_files() -> None:
    package = Path(sketchlayers.__file__).parent
    assert "site-packages" in package.parts, f"this is not the installed package: {package}"
    assert (package / "py.typed").exists(), "type checkers find no py.typed"
    version = importlib.metadata.version("sketchlayers")
    assert version == sketchlayers.__version__, (version, sketchlayers.__version__)


def check_training() -> None:
    model, _ = sketchlayers.compress(network(), method="sketch", rate=0.3, init="random")
    images, labels = torch.randn(8, 3, 16, 16), torch.randint(10, (8,))
    optimizer = torch.optim.SGD(sketchlayers.param_groups(model, lr=0.05), momentum=0.9)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0], losses


def check_compression(folder: Path) -> None:
    images = torch.randn(16, 3, 16, 16)
    small, report = sketchlayers.compress(network().eval(), rate=0.5, calibration=[images])
    assert "rate" in str(report)
    sketchlayers.save(small, folder / "small.safetensors")
    again = sketchlayers.load(folder / "small.safetensors", into=network().eval())
    with torch.no_grad():
        assert torch.equal(again(images), small(images))
        torch.testing.assert_close(sketchlayers.fold(small)(images), small(images))


if __name__ == "__main__":
    torch.manual_seed(0)
    check_files()
    if "--without-extension" not in sys.argv:
        check_training()
    with tempfile.TemporaryDirectory() as name:
        check_compression(Path(name))
    print(f"sketchlayers {sketchlayers.__version__} works as it was installed.")
