"""The same seed, threads and path give the same bits, run after run."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import sketchlayers
from sketchlayers import FreshConv2d, SKConv2d, SKLinear


def tensors(threads: int) -> Iterator[Tensor]:
    """What a few training steps come to, and with one thread two conversions."""
    torch.set_num_threads(threads)
    for path in ("factored", "folded"):
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(0)
            model = nn.Sequential(
                SKConv2d(8, 24, 3, padding=1, rank=2, seed=1),
                SKConv2d(24, 24, 3, stride=2, rank=2, mixing="channel", blocks=2, seed=2),
                nn.Flatten(),
                SKLinear(24 * 9, 40, rank=3, seed=3),
            ).to(dtype)
            for i in (0, 1, 3):
                model[i].path = path
            model.append(FreshConv2d(40, 8, 3, padding=1, rate=0.3, seed=4).to(dtype))
            model.insert(4, nn.Unflatten(1, (40, 1, 1)))
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
            for _ in range(2):
                model(torch.randn(5, 8, 8, 8, dtype=dtype)).square().sum().backward()
                optimizer.step()
            yield from model.state_dict().values()
    if threads > 1:
        return
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 24, 3))
    batches = [torch.randn(4, 3, 9, 9)]
    few = {"starts": 2, "max_sweeps": 20}
    small, _ = sketchlayers.compress(dense, "cp", rate=0.5, calibration=batches, seed=1, **few)
    yield from small.state_dict().values()
    small, _ = sketchlayers.compress(dense, rate={"2": 0.5}, init="random", seed=2)
    yield from small.state_dict().values()


def checksum(threads: int) -> int:
    crc = 0
    for tensor in tensors(threads):
        assert tensor.isfinite().all()
        crc = zlib.crc32(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy(), crc)
    return crc


@pytest.fixture(autouse=True)
def threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_here_and_in_another_process(threads):
    first = checksum(threads)
    program = f"from robustness.test_determinism import checksum; print(checksum({threads}))"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "PYTHONHASHSEED": "7",
    }
    found = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(found.stdout) == first


def test_another_seed_gives_other_bits():
    torch.manual_seed(0)
    x = torch.randn(2, 16)
    outputs = []
    for seed in (1, 2):
        torch.manual_seed(0)
        outputs.append(SKLinear(16, 16, rank=2, seed=seed)(x))
    assert not torch.equal(*outputs)
