"""``sketchlayers calibrate``: the inputs of a model's layers, measured on images, in a file."""

from __future__ import annotations

import argparse
from pathlib import Path

from sketchlayers._runtime.files import SAFETENSORS
from sketchlayers.cli.messages import WrongInput, tell
from sketchlayers.cli.options import (
    add_computing,
    add_model,
    add_shared,
    add_verbosity,
    check_destination,
    chosen_device,
    chosen_model,
    image_batches,
    progress_of,
    written,
)
from sketchlayers.compression.calibration.calibrate import calibrate


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``sketchlayers calibrate``."""
    parser.usage = "%(prog)s MODEL --calibration DIR --out FILE [...]"
    add = parser.add_argument_group("images").add_argument
    add("--calibration", required=True, type=Path, metavar="DIR", help="folder of images")
    add_shared(add, "--images", "--batch-size")
    group = parser.add_argument_group("output")
    add = group.add_argument
    add("--out", required=True, type=Path, metavar="FILE", help="a .safetensors file to write")
    add_shared(add, "--force")
    add_verbosity(group)
    add_model(parser)
    add_shared(parser.add_argument_group("layers").add_argument, "--layers")
    add_computing(parser)


def run(args: argparse.Namespace) -> int:
    """Measures second moments on images and writes them."""
    check_destination("--out", args.out, args.force)
    if args.out.suffix.lower() != SAFETENSORS:
        raise WrongInput(f"--out must be a {SAFETENSORS} file (got {args.out})")
    loaded = chosen_model(args)
    result = calibrate(
        loaded.model.to(chosen_device(args.device)),
        image_batches(args, loaded),
        layers=args.layers,
        memory_budget=args.memory_budget,
        progress=progress_of(args),
    )
    result.save(args.out)
    print(result)
    tell(written(args.out))
    tell(f"use it: sketchlayers compress ... --calibration {args.out}")
    return 0
