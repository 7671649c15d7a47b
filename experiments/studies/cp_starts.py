r"""How much better CP gets by more starts, layer by layer, on a trained network.

    python experiments/study.py cp_starts --network resnet20 --weights FILE --data cifar10 \
        --root DIR --csv cp_starts.csv

CP has local optima. For every convolution of more than one pixel, at one rate, the relative change
of the layer's output: decomposed without looking at data, with the data and few starts (those of
`methods.CP` unless ``--few`` and ``--sweeps`` say otherwise), and with many starts from another
seed.

Found: on ResNet-20 at rate 0.3 four starts end between 0.6 % below and 5.2 % above the best of 20
others, with a median of +0.6 %. Since its sweeps begin without the second moment, one start ends as
near (docs/results.md).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from image_data import read_split
from options import add_options, documented_parser
from sketchlayers import calibrate, decompose, methods
from sketchlayers._runtime.files import write_csv
from trained import pretrained
from trained.pictures import drawn

METHOD = methods.CP()


def is_measured(layer: nn.Module, name: str) -> bool:
    """Convolutions with a kernel of more than one pixel; for others there is a closed form."""
    return isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1) and layer.groups == 1


def measure(layer: nn.Conv2d, second_moment: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """Relative errors in the norm of the output at the rate, and seconds with few starts."""
    weight = layer.weight.detach().double()
    dense = sum(parameter.numel() for parameter in layer.parameters())
    ranks: Any = METHOD.ranks(layer)
    rank = min(ranks, key=lambda rank: abs(METHOD.parameters(layer, rank) - args.rate * dense))
    fit = partial(decompose.cp, weight, rank, max_sweeps=args.sweeps, tolerance=METHOD.tolerance)

    plain = fit(starts=args.few, seed=args.seed)
    change = weight - torch.einsum("tr,sr,ir,jr->tsij", *plain.factors)
    square, changed = (
        float(((matrix @ second_moment) * matrix).sum())
        for matrix in (weight.flatten(1), change.flatten(1))
    )
    begin = time.perf_counter()
    few = fit(second_moment=second_moment, starts=args.few, seed=args.seed).relative_error
    seconds = time.perf_counter() - begin
    many = fit(second_moment=second_moment, starts=args.starts, seed=args.seed + 1).relative_error
    return {
        "rank": rank,
        "frobenius": (changed / square) ** 0.5,
        "few": few,
        "many": many,
        "excess": 100 * (few / many - 1),
        "seconds": seconds,
    }


def main(arguments: Sequence[str]) -> None:
    """Runs the study; the file grows with each layer."""
    parser = documented_parser(__doc__)
    parser.add_argument("--csv", type=Path, required=True, help="file of results")
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--weights", type=Path, required=True, help="file with its weights")
    add_options(parser, "--data", "--root", "--label", "--seed", "--threads")
    parser.add_argument("--calibration-images", type=int, default=2048)
    parser.add_argument("--rate", type=float, default=0.3)
    parser.add_argument("--few", type=int, default=METHOD.starts, help="starts to be judged")
    parser.add_argument("--starts", type=int, default=20, help="starts to judge them by")
    parser.add_argument("--sweeps", type=int, default=METHOD.max_sweeps, help="of a start")
    args = parser.parse_args(arguments)

    trained = pretrained.load(args.network, args.weights)
    source = read_split(args.data, args.root, train=True)
    pictures = trained.pictures(drawn(source, args.seed, args.calibration_images), args.data)
    moments = calibrate(trained.network, pictures, filter_fn=is_measured)
    rows: list[dict[str, Any]] = []
    for name, found in list(moments.items())[1:]:  # the first one is kept
        layer: Any = trained.network.get_submodule(name)
        rows.append(
            {
                "layer": name,
                "network": args.network,
                "data": args.label or args.data,
                "images": len(pictures.labels),
                "rate": args.rate,
                "few_starts": args.few,
                "starts": args.starts,
                "sweeps": args.sweeps,
                "seed": args.seed,
                **(errors := measure(layer, found.second_moment[0], args)),
            }
        )
        write_csv(args.csv, rows)
        print(
            f"{name}: {errors['few']:.4f}, best of {args.starts} {errors['many']:.4f}, "
            f"without data {errors['frobenius']:.4f}; {errors['seconds']:.1f} s",
            flush=True,
        )
