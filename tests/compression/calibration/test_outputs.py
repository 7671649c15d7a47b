"""Outputs that are kept from a pass over the images that was made for something else."""

from __future__ import annotations

import torch
from torch import nn

from sketchlayers._runtime.processes import Processes
from sketchlayers.compression.calibration.outputs import KeptOutputs, OriginalOutputs
from sketchlayers.surgery.batches import call_model
from sketchlayers.surgery.sample import Sample


@torch.no_grad()
def test_first_outputs_are_kept_and_not_computed_again() -> None:
    model = nn.Linear(3, 2).eval()
    batches = tuple(torch.randn(4, 3) for _ in range(3))
    kept = KeptOutputs(2, most_bytes=1 << 20)
    forward = kept.through(call_model)
    results = [forward(model, batch) for batch in batches]
    assert [len(target) for target in kept.targets] == [1, 1]
    calls = 0

    def counted(model: nn.Module, batch: object) -> object:
        nonlocal calls
        calls += 1
        return call_model(model, batch)

    alone, sample = Processes("compress", join=False), Sample(batches, counted)
    outputs = OriginalOutputs(model, sample, alone, most_bytes=1 << 20, known=kept.targets)
    assert calls == 1  # of the third batch
    assert outputs.mean_squared_change(results) == 0
    assert outputs.relative_change(model) == 0


@torch.no_grad()
def test_nothing_more_is_kept_than_fits_or_can_be_compared() -> None:
    batch = torch.randn(4, 3)
    kept = KeptOutputs(9, most_bytes=40)
    forward = kept.through(call_model)
    for _ in range(5):
        forward(nn.Linear(3, 2), batch)  # 32 bytes
    assert len(kept.targets) == 2
    kept = KeptOutputs(9, most_bytes=1 << 20)
    for result in ("no tensor", batch):
        kept.through(lambda model, batch, result=result: result)(nn.Identity(), batch)
    assert not kept.targets  # those of a later batch would be taken for the first one's
