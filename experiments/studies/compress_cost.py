r"""Measures what calibration and decomposition cost: seconds of each stage, peak memory.

    python experiments/study.py compress_cost --network resnet50 --data imagenette --root DIR \
        --images 1024 --threads 2
    python experiments/study.py compress_cost --network resnet20 --weights FILE --data cifar10 \
        --root DIR --images 2048 --threads 2

Without --weights the network is drawn at random and its batch norms take their statistics from the
first images: times and memory depend on shapes, hardly on values. Memory is the most that the
process has held since it began, so that one process measures one run.

Found: on two threads of an AMD EPYC half of ResNet-50's parameters take 16 minutes and 9.6 GiB with
1,024 images, half of ResNet-20's 31 seconds by Tucker-2 and 96 by auto (docs/compressing.md).
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from common.runs import circumstances, read_csv, write_csv
from image_data import read_split
from options import add_options, documented_parser
from sketchlayers import compress, methods
from trained import pretrained, variants
from trained.pictures import Pictures, drawn
from trained.results import STAGES, stage_seconds

GIB = 1 << 30
WARM_UP_IMAGES = 64


def peak_bytes() -> int:
    """The most memory that this process has held (resident set)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@torch.no_grad()
def measure_batch_norms(network: nn.Module, pictures: Pictures) -> None:
    """Gives batch norms the statistics of the first images; random weights blow up without."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average
        norm.train()
    network(next(iter(pictures))[:WARM_UP_IMAGES])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def parser() -> argparse.ArgumentParser:
    """All options."""
    root = documented_parser(__doc__)
    root.add_argument("--network", required=True)
    add_options(root, "--weights", "--data", "--root", "--size", "--batch-size", data="digits")
    root.add_argument("--images", type=int, default=1024)
    root.add_argument("--method", choices=methods.names(), default="tucker2")
    root.add_argument("--rate", type=float, default=0.5)
    root.add_argument("--variant", default="sensitivity", help="one of zero_shot.py's, with images")
    add_options(root, "--threads", "--seed", "--csv")
    return root


def main(arguments: Sequence[str]) -> None:
    """Runs the study."""
    args = parser().parse_args(arguments)
    row = run(args)
    print(
        f"{row['network']} ({row['weights']} weights), {row['images']} images of {row['data']} at "
        f"{row['size']}x{row['size']}, {row['method']} at {row['rate']:g}, {row['variant']}, "
        f"{row['threads']} threads\n"
    )
    parts = {f"seconds_{stage}": stage.replace("_", " ") for stage in STAGES} | {"seconds": "all"}
    for key, part in parts.items():
        if row[key] is not None:
            print(f"{part:<12} {row[key]:8.2f} s")
    print(f"peak memory  {row['gib_peak']:8.2f} GiB, {row['gib_before']:.2f} before")
    if args.csv is not None:
        rows: list[dict[str, Any]] = list(read_csv(args.csv)) if args.csv.is_file() else []
        write_csv(args.csv, [*rows, row])


def run(args: argparse.Namespace) -> dict[str, Any]:
    """A row: seconds of each stage, and the most memory that the process has held.

    Raises:
        InputError: images or weights cannot be used.
        ValueError: an argument is out of range.
    """
    for name in ("images", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')}: must be at least 1 (got {value})")
    (variant,) = variants.chosen([args.variant])[-1:]
    if not variant.images:
        raise ValueError(f"--variant: must be one with calibration images (got {variant.name!r})")
    random = args.seed if args.weights is None else None
    trained = pretrained.load(args.network, args.weights, random=random)
    chosen = drawn(read_split(args.data, args.root, train=True), args.seed, args.images)
    size = args.size or trained.size
    pictures = trained.pictures(chosen, args.data, size=size, batch_size=args.batch_size)
    if random is not None:
        measure_batch_norms(trained.network, pictures)
    before, begin = peak_bytes(), time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a network with random weights changes a lot
        _, report = compress(
            trained.network,
            args.method,
            rate=args.rate,
            calibration=pictures,
            seed=args.seed,
            **variant.options,
        )
    seconds = time.perf_counter() - begin
    return {
        "network": args.network,
        "weights": "random" if random is not None else "trained",
        "data": args.data,
        "images": len(pictures.labels),
        "size": size,
        "method": args.method,
        "variant": variant.name,
        "rate": args.rate,
        "seconds": seconds,
        **stage_seconds(report),
        "gib_before": before / GIB,
        "gib_peak": peak_bytes() / GIB,
        "kept": report.rate,
        "replaced": len(report.replaced),
        **circumstances(torch.device("cpu")),
    }
