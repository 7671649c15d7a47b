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
import ast
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from distributed import join
from experiment import NetworkSpec, run
from image_data import DATA_SETS, DataError, load
from networks import IMAGE_SIZES, NETWORKS
from options import documented_parser
from runs import RunError, RunFolder, resolved
from sketchlayers import methods
from training import Recipe

DENSE_LR = 0.05
SKETCH_LR = 0.1
"""Compressed networks take, and need, the larger learning rate."""


def parser() -> argparse.ArgumentParser:
    """All options of a training run."""
    defaults = Recipe()
    spec = NetworkSpec()
    root = documented_parser(__doc__)

    data = root.add_argument_group("data")
    data.add_argument("--data", choices=list(DATA_SETS), default="digits")
    data.add_argument("--root", type=Path, help="folder with the data set's files")
    data.add_argument(
        "--size",
        type=int,
        help="height and width of images (default: 32, on digits 16; googlenet_bn 224)",
    )
    data.add_argument("--subset", type=int, help="number of training images, evenly over classes")
    data.add_argument("--test-subset", type=int, help="the same for test images")
    data.add_argument(
        "--held-out",
        type=int,
        help="test on this many training images outside the subset instead, to choose settings by",
    )
    data.add_argument("--stream", action="store_true", help="decode images again in every epoch")
    data.add_argument("--label", help="what figures call the data set")

    network = root.add_argument_group("network")
    network.add_argument("--network", choices=list(NETWORKS), default=spec.network)
    network.add_argument("--width", type=float, default=spec.width, help="factor on channels")
    network.add_argument("--no-batch-norm", dest="batch_norm", action="store_false")
    network.add_argument("--dropout", type=float, help="probability (default: the network's own)")

    method = root.add_argument_group("compression")
    method.add_argument("--method", choices=["dense", *methods.names()], default=spec.method)
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
        type=method_option,
        metavar="NAME=VALUE",
        help="of the method, such as frame=signs, mixing=channel or num_columns=4; may be repeated",
    )
    method.add_argument("--init", choices=["random", "fit"], default=spec.init)
    method.add_argument(
        "--init-scale", type=float, default=spec.init_scale, help="factor on weights at the start"
    )
    method.add_argument("--start", help="checkpoint.pt of a dense run to compress")

    recipe = root.add_argument_group("training")
    recipe.add_argument("--epochs", type=int, default=defaults.epochs)
    recipe.add_argument("--batch-size", type=int, default=defaults.batch_size)
    recipe.add_argument("--lr", type=float, help=f"default {DENSE_LR}, compressed {SKETCH_LR}")
    recipe.add_argument(
        "--compressed-lr",
        type=float,
        default=defaults.compressed_lr,
        help="factor on the learning rate of compressed weights",
    )
    recipe.add_argument(
        "--gain",
        choices=["mean", "none"],
        default=defaults.gain,
        help="none: the factors of a sketch get the learning rate as it is",
    )
    recipe.add_argument("--momentum", type=float, default=defaults.momentum)
    recipe.add_argument("--weight-decay", type=float, default=defaults.weight_decay)
    recipe.add_argument("--warmup", type=float, default=defaults.warmup, help="epochs")
    recipe.add_argument("--schedule", choices=["cosine", "step"], default=defaults.schedule)
    recipe.add_argument("--label-smoothing", type=float, default=defaults.label_smoothing)
    recipe.add_argument("--clip", type=float, help="largest norm of all gradients together")
    recipe.add_argument("--amp", choices=["off", "bf16", "fp16"], default=defaults.amp)
    recipe.add_argument("--channels-first", dest="channels_last", action="store_false")
    recipe.add_argument("--compile", action="store_true", help="use torch.compile")
    recipe.add_argument("--deterministic", action="store_true", help="deterministic kernels only")
    recipe.add_argument(
        "--test-every", type=int, default=defaults.test_every, help="epochs; the last has one"
    )
    recipe.add_argument("--seed", type=int, default=defaults.seed)

    where = root.add_argument_group("run")
    where.add_argument("--out", type=Path, required=True, help="folder of results")
    where.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    where.add_argument("--name", help="name of the run in plots (default: the folder's)")
    where.add_argument("--device", help="cpu or cuda (default: a GPU where there is one)")
    where.add_argument("--threads", type=int, help="processor threads (default: PyTorch's choice)")
    where.add_argument(
        "--workers", type=int, default=2, help="processes that decode streamed images"
    )
    where.add_argument("--tensorboard", action="store_true", help="write TensorBoard events too")
    return root


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0 when training finished, 1 when it diverged, 2 when it could not start."""
    args = parser().parse_args(arguments)
    try:
        return _train(args, arguments)
    except (DataError, RunError, TypeError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; --resume goes on from there in {args.out}", file=sys.stderr)
        return 130


def _train(args: argparse.Namespace, typed: Sequence[str] | None) -> int:
    spec, recipe = network_spec(args), training_recipe(args)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    with join(args.device) as world:
        data = load(
            args.data,
            args.root,
            size=IMAGE_SIZES.get(args.network) if args.size is None else args.size,
            subset=args.subset,
            test_subset=args.test_subset,
            held_out=args.held_out,
            stream=args.stream or None,
        )
        name = args.name or args.out.name
        _, summary = run(
            spec,
            data,
            recipe,
            RunFolder(args.out),
            world=world,
            name=name,
            label=args.label,
            resume=args.resume,
            command=resolved(
                args,
                typed,
                name=name,
                label=args.label or data.name,
                lr=recipe.lr,
                size=data.size,
                stream=data.streamed,
                device=str(world.device),
            ),
            workers=args.workers,
            tensorboard=args.tensorboard,
        )
        if world.is_main:
            print(_last_words(name, summary, args.out))
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
        init=args.init,
        init_scale=args.init_scale,
        start=args.start,
        seed=args.seed,
    )


def training_recipe(args: argparse.Namespace) -> Recipe:
    """The recipe that the options describe."""
    default_lr = DENSE_LR if args.method == "dense" else SKETCH_LR
    return Recipe(
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=default_lr if args.lr is None else args.lr,
        compressed_lr=args.compressed_lr,
        gain=args.gain,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        warmup=args.warmup,
        schedule=args.schedule,
        label_smoothing=args.label_smoothing,
        clip=args.clip,
        amp=args.amp,
        channels_last=args.channels_last,
        compile=args.compile,
        deterministic=args.deterministic,
        test_every=args.test_every,
        seed=args.seed,
    )


def _last_words(name: str, summary: dict[str, object], out: Path) -> str:
    last = summary["last_epoch"]
    assert isinstance(last, dict)
    tested = last.get("test_accuracy")
    accuracy = "" if tested is None else f"test accuracy {tested:.2f} %, "
    return (
        f"{name}: {summary['status']}, {accuracy}{summary['parameters']:,} parameters "
        f"(rate {summary['rate']:.3f}), results in {out}"
    )


def method_option(text: str) -> tuple[str, object]:
    """``NAME=VALUE`` with a value of Python's, or a string.

    Raises:
        argparse.ArgumentTypeError: neither.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE (got {text!r})")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _layer_rate(text: str) -> tuple[str, float]:
    pattern, _, rate = text.rpartition("=")
    try:
        return pattern, float(rate)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be PATTERN=RATE (got {text!r})") from None


if __name__ == "__main__":
    sys.exit(main())
