"""The commands: ``sketchlayers compress | inspect | calibrate | doctor | bench``.

This module finds the command, parses its arguments, calls it and prints its errors in one line. A
command's module is imported only when that command is asked for, so that ``doctor`` works where
PyTorch or the compiled extension does not.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sketchlayers._version import __version__


@dataclass(frozen=True)
class Command:
    """Names a command's module and two functions: ``add_arguments(parser)``, ``run(args)``."""

    summary: str
    module: str
    add_arguments: str = "add_arguments"
    run: str = "run"

    def load(self, function: str) -> Any:
        """Imports the command's module and returns one of its functions."""
        return getattr(importlib.import_module(f"sketchlayers.cli.{self.module}"), function)


COMMANDS = {
    "compress": Command(
        "compress a trained model with some images, and save it",
        "compress",
        "add_arguments_compress",
        "run_compress",
    ),
    "inspect": Command(
        "list the layers of a model and which of them can be compressed",
        "compress",
        "add_arguments_inspect",
        "run_inspect",
    ),
    "calibrate": Command(
        "measure the inputs of a model's layers on images, for `compress --calibration FILE`",
        "compress",
        "add_arguments_calibrate",
        "run_calibrate",
    ),
    "doctor": Command("check the installation and say what to do if something is wrong", "doctor"),
    "bench": Command("time sketched layers against PyTorch's own", "bench"),
}


def build_parser(chosen: str | None) -> argparse.ArgumentParser:
    """Returns the parser of all commands, with the arguments of the chosen one."""
    parser = argparse.ArgumentParser(
        prog="sketchlayers",
        description="Compress trained PyTorch networks with some images, without labels. The "
        "sketched layers of the package are for training small networks from scratch, in Python.",
    )
    parser.add_argument("--version", action="version", version=f"sketchlayers {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.summary, description=command.summary)
        if name == chosen:
            command.load(command.add_arguments)(subparser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Arguments without the program's name; those of the process when not given.

    Returns:
        The exit code: 0 when all is well, 1 when the command failed, 2 for wrong arguments.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((argument for argument in arguments if argument in COMMANDS), None)
    try:
        args = build_parser(chosen).parse_args(arguments)
        command = COMMANDS[args.command]
        return int(command.load(command.run)(args))
    except (ImportError, OSError, ValueError) as error:
        print(f"sketchlayers {chosen}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
