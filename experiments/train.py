"""Trains one network, dense or compressed, on one data set.

    python experiments/train.py --data cifar10 --root DIR --out runs/dense
    python experiments/train.py --data cifar10 --root DIR --method sketch --rate 0.15 --out runs/015
    torchrun --nproc-per-node 2 experiments/train.py ...

The folder given by --out gets log.csv (one row an epoch), summary.json (arguments, versions,
hardware, results) and checkpoint.pt. With --resume a run that was killed goes on as if nothing had
happened.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from common.distributed import join
from common.runs import RunFolder, resolved
from common.stopping import exit_code
from experiment import Job, NetworkSpec, last_words, run
from options import add_options, assignment, documented_parser, load_data
from sketchlayers import methods
from training import Recipe, recipe_of

DENSE_LR = 0.05
SKETCH_LR = 0.1
"""Compressed networks take, and need, the larger learning rate."""


def parser() -> argparse.ArgumentParser:
    """All options of a training run."""
    root = documented_parser(__doc__)
    data = root.add_argument_group("data")
    add_options(data, "--data", "--root", "--size", "--subset", "--test-subset", data="digits")
    add_options(data, "--held-out", "--stream", "--label")
    add_options(data, "--crop-scale", "--train-size", "--trivial-augment")
    network = root.add_argument_group("network")
    add_options(network, "--network", "--width", "--dropout", network="ninn")
    network.add_argument("--no-batch-norm", dest="batch_norm", action="store_false")

    method = root.add_argument_group("compression")
    method.add_argument("--method", choices=["dense", *methods.names()], default="dense")
    method.add_argument("--rate", type=float, help="parameters after / before, whole network")
    method.add_argument(
        "--layer-rate",
        action="append",
        type=_layer_rate,
        metavar="PATTERN=RATE",
        help="instead of --rate: rate of the layers with such names; may be repeated",
    )
    method.add_argument(
        "--option",
        action="append",
        default=[],
        type=assignment,
        metavar="NAME=VALUE",
        help="of the method, such as frame=signs, mixing=channel or num_columns=4; may be repeated",
    )

    recipe = root.add_argument_group("training")
    add_options(recipe, "--epochs", "--batch-size", "--lr", "--momentum", lr=None)
    add_options(recipe, "--weight-decay", "--schedule", "--warmup", "--label-smoothing", "--ema")
    add_options(recipe, "--clip", "--amp", "--memory-format", "--compile", "--test-every", "--seed")

    where = root.add_argument_group("run")
    where.add_argument("--out", type=Path, required=True, help="folder of results")
    where.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    where.add_argument("--name", help="name of the run in plots (default: the folder's)")
    add_options(where, "--device", "--threads", "--workers")
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0 when training finished, 1 when it diverged, 2 when it could not start."""
    args = parser().parse_args(arguments)
    stopped = f"stopped; --resume goes on from there in {args.out}"
    return exit_code(lambda: _train(args, arguments), stopped)


def _train(args: argparse.Namespace, typed: Sequence[str] | None) -> int:
    spec, recipe = network_spec(args), training_recipe(args)
    with join(args.device) as world:
        data = load_data(args, args.network)
        name = args.name or args.out.name
        command = resolved(
            args,
            typed,
            name=name,
            label=args.label or data.name,
            lr=recipe.lr,
            size=data.size,
            stream=data.streamed,
            device=str(world.device),
        )
        job = Job(
            spec, recipe, RunFolder(args.out), name, args.label, command, workers=args.workers
        )
        summary = run(job, data, world=world, resume=args.resume)
        if world.is_main:
            print(f"{last_words(summary)}, results in {args.out}")
    return 0 if summary["status"] == "finished" else 1


def network_spec(args: argparse.Namespace) -> NetworkSpec:
    """The network that the options describe."""
    if args.rate is not None and args.layer_rate:
        raise ValueError("rate: give --rate or --layer-rate (got both)")
    return NetworkSpec(
        network=args.network,
        width=args.width,
        batch_norm=args.batch_norm,
        dropout=args.dropout,
        method=args.method,
        rate=dict(args.layer_rate) if args.layer_rate else args.rate,
        options=dict(args.option),
        seed=args.seed,
    )


def training_recipe(args: argparse.Namespace) -> Recipe:
    """The recipe that the options describe."""
    lr = DENSE_LR if args.method == "dense" else SKETCH_LR
    return recipe_of(args, lr=lr if args.lr is None else args.lr)


def _layer_rate(text: str) -> tuple[str, float]:
    pattern, _, rate = text.rpartition("=")
    try:
        return pattern, float(rate)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be PATTERN=RATE (got {text!r})") from None


if __name__ == "__main__":
    sys.exit(main())
