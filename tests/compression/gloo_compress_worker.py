"""Compresses in every process of a job; what each got goes into a folder."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import sketchlayers
from sketchlayers.compression import Refinement

VARIANTS: dict[str, dict[str, Any]] = {
    "closed form": {"rate": 0.5, "sensitivity": False},
    "defaults": {"rate": 0.5},
    "finished": {
        "rate": 0.5,
        "reestimate_batch_norm": True,
        "refine": Refinement(epochs=2, batch_size=4, seconds=60.0),
    },
    "latency": {"latency_rate": 1.0},
    "own seeds": {
        "rate": 0.5,
        "seed": None,
        "refine": Refinement(epochs=1, batch_size=4),
    },
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, stride=2),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 10),
    )


def batches(rank: int) -> list[Tensor]:
    """Parts of different size."""
    images = torch.randn(40, 3, 14, 14, generator=torch.Generator().manual_seed(1))
    return [list(images[:16].split(8)), list(images[16:].split(8))][rank]


def compressed(calibration: list[Tensor], variant: str) -> tuple[nn.Module, float | None]:
    """The smaller network, and the change of its outputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a network of random weights is poor
        arguments = {"seed": 0, **VARIANTS[variant]}
        result = sketchlayers.compress(network(), "tucker2", calibration=calibration, **arguments)
    return result.model, result.report.output_change


def main(out: Path) -> None:
    rank = dist.get_rank()
    torch.manual_seed(rank)
    for variant in VARIANTS:
        model, change = compressed(batches(rank), variant)
        torch.save({"state": model.state_dict(), "change": change}, out / f"{variant}-{rank}.pt")
    failures = []
    for calibration, rate in (([] if rank else batches(0), 0.5), (batches(rank), 0.5 + rank / 10)):
        try:
            sketchlayers.compress(network(), "svd", rate=rate, calibration=calibration)
        except Exception as error:
            failures.append(f"{type(error).__name__}: {error}")
    (out / f"failures-{rank}.txt").write_text("\n".join(failures))
