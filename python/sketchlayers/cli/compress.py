"""``sketchlayers compress``: a smaller model, in a file.

A torchvision model is written as `sketchlayers.save` does. Of a pickled model the whole compressed
model is written, pickled: nothing else says how to rebuild it.

The report goes to the standard output, everything else to the standard error.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sketchlayers._runtime.files import SAFETENSORS, written_whole
from sketchlayers.checkpoint import save
from sketchlayers.cli.finetune import Labels
from sketchlayers.cli.kinds import positive, positive_number, rate
from sketchlayers.cli.messages import WrongInput, tell
from sketchlayers.cli.models import Loaded
from sketchlayers.cli.options import (
    add_computing,
    add_method,
    add_model,
    add_shared,
    add_sketch_options,
    check_destination,
    chosen_device,
    chosen_method,
    chosen_model,
    example_input,
    image_batches,
    written,
)
from sketchlayers.compression.api import compress
from sketchlayers.compression.calibration.calibration import Calibration
from sketchlayers.compression.finishing.refine import Refinement
from sketchlayers.reports.plot import check_picture
from sketchlayers.reports.report import Report

_EXAMPLES = """examples:
  sketchlayers compress resnet50 --weights FILE --calibration DIR --rate 0.5 \\
      --method tucker2 --out small.safetensors --plot errors.png
  sketchlayers compress resnet50 --weights FILE --calibration DIR --rate 0.3 \\
      --method tucker2 --out smaller.safetensors --refine --finetune 5 --train DIR --val DIR
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
    add_shared(parser.add_argument_group("layers").add_argument, "--layers", "--keep-first")
    _add_fit(parser)
    add_computing(parser)
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
        help="fraction of the time that is kept, for one image on this machine",
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
    add = parser.add_argument_group("output").add_argument
    add(
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help="a .safetensors file to write the smaller model to, for sketchlayers.load; for a "
        "pickled MODEL a file with another ending, which holds the whole model, pickled too",
    )
    add(
        "--plot",
        type=Path,
        metavar="FILE",
        help="a plot of every layer's size and error to write, such as errors.png",
    )
    add_shared(add, "--force", "--json")


