"""Options of the commands: one table, since an option means the same in every script."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch

from image_data import DATA_SETS
from networks import NETWORKS


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


def _threads(text: str) -> int:
    """The number of threads, which PyTorch gets at once."""
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1 (got {count})")
    torch.set_num_threads(count)
    return count


_AMP = ["off", "bf16", "fp16"]
_OPTIONS: dict[str, dict[str, Any]] = {
    # Images.
    "--data": {"choices": list(DATA_SETS), "default": "cifar10"},
    "--root": {"type": Path, "help": "folder with the data set's files"},
    "--label": {"help": "what figures call the data set"},
    "--size": {"type": int, "help": "height and width of images (default: the network's)"},
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
    # Training: the names of `training.Recipe`.
    "--epochs": {"type": int},
    "--batch-size": {"type": int},
    "--lr": {"type": float, "help": "largest learning rate (default: what suits each method)"},
    "--compressed-lr": {
        "type": float,
        "help": "factor on the learning rate of compressed weights",
    },
    "--gain": {
        "choices": ["mean", "none"],
        "help": "none: the factors of a sketch get the learning rate as it is",
    },
    "--momentum": {"type": float},
    "--weight-decay": {"type": float},
    "--warmup": {"type": float, "help": "epochs"},
    "--schedule": {"choices": ["cosine", "step"]},
    "--label-smoothing": {"type": float},
    "--clip": {"type": float, "help": "largest norm of all gradients together"},
    "--amp": {"choices": _AMP, "default": "off"},
    "--precision": {
        "choices": ["highest", "high", "medium"],
        "help": "of float32 on GPUs; high and medium take TF32",
    },
    "--compile": {"action": "store_true", "help": "use torch.compile"},
    "--deterministic": {"action": "store_true", "help": "deterministic kernels only"},
    "--test-every": {"type": int, "help": "epochs; the last has one"},
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
