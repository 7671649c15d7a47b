"""``sketchlayers inspect``: which layers of a model can be compressed."""

from __future__ import annotations

import argparse

from sketchlayers.cli.options import (
    add_method,
    add_model,
    add_shared,
    add_sketch_options,
    chosen_method,
    chosen_model,
    example_input,
)
from sketchlayers.compression.api import inspect


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``sketchlayers inspect``."""
    add_shared(parser.add_argument_group("output").add_argument, "--json")
    add_model(parser)
    add_shared(parser.add_argument_group("layers").add_argument, "--keep-first")
    add_method(parser.add_argument_group("method").add_argument, "auto")
    add_sketch_options(parser)


def run(args: argparse.Namespace) -> int:
    """Prints what could be compressed."""
    model = chosen_model(args, on_meta=True).model
    inspection = inspect(
        model,
        example_input(model, args.input_size),
        method=chosen_method(args, "auto"),
        keep_first=args.keep_first,
    )
    print(inspection.to_json() if args.json else inspection)
    return 0
