"""Trains Network-in-Network on CIFAR-10 dense and sketched to rates 0.5 and 0.15, one by one.

    python experiments/cifar10_rates.py --root DIR

May be stopped at any time: the same command goes on from the last finished epoch. Logs, summaries,
results.csv and accuracy.png go to --out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from distributed import join
from experiment import NetworkSpec, run
from image_data import DataError, load
from options import documented_parser
from plot import collect
from runs import RunError, RunFolder, resolved
from train import DENSE_LR, SKETCH_LR
from training import Recipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0 when all trainings finished, 1 when one diverged, 2 when none started."""
    parser = documented_parser(__doc__)
    parser.add_argument("--root", type=Path, required=True, help="folder with CIFAR-10")
    parser.add_argument("--label", default="CIFAR-10", help="what figures call the data")
    parser.add_argument("--out", type=Path, default=Path("runs/cifar10_rates"))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--subset", type=int, help="number of training images (default: all)")
    parser.add_argument("--amp", choices=["off", "bf16", "fp16"], default="bf16")
    parser.add_argument("--frame", choices=["signs", "none"], default="signs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu or cuda (default: a GPU where there is one)")
    args = parser.parse_args(arguments)
    try:
        return _train_all(args, arguments)
    except (DataError, RunError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from there", file=sys.stderr)
        return 130


def _train_all(args: argparse.Namespace, typed: Sequence[str] | None) -> int:
    dense = NetworkSpec(width=args.width, dropout=0.0, seed=args.seed)
    options = {} if args.frame == "none" else {"frame": args.frame}
    recipe = Recipe(epochs=args.epochs, lr=DENSE_LR, amp=args.amp, seed=args.seed)
    statuses = []
    with join(args.device) as world:
        data = load("cifar10", args.root, subset=args.subset)
        for rate in (None, 0.5, 0.15):
            spec, lr = dense, DENSE_LR
            folder, name = RunFolder(args.out / "dense"), "dense"
            if rate is not None:
                spec, lr = replace(dense, method="sketch", rate=rate, options=options), SKETCH_LR
                folder = RunFolder(args.out / f"rate_{rate}")
                name = f"rate {rate}, {'sign frame' if options else 'plain'}"
            _, summary = run(
                spec,
                data,
                replace(recipe, lr=lr),
                folder,
                world=world,
                name=name,
                label=args.label,
                resume=True,
                command=resolved(args, typed, device=str(world.device)),
            )
            statuses.append(summary["status"])
            if world.is_main:
                collect(args.out)
    return 0 if all(status == "finished" for status in statuses) else 1


if __name__ == "__main__":
    sys.exit(main())
