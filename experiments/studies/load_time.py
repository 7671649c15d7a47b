"""How long a compressed network takes to load, beside its dense state dict.

    python experiments/study.py load_time                     # ResNet-50 at rate 0.5

Each round times, in a random order, on files in the page cache:

- "state dict": ``torch.load`` of the dense state dict, with ``weights_only=True``;
- "dense": the same, loaded into the network;
- "compressed": ``sketchlayers.load`` of the compressed network into the dense one.

First as a program does it when it starts: each in a process of its own, whose memory is new; all
modules are imported, and a small network has been loaded. Then again and again in one process,
whose memory is that of earlier rounds. Printed are medians, and medians of the rounds' ratios with
quartiles.

Found: a compressed ResNet-50 loads in 0.87 (Tucker-2) and 1.18 times (sketches) of the dense
network's time, the latter in 1.30 times that of ``torch.load`` alone (docs/file_format.md).
"""

from __future__ import annotations

import gc
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import nn
from torchvision import models

import sketchlayers
from options import add_options, documented_parser
from sketchlayers.bench.timing import quartiles

SMALL = "squeezenet1_1"
"""What is loaded first."""

CONTENDERS: dict[str, Callable[[Path, nn.Module], object]] = {
    "state dict": lambda file, _: torch.load(file.with_suffix(".pt"), weights_only=True),
    "dense": lambda file, network: network.load_state_dict(
        torch.load(file.with_suffix(".pt"), weights_only=True)
    ),
    "compressed": sketchlayers.load,
}
"""By the path of the compressed file, which has the network's name and the dense one beside it."""


def written(network: str, folder: Path, method: str, rate: float) -> Path:
    """Writes a network of random weights, dense and compressed; the path of the latter."""
    file = folder / f"{network}.safetensors"
    dense = models.get_model(network, weights=None)
    torch.save(dense.state_dict(), file.with_suffix(".pt"))
    small, _ = sketchlayers.compress(dense, method, rate=rate, init="random")
    sketchlayers.save(small, file)
    return file


def seconds(contender: str, file: Path) -> float:
    """That one call takes, without the collection of others' garbage, as in `timeit`."""
    network = models.get_model(file.stem, weights=None).eval()
    gc.collect()
    gc.disable()
    try:
        begin = time.perf_counter()
        CONTENDERS[contender](file, network)
        return time.perf_counter() - begin
    finally:
        gc.enable()


def first_seconds(contender: str, file: Path, small: Path, threads: int) -> float:
    """The same in a process that has loaded nothing but a small network."""
    torch.set_num_threads(threads)
    seconds(contender, small)
    return seconds(contender, file)


def in_process(contender: str, file: Path, small: Path, threads: int) -> float:
    """`first_seconds` in a new process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision.models", "sketchlayers"])
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(first_seconds, contender, file, small, threads).result()


def compare(rounds: int, measure: Callable[..., float], *arguments: object) -> None:
    """Times all three and prints a line for each."""
    times: dict[str, list[float]] = {contender: [] for contender in CONTENDERS}
    order = random.Random(0)
    for _ in range(rounds):
        for contender in order.sample(list(CONTENDERS), len(CONTENDERS)):
            times[contender].append(measure(contender, *arguments))
    for contender, taken in times.items():
        line = f"    {contender:<11} {1e3 * statistics.median(taken):7.1f} ms"
        if contender == "compressed":
            for other in ("state dict", "dense"):
                pairs = zip(taken, times[other], strict=True)
                ratio = quartiles([own / theirs for own, theirs in pairs])
                line += f"; {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) of {other}"
        print(line, flush=True)


def main(arguments: Sequence[str]) -> None:
    """Runs the study."""
    parser = documented_parser(__doc__)
    parser.add_argument("--network", default="resnet50", help="torchvision's name (resnet50)")
    parser.add_argument("--method", nargs="+", default=["tucker2", "sketch"], help="of compress")
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, help="where to put the files for the while")
    add_options(parser, "--threads", threads=torch.get_num_threads())
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        for method in args.method:
            file, small = (
                written(network, Path(name), method, args.rate) for network in (args.network, SMALL)
            )
            part = file.stat().st_size / file.with_suffix(".pt").stat().st_size
            print(f"{file.stem}, {method} at {args.rate}: {part:.2f} of the dense file's size")
            print("  first load of a process")
            compare(args.rounds, in_process, file, small, args.threads)
            print("  further loads of one process")
            for contender in CONTENDERS:
                seconds(contender, file)  # warms up
            compare(args.rounds, seconds, file)
