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
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from common.distributed import alone
from common.speed import compared, measure_all, sgd_step
from common.stopping import exit_code
from common.tables import Column, decimals, speed_columns
from networks import count_parameters, googlenet_bn, ninn
from options import add_options, documented_parser
from sketchlayers import compress, optimize_for_inference
from sketchlayers.bench import plot
from sketchlayers.bench.memory import allocation_peak, held_bytes, inference_memory, tensor_bytes
from sketchlayers.bench.table import Format, machine
from sketchlayers.bench.timing import Step, fastest, inference, paired_times, synchronize
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
)


@dataclass(frozen=True)
class Subject:
    """A network, how it is compressed and at which batches it is measured.

    Attributes:
        build: makes the dense network.
        size: height and width of its images.
        rate: parameters after / before, of the whole network.
        batches: in either mode.
        mixings: one sketched network each.
    """

    build: Callable[[], nn.Module]
    size: int
    rate: float
    batches: tuple[int, ...]
    mixings: tuple[Mixing, ...] = ("channel",)


SUBJECTS = {
    "ninn": Subject(ninn, size=32, rate=0.15, batches=(64,), mixings=("channel", "spatial")),
    "googlenet_bn": Subject(googlenet_bn, size=224, rate=0.2, batches=(16, 1)),
    "resnet18": Subject(resnet18, size=224, rate=0.2, batches=(16, 1)),
}


@dataclass(frozen=True)
class Contender:
    """A network in a memory format, with the images that it gets."""

    method: str
    format: Format
    network: nn.Module
    images: Tensor

    def step(self, mode: str) -> Step:
        """What is timed."""
        if mode == "forward":
            return inference(self.network, self.images)
        return sgd_step(self.network, self.images)[0]

    def memory(self, mode: str) -> int:
        """Peak bytes of a call, parameters, buffers, optimiser and images counted."""
        if mode == "forward":
            return inference_memory(self.network, self.images)
        step, optimizer = sgd_step(self.network, self.images)
        step()
        self.network.zero_grad(set_to_none=True)
        states = (value for state in optimizer.state.values() for value in state.values())
        held = held_bytes(self.network, self.images)
        held += tensor_bytes(*(value for value in states if isinstance(value, Tensor)))
        return held + allocation_peak(step, self.images.device)


def measure(
    name: str, mode: str, batch: int, args: argparse.Namespace, device: torch.device
) -> list[dict[str, Any]]:
    """Times a network and its sketched forms in turn: rows of these against the faster dense one.

    Times are medians in milliseconds, speeds and peak memory relative to dense; the rate is that of
    the parameters as counted.
    """
    contenders = list(build(SUBJECTS[name], mode, batch, args, device))
    steps = [contender.step(mode) for contender in contenders]
    times = paired_times(steps, args.seconds, device, least=LEAST_ROUNDS)
    synchronize(device)
    memory = [contender.memory(mode) for contender in contenders]
    best = fastest(times[:2])  # of the dense ones
    parameters, least = count_parameters(contenders[best].network), memory[best]
    return [
        {
            "layer": name,
            "method": contender.method,
            "format": contender.format,
            "mode": mode,
            "batch": batch,
            "rate": count_parameters(contender.network) / parameters,
            "dense_format": contenders[best].format,
            **compared(times[best], own),
            "memory": peak / least,
        }
        for contender, own, peak in list(zip(contenders, times, memory, strict=True))[2:]
    ]


def build(
    subject: Subject, mode: str, batch: int, args: argparse.Namespace, device: torch.device
) -> Iterator[Contender]:
    """Dense in both formats, then every compressed form, ready to train from scratch."""
    torch.manual_seed(0)
    dense = subject.build()
    dtype = getattr(torch, args.dtype or "float32")
    images = torch.randn(batch, 3, subject.size, subject.size)

    def contender(method: str, fmt: Format, network: nn.Module) -> Contender:
        layout = torch.channels_last if fmt == "nhwc" else torch.contiguous_format
        return Contender(
            method,
            fmt,
            copy.deepcopy(network).to(device, dtype).to(memory_format=layout),
            images.to(device, dtype, memory_format=layout),
        )

    yield contender("dense", "nchw", dense)
    yield contender("dense", "nhwc", dense)
    formats: tuple[Format, ...] = ("nchw", "nhwc") if args.channels_last else ("nchw",)
    for mixing in subject.mixings:
        sketched, _ = compress(
            dense,
            rate=subject.rate,
            example_inputs=images[:1],
            init="random",
            seed=0,
            mixing=mixing,
        )
        for fmt in formats:
            own = contender(mixing, fmt, sketched)
            yield own
            if args.optimized and mode == "forward":
                network, _ = optimize_for_inference(own.network, own.images)
                yield contender(f"optimized {mixing}", fmt, network)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0 on success, 2 for arguments that cannot be used."""
    alone()
    parser = documented_parser(__doc__)
    parser.add_argument(
        "--networks", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), help="all by default"
    )
    add_options(parser, "--plan")
    parser.add_argument(
        "--optimized", action="store_true", help="optimize_for_inference as well, in inference"
    )
    parser.add_argument(
        "--channels-last", action="store_true", help="the sketched networks in both memory formats"
    )
    add_measurement_arguments(parser, seconds=20.0)
    args = parser.parse_args(arguments)
    return exit_code(lambda: _run(args))


def _run(args: argparse.Namespace) -> None:
    device = check_measurement_arguments(args)
    measurements = [
        (name, mode, batch)
        for name in args.networks
        for mode in ("forward", "training")
        for batch in SUBJECTS[name].batches
    ]
    if args.plan:
        for name, mode, batch in measurements:
            subject = SUBJECTS[name]
            print(
                f"{name} at rate {subject.rate:g}, {' and '.join(subject.mixings)} mixing, "
                f"{subject.size}x{subject.size}, {mode}, batch {batch}"
            )
        print(f"{len(measurements)} measurements of {args.seconds:g} s or {LEAST_ROUNDS} rounds")
        return
    dtype = args.dtype or "float32"
    head = f"{dtype}, {machine(device)}, PyTorch {torch.__version__}"
    print(head, flush=True)
    rows = measure_all(
        (measure(*measurement, args, device) for measurement in measurements),
        COLUMNS,
        args.csv,
        {"dtype": dtype, "hardware": machine(device)},
    )
    if args.png:
        plot.write_png(args.png, [SimpleNamespace(**row) for row in rows], head)
        print(f"drawn in {args.png}")


if __name__ == "__main__":
    sys.exit(main())
