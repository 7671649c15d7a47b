"""How long a compressed network takes to load, beside its dense state dict.

    python experiments/load_time.py                     # ResNet-50 at rate 0.5

Each round times, in turn, on files in the page cache:

- "state dict": ``torch.load`` of the dense state dict, with ``weights_only=True``;
- "dense": the same, loaded into the network;
- "compressed": ``sketchlayers.load`` of the compressed network into the dense one.

Printed are medians, and medians of the rounds' ratios with quartiles.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torchvision import models

import sketchlayers
from distributed import alone
from sketchlayers.bench.timing import quartiles

GOAL = 1.2
"""Times the dense state dict's."""


def main() -> None:
    """Measures and prints."""
    alone()
    parser = argparse.ArgumentParser(description="Times loading a compressed network.")
    parser.add_argument("--network", default="resnet50", help="torchvision's name (resnet50)")
    parser.add_argument("--method", nargs="+", default=["tucker2", "sketch"], help="of compress")
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, help="where to put the files for the while")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dense = models.get_model(args.network, weights=None).eval()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        torch.save(dense.state_dict(), folder / "dense.pt")
        for method in args.method:
            small, _ = sketchlayers.compress(dense, method, rate=args.rate, init="random")
            path = sketchlayers.save(small, folder / "small.safetensors")
            size = path.stat().st_size / (folder / "dense.pt").stat().st_size
            print(f"{args.network}, {method} at {args.rate:g}: {size:.2f} of the dense file's size")
            compare(dense, folder / "dense.pt", path, args.rounds)


def compare(dense: nn.Module, state_dict: Path, compressed: Path, rounds: int) -> None:
    """Times all three and prints a line for each."""
    times: dict[str, list[float]] = {"state dict": [], "dense": [], "compressed": []}
    for _ in range(rounds + 1):
        network = copy.deepcopy(dense)
        times["state dict"].append(seconds(partial(torch.load, state_dict, weights_only=True)))
        times["dense"].append(seconds(partial(load_dense, network, state_dict)))
        times["compressed"].append(seconds(partial(sketchlayers.load, compressed, network)))
    for contender, taken in times.items():
        del taken[0]  # warms up
        line = f"  {contender:<11} {1e3 * statistics.median(taken):7.1f} ms"
        if contender == "compressed":
            for other in ("state dict", "dense"):
                pairs = zip(taken, times[other], strict=True)
                ratio = quartiles([own / theirs for own, theirs in pairs])
                line += f"; {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) of {other}"
            line += f" (goal {GOAL})"
        print(line, flush=True)


def load_dense(network: nn.Module, path: Path) -> None:
    """The usual way."""
    network.load_state_dict(torch.load(path, weights_only=True))


def seconds(call: Callable[[], object]) -> float:
    """That one call takes."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
