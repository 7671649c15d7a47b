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
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch
from torch import nn
from torchvision import models

import sketchlayers
from options import add_options, documented_parser
from sketchlayers.bench.timing import quartiles

SMALL = "squeezenet1_1"
"""What is loaded first."""


@dataclass(frozen=True)
class Files:
    """A network's, in a folder: its dense state dict, and itself compressed."""

    network: str
    folder: Path

    @property
    def dense(self) -> Path:
        """Of ``torch.save``."""
        return self.folder / f"{self.network}.pt"

    @property
    def compressed(self) -> Path:
        """Of ``sketchlayers.save``."""
        return self.folder / f"{self.network}.safetensors"

    def make(self) -> nn.Module:
        """The network as its class makes it."""
        return models.get_model(self.network, weights=None).eval()

    def write(self, method: str, rate: float) -> None:
        """Both files, of random weights."""
        dense = self.make()
        small, _report = sketchlayers.compress(dense, method, rate=rate, init="random")
        torch.save(dense.state_dict(), self.dense)
        sketchlayers.save(small, self.compressed)
        if self.network != SMALL:
            part = self.compressed.stat().st_size / self.dense.stat().st_size
            print(f"{self.network}, {method} at {rate}: {part:.2f} of the dense file's size")


CONTENDERS: dict[str, Callable[[Files, nn.Module], object]] = {
    "state dict": lambda files, _: torch.load(files.dense, weights_only=True),
    "dense": lambda files, network: network.load_state_dict(
        torch.load(files.dense, weights_only=True)
    ),
    "compressed": lambda files, network: sketchlayers.load(files.compressed, network),
}


def seconds(contender: str, files: Files) -> float:
    """That one call takes, without the collection of others' garbage, as in `timeit`."""
    network = files.make()
    gc.collect()
    gc.disable()
    try:
        begin = time.perf_counter()
        CONTENDERS[contender](files, network)
        return time.perf_counter() - begin
    finally:
        gc.enable()


def first_seconds(
    answer: SimpleQueue[float], contender: str, files: Files, small: Files, threads: int
) -> None:
    """In a process of its own."""
    torch.set_num_threads(threads)
    seconds(contender, small)
    answer.put(seconds(contender, files))


def in_process(contender: str, files: Files, small: Files, threads: int) -> float:
    """Seconds in a new process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision.models", "sketchlayers"])
    answer: SimpleQueue[float] = context.SimpleQueue()
    process = context.Process(target=first_seconds, args=(answer, contender, files, small, threads))
    process.start()
    taken = answer.get()
    process.join()
    return taken


def compare(rounds: int, measure: Callable[[str], float]) -> None:
    """Times all three and prints a line for each."""
    times: dict[str, list[float]] = {contender: [] for contender in CONTENDERS}
    order = random.Random(0)
    for _ in range(rounds):
        for contender in order.sample(list(CONTENDERS), len(CONTENDERS)):
            times[contender].append(measure(contender))
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
        files, small = Files(args.network, Path(name)), Files(SMALL, Path(name))
        for method in args.method:
            files.write(method, args.rate)
            small.write(method, args.rate)
            print("  first load of a process")
            compare(args.rounds, lambda one: in_process(one, files, small, args.threads))
            print("  further loads of one process")
            for contender in CONTENDERS:
                seconds(contender, files)  # warms up
            compare(args.rounds, lambda one: seconds(one, files))
