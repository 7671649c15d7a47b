"""Trains a small sketched network in as many processes as ``torchrun`` started, and saves it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from common.distributed import World, join
from common.runs import RunFolder
from experiment import NetworkSpec, build
from image_data import Augmentation, load
from training import Outcome, Recipe, Trainer


def train(world: World, out: Path) -> Outcome:
    """Without batch norm, augmentation and dropout it does not matter how a batch is shared."""
    data = load("digits", size=8, subset=96, test_subset=41)
    data = replace(data, augmentation=Augmentation(padding=0, flip=False))
    spec = NetworkSpec(width=0.1, batch_norm=False, dropout=0.0, method="sketch", rate=0.5)
    folder = RunFolder(out)
    if world.is_main:
        folder.prepare(resume=False)
    world.wait()
    network = build(spec, 10).network
    trainer = Trainer(
        network, data, Recipe(epochs=2, batch_size=16, lr=0.02), world=world, folder=folder
    )
    outcome = trainer.fit()
    flat = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    difference = world.total(flat) / world.size - flat
    assert difference.abs().max() == 0, "processes ended with different weights"
    return outcome


if __name__ == "__main__":
    torch.set_num_threads(1)
    with join("cpu") as joined:
        train(joined, Path(sys.argv[1]))
