"""A small trained network, and a command of zero_shot.py's for it."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import nn

from networks import CifarResNet

Rows = list[dict[str, str]]


def write_weights(path: Path, network: nn.Module) -> str:
    torch.save({"state_dict": network.state_dict()}, path)
    return str(path)


def read(path: Path) -> Rows:
    with open(path) as file:
        return list(csv.DictReader(file))


def on_digits(folder: Path, *more: str) -> list[str]:
    """A command for ResNet-8 on digits of 16x16 pixels, results in results.csv."""
    weights = write_weights(folder / "weights.pt", CifarResNet(8))
    return [
        *("--network=resnet8", f"--weights={weights}", "--data=digits", "--size=16"),
        *("--images=60", "--calibration-images=40", f"--csv={folder / 'results.csv'}"),
        *more,
    ]
