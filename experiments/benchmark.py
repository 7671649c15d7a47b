"""Times whole networks, dense against sketched.

    python experiments/benchmark.py --plan                       what would be measured
    python experiments/benchmark.py --threads 2 --csv networks.csv --png networks.png
    python experiments/benchmark.py --networks ninn --optimized  optimize_for_inference as well

Inference is a forward call in eval mode without gradients. Training is a whole step: forward, cross
entropy, backward and SGD with momentum. All contenders take turns in one process; a speed is the
median of the ratios to the faster of the dense network in NCHW and in channels_last.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from common.distributed import alone
from common.runs import versions, write_csv
from common.speed import compared, print_noise, sgd_step
from common.stopping import exit_code
from common.tables import Column, decimals, format_table, speed_columns
from networks import NETWORKS, count_parameters
from options import documented_parser
from sketchlayers import compress, optimize_for_inference
from sketchlayers.bench import plot
from sketchlayers.bench.memory import allocation_peak, held_bytes, inference_memory, tensor_bytes
from sketchlayers.bench.table import Format, machine
from sketchlayers.bench.timing import (
    Step,
    fastest,
    inference,
    paired_times,
    synchronize,
)
from sketchlayers.cli.bench import add_measurement_arguments, check_measurement_arguments
from sketchlayers.ops import Mixing

LEAST_ROUNDS = 5
"""A step takes seconds, so that few rounds must do."""

COLUMNS = (
    Column("layer", "network", left=True),
    Column("method", "method", left=True),
    Column("format", "format", left=True),
    Column("mode", "mode", left=True),
    Column("batch", "batch"),
    Column("rate", "rate", decimals(3)),
    *speed_columns(1),
    Column("memory", "memory", decimals(2)),
    Column("goal", "goal", decimals(2)),
    Column("reached", "reached"),
)


@dataclass(frozen=True)
class Subject:
    """A network, how it is compressed and at which batches it is measured.

    Attributes:
        name: as in ``--networks``.
        build: makes the dense network.
        size: height and width of its images.
        rate: parameters after / before, of the whole network.
        mixings: one sketched network each.
        batches: by mode.
        goals: speeds to reach on a CPU, by mixing, mode and batch.
    """

    name: str
    build: Callable[[], nn.Module]
    size: int
    rate: float
    mixings: tuple[Mixing, ...]
    batches: dict[str, tuple[int, ...]]
    goals: dict[tuple[str, str, int], float]


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject(
            "ninn",
            lambda: NETWORKS["ninn"](10),
            size=32,
            rate=0.15,
            mixings=("channel", "spatial"),
            batches={"forward": (64,), "training": (64,)},
            goals={
                ("channel", "forward", 64): 2.5,
                ("spatial", "forward", 64): 1.0,
                ("channel", "training", 64): 2.2,
                ("spatial", "training", 64): 1.0,
            },
        ),
        Subject(
            "googlenet_bn",
            lambda: NETWORKS["googlenet_bn"](365),
            size=224,
            rate=0.2,
            mixings=("channel",),
            batches={"forward": (16, 1), "training": (16, 1)},
            goals={
                ("channel", "forward", 16): 1.5,
                ("channel", "forward", 1): 1.5,
                ("channel", "training", 16): 1.5,
            },
        ),
        Subject(
            "resnet18",
            lambda: resnet18(num_classes=1000),
            size=224,
            rate=0.2,
            mixings=("channel",),
            batches={"forward": (16, 1), "training": (16, 1)},
            goals={},
        ),
    )
}


@dataclass(frozen=True)
class Measurement:
    """One network at one batch: its contenders take turns."""

    subject: Subject
    mode: str
    batch: int


@dataclass(frozen=True)
class Contender:
    """A network in a memory format, with the images and labels it gets."""

    method: str
    format: Format
    network: nn.Module
    images: Tensor
    labels: Tensor

    def step(self, mode: str) -> Step:
        """What is timed."""
        if mode == "forward":
            return inference(self.network, self.images)
        return sgd_step(self.network, self.images, self.labels)[0]

    def memory(self, mode: str) -> int:
        """Peak bytes of a call, parameters, buffers, optimiser and images counted."""
        if mode == "forward":
            return inference_memory(self.network, self.images)
        step, optimizer = sgd_step(self.network, self.images, self.labels)
        step()
        self.network.zero_grad(set_to_none=True)
        state = [
            value
            for values in optimizer.state.values()
            for value in values.values()
            if isinstance(value, Tensor)
        ]
        held = held_bytes(self.network, self.images) + tensor_bytes(*state)
        return held + allocation_peak(step, self.images.device)


def plan(args: argparse.Namespace) -> list[Measurement]:
    """What the arguments ask for, in order."""
    modes = [args.mode] if args.mode else ["forward", "training"]
    return [
        Measurement(SUBJECTS[name], mode, batch)
        for name in args.networks
        for mode in modes
        for batch in args.batch or SUBJECTS[name].batches[mode]
    ]


def measure(
    measurement: Measurement, args: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    """Times a network and its sketched forms in turn: rows of these against the faster dense one.

    Times are medians in milliseconds, speeds and peak memory relative to dense; the rate is that of
    the parameters as counted.
    """
    subject, mode, batch = measurement.subject, measurement.mode, measurement.batch
    contenders = list(build(measurement, args, device))
    steps = [contender.step(mode) for contender in contenders]
    times = paired_times(steps, args.seconds, device, least=LEAST_ROUNDS)
    synchronize(device)
    memory = [None if args.no_memory else contender.memory(mode) for contender in contenders]
    dense = [i for i, contender in enumerate(contenders) if contender.method == "dense"]
    best = dense[fastest([times[i] for i in dense])]
    parameters, least = count_parameters(contenders[best].network), memory[best]
    rows = []
    for contender, own, peak in zip(contenders, times, memory, strict=True):
        if contender.method == "dense":
            continue
        goal = subject.goals.get((contender.method, mode, batch)) if device.type == "cpu" else None
        cells = compared(times[best], own)
        rows.append(
            {
                "layer": subject.name,
                "method": contender.method,
                "format": contender.format,
                "mode": mode,
                "batch": batch,
                "rate": count_parameters(contender.network) / parameters,
                "dense_format": contenders[best].format,
                **cells,
                "memory": peak / least if peak and least else None,
                "goal": goal,
                "reached": None if goal is None else "yes" if cells["speed"] >= goal else "no",
            }
        )
    return rows


def build(
    measurement: Measurement, args: argparse.Namespace, device: torch.device
) -> Iterator[Contender]:
    """Dense in both formats, then every compressed form."""
    subject = measurement.subject
    torch.manual_seed(0)
    dense = subject.build()
    dtype = getattr(torch, args.dtype or "float32")
    images = torch.randn(measurement.batch, 3, subject.size, subject.size)

    def contender(method: str, fmt: Format, network: nn.Module) -> Contender:
        layout = torch.channels_last if fmt == "nhwc" else torch.contiguous_format
        return Contender(
            method,
            fmt,
            copy.deepcopy(network).to(device, dtype).to(memory_format=layout),
            images.to(device, dtype, memory_format=layout),
            torch.zeros(measurement.batch, dtype=torch.long, device=device),
        )

    yield contender("dense", "nchw", dense)
    yield contender("dense", "nhwc", dense)
    formats: tuple[Format, ...] = ("nchw", "nhwc") if args.channels_last else ("nchw",)
    for mixing in subject.mixings:
        sketched = sketch(dense, subject, mixing)
        for fmt in formats:
            own = contender(mixing, fmt, sketched)
            yield own
            if args.optimized and measurement.mode == "forward":
                network, _ = optimize_for_inference(own.network, own.images)
                yield contender(f"optimized {mixing}", fmt, network)


def sketch(dense: nn.Module, subject: Subject, mixing: Mixing) -> nn.Module:
    """The network with sketched layers at the subject's rate, ready to train from scratch."""
    size = subject.size
    sketched, _ = compress(
        dense,
        rate=subject.rate,
        example_inputs=torch.zeros(1, 3, size, size),
        init="random",
        seed=0,
        mixing=mixing,
    )
    return sketched


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = documented_parser(__doc__)
    parser.add_argument(
        "--networks", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), help="all by default"
    )
    parser.add_argument("--batch", type=int, nargs="+", help="instead of each network's own")
    parser.add_argument("--mode", choices=["forward", "training"], help="default: both")
    parser.add_argument("--plan", action="store_true", help="say what would be measured and stop")
    parser.add_argument(
        "--optimized", action="store_true", help="optimize_for_inference as well, in inference"
    )
    parser.add_argument(
        "--channels-last", action="store_true", help="the sketched networks in both memory formats"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    add_measurement_arguments(parser, seconds=20.0)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0 on success, 2 for arguments that cannot be used."""
    alone()
    args = parse(arguments)
    return exit_code(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    for batch in args.batch or ():
        if batch < 1:
            raise ValueError(f"--batch: must be at least 1 (got {batch})")
    device = check_measurement_arguments(args)
    measurements = plan(args)
    if args.plan:
        print_plan(measurements, args.seconds)
        return
    print(head(args, device), flush=True)
    rows: list[dict[str, Any]] = []
    for measurement in measurements:
        own = measure(measurement, args, device)
        rows += own
        print("\n" + format_table(own, COLUMNS), flush=True)
    finish(rows, args, device)


def head(args: argparse.Namespace, device: torch.device) -> str:
    """What and where: the first line of the output and the title of the picture."""
    return f"{args.dtype or 'float32'}, {machine(device)}, PyTorch {torch.__version__}"


def print_plan(measurements: Sequence[Measurement], seconds: float) -> None:
    """One line for every measurement."""
    for measurement in measurements:
        subject = measurement.subject
        print(
            f"{subject.name} at rate {subject.rate:g}, {' and '.join(subject.mixings)} mixing, "
            f"{subject.size}x{subject.size}, {measurement.mode}, batch {measurement.batch}"
        )
    print(f"{len(measurements)} measurements of {seconds:g} s or {LEAST_ROUNDS} rounds")


def finish(rows: Sequence[dict[str, Any]], args: argparse.Namespace, device: torch.device) -> None:
    """Notes on noise, and the files that were asked for."""
    print_noise(rows)
    if args.csv:
        label = {"dtype": args.dtype or "float32", "hardware": machine(device), **versions()}
        write_csv(args.csv, [{**row, **label} for row in rows])
        print(f"written to {args.csv}")
    if args.png:
        plot.write_png(Path(args.png), [SimpleNamespace(**row) for row in rows], head(args, device))
        print(f"drawn in {args.png}")


if __name__ == "__main__":
    sys.exit(main())
