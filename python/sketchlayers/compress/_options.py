"""Arguments of ``sketchlayers inspect``, ``calibrate`` and ``compress``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sketchlayers import methods
from sketchlayers.compress._finetune import FineTuning
from sketchlayers.compress.calibrate import MEMORY_BUDGET
from sketchlayers.compress.refine import Refinement

IMAGES = 1024
"""So many images of a folder calibrate, unless another number is asked for."""
BATCH_SIZE = 32

Rate = float | tuple[str, float]

_EXAMPLES = """examples:
  sketchlayers compress resnet50 --weights FILE --calibration DIR --rate 0.5 \\
      --out small.safetensors --plot errors.png
  sketchlayers compress resnet50 --weights FILE --calibration DIR --rate 0.3 \\
      --out smaller.safetensors --refine --finetune 5 --train DIR --val DIR
"""


def add_arguments_inspect(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``sketchlayers inspect``."""
    _add_model_arguments(parser)
    _add_method_arguments(parser, "(default: sketch)")
    _add_json(parser)


def add_arguments_calibrate(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``sketchlayers calibrate``."""
    parser.usage = "%(prog)s MODEL --calibration DIR --out FILE [...]"
    _add_model_arguments(parser)
    add = parser.add_argument_group("images").add_argument
    add("--calibration", required=True, type=Path, metavar="DIR", help="folder of images")
    _add_image_arguments(add)
    add(
        "--layers",
        action="append",
        metavar="PATTERN",
        help="only layers whose names match; any number of times",
    )
    add = parser.add_argument_group("output").add_argument
    add("--out", required=True, type=Path, metavar="FILE", help="a .safetensors file to write")
    add("--force", action="store_true", help="overwrite FILE if it exists")


def add_arguments_compress(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``sketchlayers compress``."""
    parser.usage = "%(prog)s MODEL --rate RATE --out FILE [--calibration DIR] [...]"
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    _add_model_arguments(parser)
    _add_size_arguments(parser)
    _add_method_arguments(parser, "(default: auto with --calibration, else sketch)")
    _add_calibration_arguments(parser)
    _add_training_arguments(parser)
    _add_output_arguments(parser)


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "model",
        nargs="?",
        metavar="MODEL",
        help="name of a torchvision classification model, a file written by `sketchlayers "
        "compress`, or, with --trust-pickle, a file with a whole pickled model",
    )
    add("--model", dest="model_option", metavar="MODEL", help="the same")
    add("--weights", type=Path, metavar="FILE", help="state dict to load into the named model")
    add("--num-classes", type=_positive, metavar="N", help="classes of the named model (1000)")
    add(
        "--trust-pickle",
        action="store_true",
        help="load MODEL with pickle, which runs whatever code the file says",
    )
    add(
        "--input-size",
        type=_input_size,
        metavar="CxHxW",
        help="size of one input, such as 3x224x224; images are made this large, and without images "
        "it makes the multiply-adds known",
    )


def _add_size_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how small; one of")
    add = group.add_mutually_exclusive_group(required=True).add_argument
    add(
        "--rate",
        action="append",
        type=_rate,
        metavar="RATE",
        help="parameters after / before: one number for the whole model, or PATTERN=NUMBER, any "
        "number of times, for a layer or glob pattern of layers",
    )
    add("--flops-rate", type=float, metavar="RATE", help="multiply-adds after / before")
    add(
        "--latency-rate",
        type=float,
        metavar="RATE",
        help="seconds after / before, of one image on this machine",
    )
    add = parser.add_argument_group("which layers").add_argument
    add(
        "--layers",
        action="append",
        metavar="PATTERN",
        help="only layers whose names match; any number of times",
    )
    add(
        "--keep-first",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="leave the first layer as it is (default: yes)",
    )


def _add_method_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    add = parser.add_argument_group("method").add_argument
    add("--method", help=f"one of {', '.join(methods.names())} {default}")
    add("--num-sketches", type=int, metavar="L", help="sketches that are summed (default: 1)")
    add(
        "--mixing",
        choices=("spatial", "channel"),
        help="what a sketch mixes: channels and kernel positions, or channels (default: spatial)",
    )
    add("--scale", type=methods.scale_argument, help='"paper" (default), "normalized" or a number')
    add("--blocks", type=int, metavar="B", help="blocks with signs of their own (default: 1)")
    add(
        "--signs",
        choices=("rademacher", "hadamard"),
        help="independent signs (default), or rows of a randomised Hadamard transform",
    )
    add("--base", choices=("random",), help="add a fixed random weight made from the seed")
    add("--frame", choices=("signs",), help="multiply by fixed random signs made from the seed")


