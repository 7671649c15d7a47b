"""Arguments that several commands share: declared, and read."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sketchlayers import methods
from sketchlayers.cli.folders import ImageBatches, find_images, spread
from sketchlayers.cli.kinds import gibibytes, input_size, positive
from sketchlayers.cli.messages import WrongInput, tell
from sketchlayers.cli.models import Loaded, open_model
from sketchlayers.compression.calibration.calibrate import MEMORY_BUDGET
from sketchlayers.reports.table import joined, quantity

IMAGES = 1024
"""Images of a folder that are used by default."""

Add = Callable[..., Any]
"""``add_argument`` of a parser, or of a group of its arguments."""

_SHARED: dict[str, dict[str, Any]] = {
    "--images": {
        "type": positive,
        "metavar": "N",
        "help": f"how many of the images to use, spread over the folders (default: {IMAGES})",
    },
    "--batch-size": {
        "type": positive,
        "default": 32,
        "metavar": "N",
        "help": "images of one batch, also in training (default: %(default)s)",
    },
    "--layers": {
        "action": "append",
        "metavar": "PATTERN",
        "help": "only layers whose names match, such as 'layer4.*'; any number of times",
    },
    "--exclude": {
        "action": "append",
        "metavar": "PATTERN",
        "help": "layers that stay as they are, such as 'head.*'; any number of times",
    },
    "--keep-first": {
        "action": argparse.BooleanOptionalAction,
        "default": True,
        "help": "leave the first layer as it is (default: yes)",
    },
    "--force": {"action": "store_true", "help": "overwrite files that exist"},
    "--json": {"action": "store_true", "help": "print JSON instead of the table"},
    "--config": {
        "type": Path,
        "metavar": "FILE",
        "help": "a .toml, .json or .yaml file with options, by their long names, and MODEL as "
        "'model'; the command line goes before it",
    },
}


def add_shared(add: Add, *options: str) -> None:
    """Options that mean the same in several commands."""
    for option in options:
        add(option, **_SHARED[option])


def add_verbosity(group: Any) -> None:
    """How much is said; in a parser, or in a group of its arguments."""
    add = group.add_mutually_exclusive_group().add_argument
    add(
        *("-q", "--quiet"),
        action="store_true",
        help="no progress and no remarks: the report, errors and warnings alone",
    )
    add(
        *("-v", "--verbose"),
        action="store_true",
        help="more: versions, progress in files too, reports of all --rates, tracebacks of errors",
    )


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model, and what else is said of it."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="name of a torchvision classification model, timm/NAME, hf/FOLDER (a local folder of "
        "transformers), package.module:factory (a function of yours that returns the model), a "
        "file written by `sketchlayers compress`, or, with --trust-pickle, a file with a whole "
        "pickled model",
    )
    add = parser.add_argument_group("model").add_argument
    add(
        "--weights",
        type=Path,
        metavar="FILE",
        help="trained weights for the named model: a state dict of torch.save or safetensors",
    )
    add("--num-classes", type=positive, metavar="N", help="classes of the named model (1000)")
    add(
        "--input-size",
        type=input_size,
        metavar="CxHxW",
        help="size of one input, such as 3x224x224: images are resized and cropped to it; without "
        "images it is needed to count multiply-adds",
    )
    add(
        "--trust-pickle",
        action="store_true",
        help="load MODEL with pickle, which runs the code in the file",
    )


def add_method(add: Add, default: str) -> None:
    """By what layers are replaced."""
    add("--method", help=f"one of {', '.join(methods.names())} (default: {default})")


def add_computing(parser: argparse.ArgumentParser) -> Any:
    """Where, and with how much memory; returns the group."""
    group = parser.add_argument_group("computing")
    add = group.add_argument
    add("--device", default="cpu", help="where to compute, such as cuda (default: %(default)s)")
    add(
        "--memory-budget",
        type=gibibytes,
        default=MEMORY_BUDGET,
        metavar="GIB",
        help="memory for second moments in one pass, and for images and feature maps that are kept "
        f"(default: {MEMORY_BUDGET / 2**30:g})",
    )
    return group


def add_sketch_options(parser: argparse.ArgumentParser) -> None:
    """Options of `methods.Sketch`."""
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


# ---------------------------------------------------------------------------------- reading them


def check_destination(option: str, path: Path, force: bool) -> None:
    """Makes sure that a file can be written there.

    Raises:
        WrongInput: its folder does not exist, or the file does and must not be overwritten.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise WrongInput(f"{option} must be a file in a folder that exists (got {path})")
    if path.exists() and not force:
        raise WrongInput(f"{path} exists; --force overwrites it")


def chosen_device(name: str) -> torch.device:
    """The device, if something can be put there."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise WrongInput(f"--device must be one of this machine (got {name}: {reason})") from error
    return device


def chosen_method(args: argparse.Namespace, default: str) -> methods.Method:
    """The method with those options that were given."""
    options = {
        option: value
        for option in ("num_sketches", "mixing", "scale", "blocks", "signs", "frame")
        if (value := getattr(args, option)) is not None
    }
    try:
        return methods.get(args.method or default, **options)
    except TypeError as error:
        if args.method in (None, "auto"):
            flags = ", ".join(f"--{option.replace('_', '-')}" for option in options)
            raise WrongInput(f"{flags} must go with --method sketch") from error
        raise WrongInput(str(error)) from error


def chosen_model(args: argparse.Namespace, *, on_meta: bool = False) -> Loaded:
    """The model; see `open_model`."""
    return open_model(
        args.model, args.weights, args.num_classes, trust=args.trust_pickle, on_meta=on_meta
    )


def example_input(model: nn.Module, size: tuple[int, ...] | None) -> Tensor | None:
    """One input of zeros, of the type and on the device of the model's parameters."""
    if size is None:
        return None
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.zeros(1, *size, dtype=like.dtype, device=like.device)


def image_batches(args: argparse.Namespace, loaded: Loaded) -> ImageBatches:
    """Batches of those images of the folder ``--calibration`` that are to be used."""
    prepare = loaded.preparation(args.input_size)
    found = find_images(args.calibration)
    chosen = spread(found, args.images or IMAGES)
    folders = len({file.parent for file in chosen})
    tell(
        f"calibrating on {len(chosen):,} of {len(found):,} images, from {folders:,} "
        f"folder{'s' * (folders != 1)}, as {joined(prepare.size)}"
    )
    return ImageBatches(chosen, prepare, args.batch_size)


def progress_of(args: argparse.Namespace) -> bool | None:
    """Whether to draw progress bars: by -q, by -v, or on a terminal."""
    return False if args.quiet else True if args.verbose else None


def images_of(args: argparse.Namespace) -> int:
    """How many images of the folder ``--calibration`` are to be used."""
    return min(args.images or IMAGES, len(find_images(args.calibration)))


def written(path: Path) -> str:
    """What to tell of a file that has been written."""
    return f"written: {path} ({quantity(path.stat().st_size, 'B')})"
