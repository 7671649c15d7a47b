"""Arguments of ``sketchlayers compress``, and which of them go together."""

from __future__ import annotations

import argparse
from pathlib import Path

from sketchlayers.cli.kinds import positive, positive_number, rate, share
from sketchlayers.cli.messages import WrongInput
from sketchlayers.cli.options import (
    add_computing,
    add_method,
    add_model,
    add_shared,
    add_sketch_options,
    add_verbosity,
    check_destination,
)
from sketchlayers.compression.finishing.refine import Refinement
from sketchlayers.onnx import check_onnx
from sketchlayers.reports.plot import check_picture

_EXAMPLES = """examples:
  sketchlayers compress resnet50 --weights FILE --calibration DIR --rate 0.5 \\
      --method tucker2 --out small.safetensors --plot errors.png
  sketchlayers compress resnet50 --weights FILE --calibration DIR --rate 0.3 \\
      --method tucker2 --out smaller.safetensors --refine --finetune 5 --train DIR --val DIR
  sketchlayers compress timm/resnet18 --weights FILE --calibration DIR --val DIR \\
      --rates 0.7 0.5 0.3 --plot curve.png
  sketchlayers compress my_project.networks:make --calibration DIR --val DIR --max-drop 1 \\
      --out small.safetensors --html report.html --onnx small.onnx
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``sketchlayers compress``: what everybody needs comes first."""
    parser.usage = "%(prog)s MODEL --rate RATE --calibration DIR --out FILE [...]"
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    _add_budget(parser)
    _add_images(parser)
    _add_training(parser)
    _add_output(parser)
    add_model(parser)
    add_shared(
        parser.add_argument_group("layers").add_argument, "--layers", "--exclude", "--keep-first"
    )
    _add_fit(parser)
    add_computing(parser).add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="a folder where the calibration and every fitted layer are kept, so that the same "
        "command, or one with another rate, goes on where one was stopped",
    )
    add_sketch_options(parser)