def _add_calibration_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("calibration, without labels").add_argument
    add(
        "--calibration",
        type=Path,
        metavar="DIR",
        help="folder of images, at any depth: layers are fitted to what these make of them; or a "
        "file of `sketchlayers calibrate`, which does without --images, --sequential, "
        "--sensitivity, --reestimate-batch-norm and --refine",
    )
    _add_image_arguments(add)
    add(
        "--allocation",
        choices=("error", "uniform"),
        help="give ranks where they do the least damage (default with --calibration), or all "
        "layers the same rate",
    )
    add(
        "--sequential",
        action=argparse.BooleanOptionalAction,
        help="fit layers one after the other, each from the inputs that it will really get "
        "(default: yes)",
    )
    add(
        "--sensitivity",
        choices=("both", "fit", "allocation", "none"),
        help="where to weigh errors by what they do to the network's outputs (default: both)",
    )
    add(
        "--correct-bias",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let biases take up the change of the mean (default: yes)",
    )
    add(
        "--reestimate-batch-norm",
        choices=("no", "auto", "yes"),
        default="no",
        help="take the statistics of batch norms anew: not (default), where it helps, or always",
    )
    add(
        "--refine",
        nargs="?",
        type=_positive,
        const=Refinement().epochs,
        metavar="EPOCHS",
        help="afterwards train the factors, without labels, to give the original network's outputs "
        "(EPOCHS at most; default: %(const)s)",
    )


def _add_image_arguments(add: Callable[..., Any]) -> None:
    add(
        "--images",
        type=_positive,
        metavar="N",
        help=f"so many of the images, spread over the folders (default: {IMAGES})",
    )
    add(
        "--batch-size",
        type=_positive,
        default=BATCH_SIZE,
        metavar="N",
        help="images of one batch, also in training (default: %(default)s)",
    )
    add("--device", default="cpu", help="where to compute, such as cuda (default: %(default)s)")
    add(
        "--memory-budget",
        type=_gibibytes,
        default=MEMORY_BUDGET,
        metavar="GIB",
        help="for second moments in one pass, and for images and activations that are kept "
        f"(default: {MEMORY_BUDGET / 2**30:g})",
    )


def _add_training_arguments(parser: argparse.ArgumentParser) -> None:
    defaults = FineTuning(epochs=1)
    add = parser.add_argument_group("training on, with labels").add_argument
    add("--finetune", type=_positive, metavar="EPOCHS", help="train the smaller model; needs DIR:")
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
        help="the same, held out: accuracy is measured on it, also without --finetune",
    )
    add(
        "--learning-rate",
        type=_positive_number,
        default=defaults.learning_rate,
        metavar="LR",
        help="at the start; it falls to 0 along a cosine (default: %(default)s)",
    )


def _add_output_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("output").add_argument
    add(
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help="a .safetensors file to write the smaller model to, for sketchlayers.load; of a "
        "pickled MODEL one with another ending: it holds the whole model, pickled too, and needs "
        "--trust-pickle to be read again",
    )
    add("--plot", type=Path, metavar="FILE", help="a picture of every layer's size and error: .png")
    add("--force", action="store_true", help="overwrite files that exist")
    _add_json(parser)
    add = parser.add_argument
    add(
        "--init",
        choices=("fit", "random"),
        default="fit",
        help="approximate the weights, or start for training from scratch (default: %(default)s)",
    )
    add("--seed", type=int, help="what all random numbers are derived from (default: random)")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


# ----------------------------------------------------------------------------- kinds of arguments


def _rate(text: str) -> Rate:
    pattern, equals, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a number or PATTERN=NUMBER (got {text!r})"
        ) from None
    return (pattern, value) if equals else value


def _input_size(text: str) -> tuple[int, ...]:
    try:
        size = tuple(int(part) for part in text.split("x"))
    except ValueError:
        size = ()
    if not size or min(size) < 1:
        raise argparse.ArgumentTypeError(f"must be sizes such as 3x224x224 (got {text!r})")
    return size


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1 (got {text!r})")
    return int(text)


def _positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0 (got {text!r})")
    return value


def _gibibytes(text: str) -> int:
    return max(1, int(_positive_number(text) * 2**30))
