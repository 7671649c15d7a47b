"""Options of the commands: one table, since an option means the same in every script."""

from __future__ import annotations

import argparse
import ast
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from image_data import DATA_SETS, DataSet, load
from networks import IMAGE_SIZES, NETWORKS
from sketchlayers.cli.kinds import positive
from training import Recipe


def documented_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help begins with the first paragraph of a script and ends with the others."""
    description, _, details = (doc or "").partition("\n\n")
    command = re.search(r"experiments/(\w+\.py(?: [a-z]\w*)?)", details)
    return argparse.ArgumentParser(
        prog=command[1] if command else None,
        description=description,
        epilog=details,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_options(parser: Any, *flags: str, **defaults: Any) -> None:
    """Adds options of the table to a parser or a group.

    Args:
        parser: gets them.
        flags: such as ``--root``.
        defaults: by name, in place of the table's; names without a flag mean nothing.
    """
    for flag in flags:
        name = flag[2:].replace("-", "_")
        own = {"default": defaults[name]} if name in defaults else {}
        parser.add_argument(flag, **{**_OPTIONS[flag], **own})


def assignment(text: str) -> tuple[str, object]:
    """``NAME=VALUE`` with a value of Python's, or a string; the name may have dots.

    Raises:
        argparse.ArgumentTypeError: neither.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.replace(".", "").isidentifier():
        raise argparse.ArgumentTypeError(f"must be NAME=VALUE (got {text!r})")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _threads(text: str) -> int:
    """The number of threads, which PyTorch gets at once."""
    torch.set_num_threads(count := positive(text))
    return count


_OPTIONS: dict[str, dict[str, Any]] = {
    # Training.
    **{f"--{one.name.replace('_', '-')}": one.metadata["option"] for one in fields(Recipe)},
    # Images.
    "--data": {"choices": list(DATA_SETS), "default": "cifar10"},
    "--root": {"type": Path, "help": "folder with the data set's files"},
    "--label": {"help": "what figures call the data set"},
    "--size": {"type": positive, "help": "height and width of images (default: the network's)"},
    "--crop-scale": {
        "type": float,
        "help": "crop training images at random to at least this share of their area and resize "
        "them (default: crop after padding with zeros)",
    },
    "--train-size": {
        "type": positive,
        "help": "height and width of the crops to train on (default: those of the test images)",
    },
    "--trivial-augment": {
        "action": "store_true",
        "help": "change the shape or the colours of each training image, in one way at random",
    },
    "--subset": {"type": int, "help": "number of training images, evenly over classes"},
    "--test-subset": {"type": int, "help": "the same for test images"},
    "--held-out": {
        "type": int,
        "help": "test on this many training images outside the subset instead, to choose settings",
    },
    "--stream": {"action": "store_true", "help": "decode images again in every epoch"},
    "--workers": {"type": int, "default": 2, "help": "processes that decode streamed images"},
    # Networks.
    "--network": {"choices": list(NETWORKS)},
    "--width": {"type": float, "default": 1.0, "help": "factor on channels"},
    "--dropout": {"type": float, "help": "probability (default: the network's own)"},
    "--weights": {"type": Path, "help": "file with the network's weights"},
    "--seed": {"type": int, "default": 0},
    "--seeds": {"nargs": "+", "type": int, "default": [0]},
    # The run, and what becomes of its results.
    "--out": {"type": Path, "help": "folder of results"},
    "--device": {"help": "cpu or cuda (default: a GPU where there is one)"},
    "--threads": {"type": _threads, "help": "of the processor (default: PyTorch's choice)"},
    "--plan": {"action": "store_true", "help": "say what would be done; do nothing"},
    "--csv": {"type": Path, "help": "file of results"},
    "--png": {"type": Path, "help": "file of the plot"},
    "--markdown": {"action": "store_true", "help": "print tables for a page"},
}


def load_data(args: argparse.Namespace, network: str) -> DataSet:
    """The data set that the options describe, in the size that a network is made for."""
    names = ("subset", "test_subset", "held_out", "crop_scale", "train_size", "trivial_augment")
    given = {name: getattr(args, name) for name in names if name in args}
    size = args.size or IMAGE_SIZES.get(network)
    return load(args.data, args.root, size=size, stream=args.stream or None, **given)
