"""Calibrates in every process of a job; what each got goes into a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

import sketchlayers

BUDGET = 100_000  # several passes


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, groups=2),
        nn.Flatten(),
        nn.Linear(12 * 9, 10),
    )


def batches(rank: int) -> list[Tensor]:
    """Parts of different size."""
    images = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return [[images[:2], images[2:3]], [images[3:]]][rank]


class Broken:
    """Fails in the middle."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __iter__(self) -> Iterator[Tensor]:
        yield from batches(self.rank)
        if self.rank == 1:
            raise OSError("the disk is gone")


def main(out: Path) -> None:
    rank = dist.get_rank()
    model = network()
    whole = sketchlayers.calibrate(model, batches(rank))
    whole.save(out / f"whole-{rank}.safetensors")
    passes = sketchlayers.calibrate(model, batches(rank), memory_budget=BUDGET)
    passes.save(out / f"passes-{rank}.safetensors")
    more = sketchlayers.calibrate(model, batches(rank) if rank else [], into=whole)
    more.save(out / f"more-{rank}.safetensors")
    alone = sketchlayers.calibrate(model, batches(rank), distributed=False)
    alone.save(out / f"alone-{rank}.safetensors")
    failures = []
    for loader, budget in (
        (Broken(rank), 2**30),
        ([], 2**30),
        (iter(batches(rank)) if rank else batches(rank), BUDGET),
        (batches(rank), BUDGET + rank * 2**30),
    ):
        try:
            sketchlayers.calibrate(model, loader, memory_budget=budget)
        except Exception as error:
            failures.append(f"{type(error).__name__}: {error}")
    (out / f"failures-{rank}.txt").write_text("\n".join(failures))