def _add_fit(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("method and fit").add_argument
    add_method(add, "auto with --calibration, sketch with --init random; else it must be given")
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


def run(args: argparse.Namespace) -> int:
    """Compresses, writes the files and prints the report."""
    _check(args)
    rates = _rates(args)
    method = chosen_method(args, "sketch" if args.calibration is None else "auto")
    method.require_extension()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(args.seed % 2**63)  # a named network without weights starts at random
        loaded = chosen_model(args)
    _check_ending(args.out, loaded)
    model = loaded.model.to(chosen_device(args.device))
    labels = Labels(args, loaded)
    calibration = _calibration(args, loaded)
    labels.measure("original", model)
    try:
        small, report = compress(
            model,
            method,
            **rates,
            calibration=calibration,
            example_inputs=None if _has_images(args) else example_input(model, args.input_size),
            layers=args.layers,
            keep_first=args.keep_first,
            init=args.init,
            allocation=args.allocation,
            sequential=args.sequential,
            sensitivity={"both": True, "none": False}.get(args.sensitivity, args.sensitivity),
            correct_bias=args.correct_bias,
            reestimate_batch_norm={"yes": True, "no": False}.get(
                args.reestimate_batch_norm, args.reestimate_batch_norm
            ),
            refine=None if args.refine is None else Refinement(epochs=args.refine),
            memory_budget=args.memory_budget,
            seed=args.seed,
        )
    except (TypeError, RuntimeError) as error:  # of the model, with these inputs
        raise WrongInput(str(error)) from error
    labels.measure("compressed", small)
    report = labels.finished(small, report)
    opening = _write(args.out, loaded, small.cpu(), report)
    print(report.to_json() if args.json else report)
    if args.plot is not None:
        report.plot(args.plot)
        tell(f"written: {args.plot}")
    tell(f"open it in Python: {opening}")
    return 0


def _write(path: Path, loaded: Loaded, model: nn.Module, report: Report) -> str:
    """Writes the smaller model; returns the Python that opens it."""
    if loaded.architecture is not None:
        reports = [*loaded.reports, report.to_dict()]
        save(model, path, architecture=loaded.architecture, reports=reports)
        tell(written(path))
        return f"import sketchlayers; model = sketchlayers.load({str(path)!r})"
    with written_whole(path) as temporary:
        torch.save(model, temporary)
    tell(f"{written(path)}, the whole model: pickled, as MODEL was; to read it say --trust-pickle")
    return f"model = torch.load({str(path)!r}, weights_only=False)"


def _check(args: argparse.Namespace) -> None:
    """Refuses what can be known to be wrong before anything is read."""
    if args.calibration is None and args.method is None and args.init == "fit":
        raise WrongInput(
            "a trained network needs images: --calibration DIR, without labels; fitted to the "
            "weights alone by a sketch it would be at chance. To train from scratch say "
            "--init random; to fit all the same choose how, such as --method svd"
        )
    check_destination("--out", args.out, args.force)
    if args.plot is not None:
        check_destination("--plot", args.plot, args.force)
        check_picture(args.plot)
        if args.plot == args.out:
            raise WrongInput(f"--plot and --out must be different files (got {args.out})")
    if not _has_images(args):
        for option in ("images", "sequential", "sensitivity", "refine"):
            if getattr(args, option):
                why = "got no folder" if args.calibration is None else f"got {args.calibration}"
                raise WrongInput(f"--{option} needs images: --calibration DIR ({why})")
        if args.input_size is None and (args.flops_rate or args.latency_rate):
            flag = "--latency-rate" if args.flops_rate is None else "--flops-rate"
            raise WrongInput(f"{flag} needs --calibration DIR, or --input-size such as 3x224x224")
    if (args.finetune is None) != (args.train is None):
        flags = ("--finetune EPOCHS", "--train DIR")
        given, missing = flags if args.train is None else flags[::-1]
        raise WrongInput(f"{given} goes with {missing}")


def _check_ending(path: Path, loaded: Loaded) -> None:
    is_safetensors = path.suffix.lower() == SAFETENSORS
    if loaded.architecture is None and is_safetensors:
        raise WrongInput(
            f"--out of a pickled MODEL must not be a {SAFETENSORS} file: only the pickled model "
            "says how to rebuild it; choose another ending, such as .pt"
        )
    if loaded.architecture is not None and not is_safetensors:
        raise WrongInput(f"--out must be a {SAFETENSORS} file (got {path})")


def _rates(args: argparse.Namespace) -> dict[str, Any]:
    """The budget, as `compress` takes it."""
    if args.rate is None:
        return {"flops_rate": args.flops_rate, "latency_rate": args.latency_rate}
    by_pattern: dict[str, float] = dict(one for one in args.rate if isinstance(one, tuple))
    numbers = [one for one in args.rate if isinstance(one, float)]
    if len(numbers) > 1 or (numbers and by_pattern):
        raise WrongInput("--rate must be one number, or only pairs PATTERN=NUMBER")
    return {"rate": numbers[0] if numbers else by_pattern}


def _has_images(args: argparse.Namespace) -> bool:
    return args.calibration is not None and not args.calibration.is_file()


def _calibration(args: argparse.Namespace, loaded: Loaded) -> Calibration | Iterable[Tensor] | None:
    """What the layers are fitted to."""
    if args.calibration is None:
        return None
    if not loaded.trained:
        tell(f"warning: {loaded.name} has random weights; --weights FILE loads trained ones")
    if not _has_images(args):
        return Calibration.load(args.calibration)
    batches = image_batches(args, loaded)
    return batches.in_memory() if batches.nbytes <= args.memory_budget else batches
