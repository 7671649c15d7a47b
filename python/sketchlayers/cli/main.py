"""The commands: ``sketchlayers compress | inspect | calibrate | doctor | bench``.

This module finds the command, parses its arguments, calls it and prints its errors in one line, or
with a traceback where they are not the user's. A command's module has two functions,
``add_arguments(parser)`` and ``run(args)``, and is imported only when that command is asked for, so
that ``doctor`` works where PyTorch or the compiled extension does not.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from collections.abc import Sequence
from types import ModuleType

from sketchlayers._version import __version__
from sketchlayers.cli.config import with_config
from sketchlayers.cli.messages import be_quiet, is_told, warn, warnings_at_the_end

COMMANDS = {
    "compress": "compress a trained model with some images, and save it",
    "inspect": "list the layers of a model and which of them can be compressed",
    "calibrate": "measure the inputs of a model's layers on images, for `compress --calibration "
    "FILE`",
    "doctor": "check the installation and say what to do if something is wrong",
    "bench": "time sketched layers against PyTorch's own",
}
"""What each command does, by the name of its module."""

WRONG_INPUT = 2
"""Exit code when arguments or files are wrong, or something that they need is missing."""


def build_parser(
    chosen: str | None,
) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser | None]:
    """Returns the parser of all commands and, with its arguments, that of the chosen one."""
    parser_of_chosen = None
    parser = argparse.ArgumentParser(
        prog="sketchlayers",
        description="Compress trained PyTorch networks with some images, without labels. The "
        "sketched layers of the package are for training small networks from scratch, in Python.",
    )
    parser.add_argument("--version", action="version", version=f"sketchlayers {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        subparser = commands.add_parser(name, help=summary, description=summary)
        if name == chosen:
            _module(name).add_arguments(subparser)
            parser_of_chosen = subparser
    return parser, parser_of_chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Arguments without the program's name; those of the process when not given.

    Returns:
        The exit code: 0 when all is well, 1 when the doctor finds something wrong, 2 for wrong
        arguments and files.

    Raises:
        Exception: what is not the user's error, so that its traceback is seen.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = next((argument for argument in arguments if argument in COMMANDS), None)
    verbose = False
    try:
        parser, inner = build_parser(chosen)
        if chosen is not None and inner is not None:
            at = arguments.index(chosen) + 1
            arguments[at:] = with_config(inner, arguments[at:])
        args = parser.parse_args(arguments)
        verbose = getattr(args, "verbose", False)
        be_quiet(getattr(args, "quiet", False))
        with warnings_at_the_end():
            return int(_module(args.command).run(args))
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if verbose and is_told(error):
            traceback.print_exc()
        if not is_told(error):
            warn(
                f"sketchlayers {chosen}: something unexpected went wrong; please report it with "
                "what follows and the output of `sketchlayers doctor`"
            )
            raise
        message = " ".join(str(error).split()).removeprefix(f"{chosen}: ")
        warn(f"sketchlayers {chosen}: {message.removeprefix('compress: ')}")
        return WRONG_INPUT
    finally:
        be_quiet(False)


def _module(command: str) -> ModuleType:
    return importlib.import_module(f"sketchlayers.cli.{command}")
