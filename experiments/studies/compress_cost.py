r"""Measures what calibration and decomposition cost: seconds of each stage, peak memory.

    python experiments/study.py compress_cost --network resnet50 --data imagenette --root DIR \
        --images 1024 --threads 2
    python experiments/study.py compress_cost --network resnet20 --weights FILE --data cifar10 \
        --root DIR --images 2048 --threads 2

Without --weights the network is drawn at random and its batch norms take their statistics from the
first images: times and memory depend on shapes, hardly on values. Memory is the most that the
process has held since it began, so that one process measures one run.

Found: on two threads of an Intel Xeon half of ResNet-50's parameters take 7.5 minutes and 6.8 GiB
by Tucker-2 with 1,024 images, half of ResNet-18's 3 to 4 minutes by auto with 256, and half of
VGG-16's 13 (docs/compressing.md).
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.swa_utils import update_bn

from common.runs import circumstances, read_csv
from image_data import read_split
from options import add_options, documented_parser
from sketchlayers import methods
from sketchlayers._runtime.files import write_csv
from sketchlayers.cli.kinds import positive
from trained import pretrained
from trained.pictures import drawn
from trained.results import stage_seconds
from trained.variants import quietly_compressed

WARM_UP_IMAGES = 64


def peak() -> float:
    """The most memory that this process has held (resident set), in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def main(arguments: Sequence[str]) -> None:
    """Runs the study."""
    parser = documented_parser(__doc__)
    parser.add_argument("--network", required=True)
    add_options(parser, "--weights", "--data", "--root", "--size", "--batch-size", "--threads")
    parser.add_argument("--images", type=positive, default=1024)
    parser.add_argument("--method", choices=methods.names(), default="tucker2")
    parser.add_argument("--rate", type=float, default=0.5)
    add_options(parser, "--seed", "--csv")
    parser.set_defaults(data="digits", batch_size=None)
    args = parser.parse_args(arguments)
    row = run(args)
    for name, value in row.items():
        if value is not None:
            text = f"{value:.6g}" if isinstance(value, float) else value
            print(f"{name.replace('_', ' '):<20} {text}")
    if args.csv is not None:
        rows: list[dict[str, Any]] = list(read_csv(args.csv)) if args.csv.is_file() else []
        write_csv(args.csv, [*rows, row])


def run(args: argparse.Namespace) -> dict[str, Any]:
    """A row: seconds of each stage, and the most memory that the process has held.

    Raises:
        InputError: images or weights cannot be used.
        ValueError: an argument is out of range.
    """
    random = args.seed if args.weights is None else None
    trained = pretrained.load(args.network, args.weights, random=random)
    chosen = drawn(read_split(args.data, args.root, train=True), args.seed, args.images)
    size = args.size or trained.size
    pictures = trained.pictures(chosen, args.data, size=size, batch_size=args.batch_size)
    if random is not None:  # random weights blow up without
        update_bn([next(iter(pictures))[:WARM_UP_IMAGES]], trained.network)
    before, begin = peak(), time.perf_counter()
    _, report = quietly_compressed(
        trained.network,
        args.method,
        rate=args.rate,
        calibration=pictures,
        seed=args.seed,
    )
    seconds = time.perf_counter() - begin
    return {
        "network": args.network,
        "weights": "random" if random is not None else "trained",
        "data": args.data,
        "images": len(pictures.labels),
        "size": size,
        "method": args.method,
        "variant": "sensitivity",
        "rate": args.rate,
        "seconds": seconds,
        **stage_seconds(report),
        "gib_before": before,
        "gib_peak": peak(),
        "kept": report.rate,
        "replaced": len(report.replaced),
        **circumstances(torch.device("cpu")),
    }