def _add_budget(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("budget (one of them)")
    add = group.add_mutually_exclusive_group(required=True).add_argument
    add(
        "--rate",
        action="append",
        type=rate,
        metavar="RATE",
        help="fraction of the parameters that is kept, between 0 and 1: one number for the whole "
        "model, or PATTERN=NUMBER, any number of times, for a layer or glob pattern of layers",
    )
    add(
        "--flops-rate",
        type=float,
        metavar="RATE",
        help="fraction of the multiply-adds that is kept",
    )
    add(
        "--latency-rate",
        type=float,
        metavar="RATE",
        help="fraction of the time that is kept, for one batch of images on this machine",
    )
    add(
        "--bytes-rate",
        type=float,
        metavar="RATE",
        help="fraction of a file's bytes that is kept: layers get ranks and bits",
    )
    add(
        "--rates",
        type=share,
        nargs="+",
        metavar="RATE",
        help="several rates of the whole model, from one calibration: a table of them, with the "
        "accuracy on --val; files get the rates into their names, such as small-0.5.safetensors",
    )
    add(
        "--max-drop",
        type=positive_number,
        metavar="POINTS",
        help="the smallest model whose accuracy on --val falls by no more percentage points",
    )


def _add_images(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("images (without labels)").add_argument
    add(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="folder of images, at any depth, of the kind that the model is for: layers are fitted "
        "to their feature maps. Or a file of `sketchlayers calibrate`, which does without --images,"
        " --sequential, --sensitivity, --reestimate-batch-norm and --refine",
    )
    add_shared(add, "--images", "--batch-size")


def _add_training(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("training and accuracy").add_argument
    add(
        "--refine",
        nargs="?",
        type=positive,
        const=Refinement().epochs,
        metavar="EPOCHS",
        help="train the new layers on the images without labels, so that the network gives the "
        "outputs of the original one (EPOCHS at most; default: %(const)s)",
    )
    add(
        "--finetune",
        type=positive,
        metavar="EPOCHS",
        help="fine-tune the smaller model with labels; needs --train",
    )
    add(
        "--train",
        type=Path,
        metavar="DIR",
        help="one folder of images for each of the model's outputs, in the order of their names",
    )
    add(
        "--val",
        type=Path,
        metavar="DIR",
        help="folders of the same kind with held-out images: the accuracy on them is measured, "
        "also without --finetune",
    )
    add(
        "--learning-rate",
        type=positive_number,
        default=0.01,
        metavar="LR",
        help="of --finetune at the start; it falls to 0 along a cosine (default: %(default)s)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    add = group.add_argument
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help="a .safetensors file to write the smaller model to, for sketchlayers.load; for a "
        "pickled MODEL a file with another ending, which holds the whole model, pickled too. "
        "Needed but with --onnx, --rates or --dry-run",
    )
    add(
        "--onnx",
        type=Path,
        metavar="FILE",
        help="the smaller model as ONNX, for batches of any size; needs onnx and onnxscript",
    )
    add(
        "--plot",
        type=Path,
        metavar="FILE",
        help="a plot of every layer's size and error to write, such as errors.png; with --rates "
        "the accuracy over the rates",
    )
    add(
        "--html",
        type=Path,
        metavar="FILE",
        help="the report as one HTML file, with charts",
    )
    add(
        "--dry-run",
        action="store_true",
        help="check all arguments and files, and say what ranks, size and speed to expect, from "
        "equal rates in all layers; nothing is fitted or written",
    )
    add_shared(add, "--force", "--json", "--config")
    add_verbosity(group)


def _add_fit(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("method and fit").add_argument
    add_method(add, "auto with --calibration, sketch with --init random; else it must be given")
    add(
        "--budget",
        choices=("rate", "flops_rate", "latency_rate", "bytes_rate"),
        help="what --rates and --max-drop make smaller: parameters (rate, default), multiply-adds, "
        "time, or bytes",
    )
    add(
        "--bits",
        type=int,
        help="round the numbers of all layers to so many bits, 2 to 16; the file holds no more",
    )
    add(
        "--group-size",
        type=int,
        metavar="N",
        help="inputs that share a scale, with --bits or --bytes-rate (default: all of an output)",
    )
    add(
        "--init",
        choices=("fit", "random"),
        default="fit",
        help="approximate the weights (default), or draw new ones to train from scratch, by "
        "default as sketches",
    )
    add("--seed", type=int, default=0, help="of all random numbers (default: %(default)s)")
    add(
        "--allocation",
        choices=("error", "uniform"),
        help="choose ranks that damage the network least (default with --calibration), or give all "
        "layers the same rate",
    )
    add(
        "--sequential",
        action=argparse.BooleanOptionalAction,
        help="fit layers one after the other, each to the inputs that the layers before it give "
        "(default: yes)",
    )
    add(
        "--sensitivity",
        choices=("both", "fit", "allocation", "none"),
        help="where to weight errors by their effect on the network's outputs (default: both)",
    )
    add(
        "--correct-bias",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="correct biases for the change of the outputs' mean (default: yes)",
    )
    add(
        "--reestimate-batch-norm",
        choices=("no", "auto", "yes"),
        default="no",
        help="measure the statistics of batch norms again in the smaller network: no (default), "
        "where it helps, or always",
    )
    add(
        "--measure-latency",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="time calls of both models for the report (default: yes)",
    )


def check(args: argparse.Namespace) -> None:
    """Refuses what can be known to be wrong before anything is read."""
    by_default = args.method is None and args.init == "fit"
    if args.calibration is None and by_default and not args.dry_run:
        raise WrongInput(
            "a trained network needs images: --calibration DIR, without labels; fitted to the "
            "weights alone by a sketch it would be at chance. To train from scratch say "
            "--init random; to fit all the same choose how, such as --method svd"
        )
    _check_files(args)
    _check_budget(args)
    if args.cache is not None and args.cache.exists() and not args.cache.is_dir():
        raise WrongInput(f"--cache must be a folder (got {args.cache})")
    if not has_images(args):
        for option in ("images", "sequential", "sensitivity", "refine"):
            if getattr(args, option):
                why = "got no folder" if args.calibration is None else f"got {args.calibration}"
                raise WrongInput(f"--{option} needs images: --calibration DIR ({why})")
        needs = {"--flops-rate": args.flops_rate, "--latency-rate": args.latency_rate}
        needs |= {"--onnx": args.onnx, f"--budget {args.budget}": args.budget not in (None, "rate")}
        if args.input_size is None and (flag := next((x for x in needs if needs[x]), None)):
            raise WrongInput(f"{flag} needs --calibration DIR, or --input-size such as 3x224x224")
    if (args.finetune is None) != (args.train is None):
        flags = ("--finetune EPOCHS", "--train DIR")
        given, missing = flags if args.train is None else flags[::-1]
        raise WrongInput(f"{given} goes with {missing}")


def _check_files(args: argparse.Namespace) -> None:
    """The files to write: distinct, and all possible."""
    if not (args.out or args.onnx or args.rates or args.dry_run):
        raise WrongInput("--out FILE must say where the smaller model shall go")
    files: dict[Path, str] = {}
    for option in ("out", "plot", "html", "onnx"):
        path = getattr(args, option)
        if path is None:
            continue
        if path in files:
            raise WrongInput(f"--{option} and --{files[path]} must be different files (got {path})")
        files[path] = option
        rates = args.rates if args.rates and option != "plot" else [None]
        for one in rates:
            check_destination(f"--{option}", file_of(path, one), args.force)
    if args.plot is not None:
        check_picture(args.plot)
    if args.onnx is not None:
        check_onnx("--onnx", args.onnx)


def _check_budget(args: argparse.Namespace) -> None:
    """What goes with several sizes."""
    if args.rates and len({*args.rates}) < len(args.rates):
        raise WrongInput(f"--rates must be different (got {' '.join(map(str, args.rates))})")
    if args.rates and args.finetune is not None:
        raise WrongInput("--finetune goes with one size: --rate, not --rates")
    if args.budget is not None and not (args.rates or args.max_drop):
        raise WrongInput("--budget goes with --rates or --max-drop")
    if args.dry_run and (args.bits or args.bytes_rate or args.budget == "bytes_rate"):
        raise WrongInput("--dry-run cannot know bits, which are chosen by errors: give a --rate")
    if args.max_drop is not None:
        for option in ("val", "calibration"):
            if getattr(args, option) is None:
                raise WrongInput(f"--max-drop needs --{option} DIR")
        if args.dry_run:
            raise WrongInput("--dry-run cannot know what --max-drop finds: give a --rate")


def file_of(path: Path, rate: float | None) -> Path:
    """Returns the file for one of several rates: "small-0.5.safetensors"."""
    return path if rate is None else path.with_name(f"{path.stem}-{rate}{path.suffix}")


def has_images(args: argparse.Namespace) -> bool:
    """Tells whether there is a folder of images to calibrate on."""
    return args.calibration is not None and not args.calibration.is_file()
