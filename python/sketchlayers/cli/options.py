"""Arguments of ``sketchlayers inspect``, ``calibrate`` and ``compress``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sketchlayers import methods
from sketchlayers.cli.finetune import FineTuning
from sketchlayers.compression.calibration.calibrate import MEMORY_BUDGET
from sketchlayers.compression.finishing.refine import Refinement

IMAGES = 1024
"""Images of a folder that are used by default."""
BATCH_SIZE = 32
"""Images of one batch by default."""

Rate = float | tuple[str, float]

_EXAMPLES = """examples:
  sketchlayers compress resnet50 --weights FILE --calibration DIR --rate 0.5 \\
      --method tucker2 --out small.safetensors --plot errors.png
  sketchlayers compress resnet50 --weights FILE --calibration DIR --rate 0.3 \\
      --method tucker2 --out smaller.safetensors --refine --finetune 5 --train DIR --val DIR
"""


def add_arguments_inspect(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``sketchlayers inspect``."""
    _add_model(parser)
    add = parser.add_argument_group("output").add_argument
    _add_json(add)
    _add_model_options(parser)
    add = parser.add_argument_group("layers").add_argument
    _add_keep_first(add)
    _add_method(parser.add_argument_group("method").add_argument, "auto")
    _add_sketch_options(parser)


def add_arguments_calibrate(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``sketchlayers calibrate``."""
    parser.usage = "%(prog)s MODEL --calibration DIR --out FILE [...]"
    _add_model(parser)
    add = parser.add_argument_group("images").add_argument
    add("--calibration", required=True, type=Path, metavar="DIR", help="folder of images")
    _add_image_options(add)
    add = parser.add_argument_group("output").add_argument
    add("--out", required=True, type=Path, metavar="FILE", help="a .safetensors file to write")
    add("--force", action="store_true", help="overwrite FILE if it exists")
    _add_model_options(parser)
    _add_layers(parser.add_argument_group("layers").add_argument)
    _add_computing(parser)


def add_arguments_compress(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``sketchlayers compress``: what everybody needs comes first."""
    parser.usage = "%(prog)s MODEL --rate RATE --calibration DIR --out FILE [...]"
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    _add_model(parser)
    _add_budget(parser)
    _add_images(parser)
    _add_training(parser)
    _add_output(parser)
    _add_model_options(parser)
    add = parser.add_argument_group("layers").add_argument
    _add_layers(add)
    _add_keep_first(add)
    _add_fit(parser)
    _add_computing(parser)
    _add_sketch_options(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="name of a torchvision classification model, a file written by `sketchlayers "
        "compress`, or, with --trust-pickle, a file with a whole pickled model",
    )


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add("--model", dest="model_option", metavar="MODEL", help="the same as MODEL")
    add(
        "--weights",
        type=Path,
        metavar="FILE",
        help="trained weights for the named model: a state dict of torch.save or safetensors",
    )
    add("--num-classes", type=_positive, metavar="N", help="classes of the named model (1000)")
    add(
        "--input-size",
        type=_input_size,
        metavar="CxHxW",
        help="size of one input, such as 3x224x224: images are resized and cropped to it; without "
        "images it is needed to count multiply-adds",
    )
    add(
        "--trust-pickle",
        action="store_true",
        help="load MODEL with pickle, which runs the code in the file",
    )


def _add_budget(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("budget (one of them)")
    add = group.add_mutually_exclusive_group(required=True).add_argument
    add(
        "--rate",
        action="append",
        type=_rate,
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
    _add_image_options(add)


def _add_image_options(add: Callable[..., Any]) -> None:
    add(
        "--images",
        type=_positive,
        metavar="N",
        help=f"how many of the images to use, spread over the folders (default: {IMAGES})",
    )
    add(
        "--batch-size",
        type=_positive,
        default=BATCH_SIZE,
        metavar="N",
        help="images of one batch, also in training (default: %(default)s)",
    )


def _add_training(parser: argparse.ArgumentParser) -> None:
    defaults = FineTuning(epochs=1)
    add = parser.add_argument_group("training and accuracy").add_argument
    add(
        "--refine",
        nargs="?",
        type=_positive,
        const=Refinement().epochs,
        metavar="EPOCHS",
        help="train the new layers on the images without labels, so that the network gives the "
        "outputs of the original one (EPOCHS at most; default: %(const)s)",
    )
    add(
        "--finetune",
        type=_positive,
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
        type=_positive_number,
        default=defaults.learning_rate,
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
    add("--force", action="store_true", help="overwrite files that exist")
    _add_json(add)


def _add_layers(add: Callable[..., Any]) -> None:
    add(
        "--layers",
        action="append",
        metavar="PATTERN",
        help="only layers whose names match, such as 'layer4.*'; any number of times",
    )


def _add_keep_first(add: Callable[..., Any]) -> None:
    add(
        "--keep-first",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="leave the first layer as it is (default: yes)",
    )


def _add_fit(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("method and fit").add_argument
    _add_method(add, "auto with --calibration, sketch with --init random; else it must be given")
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


def _add_method(add: Callable[..., Any], default: str) -> None:
    add("--method", help=f"one of {', '.join(methods.names())} (default: {default})")


def _add_computing(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("computing").add_argument
    add("--device", default="cpu", help="where to compute, such as cuda (default: %(default)s)")
    add(
        "--memory-budget",
        type=_gibibytes,
        default=MEMORY_BUDGET,
        metavar="GIB",
        help="memory for second moments in one pass, and for images and feature maps that are kept "
        f"(default: {MEMORY_BUDGET / 2**30:g})",
    )


def _add_sketch_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("options of --method sketch").add_argument
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
    add("--frame", choices=("signs",), help="multiply by fixed random signs made from the seed")


def _add_json(add: Callable[..., Any]) -> None:
    add("--json", action="store_true", help="print JSON instead of the table")


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
