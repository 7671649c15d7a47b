"""``sketchlayers inspect`` and ``sketchlayers compress``: whole models from a shell.

What ``compress`` writes of a torchvision model is described and opened by
`sketchlayers.compress._files`. Of a pickled model it writes the whole compressed model, pickled:
nothing else says how to rebuild it.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sketchlayers import methods
from sketchlayers.compress._files import (
    build_torchvision,
    compressed_contents,
    is_compressed,
    read,
    rebuild,
    reports_of,
    shortened,
    torchvision_names,
)
from sketchlayers.compress._table import quantity
from sketchlayers.compress.convert import compress, inspect

WRONG_INPUT = 2
"""Exit code when the arguments or the files are wrong."""

Rate = float | tuple[str, float]


class _WrongInput(Exception):
    """Something that the user gave is wrong; the message is one line."""


def add_arguments_inspect(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``sketchlayers inspect``."""
    _add_model_arguments(parser)
    _add_method_arguments(parser)


def add_arguments_compress(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of ``sketchlayers compress``."""
    _add_model_arguments(parser)
    add = parser.add_argument
    add(
        "--rate",
        required=True,
        action="append",
        type=_rate,
        metavar="RATE",
        help="parameters after / before: one number for the whole model, or PATTERN=NUMBER, any "
        "number of times, for a layer or glob pattern of layers",
    )
    add(
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help="where to write the smaller model; of a pickled MODEL it holds the whole model, "
        "pickled too, and needs --trust-pickle to be read again",
    )
    add("--force", action="store_true", help="overwrite FILE if it exists")
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
    add(
        "--init",
        choices=("fit", "random"),
        default="fit",
        help="approximate the weights, or start for training from scratch (default: %(default)s)",
    )
    add("--seed", type=int, help="what the layers' seeds are derived from (default: random)")
    _add_method_arguments(parser)


def run_inspect(args: argparse.Namespace) -> int:
    """Prints what could be compressed; returns the exit code."""
    return _guarded("inspect", lambda: _inspect(args))


def run_compress(args: argparse.Namespace) -> int:
    """Compresses, writes the file and prints the report; returns the exit code."""
    return _guarded("compress", lambda: _compress(args))


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="name of a torchvision classification model, a file written by `sketchlayers "
        "compress`, or, with --trust-pickle, a file with a whole pickled model",
    )
    add("--weights", type=Path, metavar="FILE", help="state dict to load into the named model")
    add("--num-classes", type=int, metavar="N", help="classes of the named model (default: 1000)")
    add(
        "--trust-pickle",
        action="store_true",
        help="load MODEL with pickle, which runs whatever code the file says",
    )
    add(
        "--input-size",
        type=_input_size,
        metavar="CxHxW",
        help="size of one input, such as 3x224x224: the report then counts multiply-adds",
    )
    add("--json", action="store_true", help="print the report as JSON")


def _add_method_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--method", default="sketch", help="how to compress (default: %(default)s)")
    add("--num-sketches", type=int, metavar="L", help="sketches that are summed (default: 1)")
    add(
        "--mixing",
        choices=("spatial", "channel"),
        help="what a sketch mixes: channels and kernel positions, or channels (default: spatial)",
    )
    add("--scale", type=methods.scale_argument, help='"paper" (default), "normalized" or a number')
    add("--base", choices=("random",), help="add a fixed random weight made from the seed")
    add("--frame", choices=("signs",), help="multiply by fixed random signs made from the seed")


def _guarded(command: str, body: Callable[[], None]) -> int:
    """Runs the body; what is wrong with the input becomes one line and an exit code."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            body()
        for warning in caught:
            if issubclass(warning.category, UserWarning):
                print(f"warning: {warning.message}", file=sys.stderr)
        return 0
    except (_WrongInput, ValueError, OSError, ImportError) as error:
        message = " ".join(str(error).split()).removeprefix("compress: ")
        print(f"sketchlayers {command}: {message}", file=sys.stderr)
        return WRONG_INPUT


def _inspect(args: argparse.Namespace) -> None:
    loaded = _open_model(args, on_meta=args.weights is None)
    inspection = inspect(
        loaded.model, _example(loaded.model, args.input_size), method=_method(args)
    )
    print(inspection.to_json() if args.json else inspection)


def _compress(args: argparse.Namespace) -> None:
    _check_destination(args.out, args.force)
    rate = _joined_rate(args.rate)
    method = _method(args)
    loaded = _open_model(args, on_meta=False)
    model, report = compress(
        loaded.model,
        method,
        rate=rate,
        example_inputs=_example(loaded.model, args.input_size),
        layers=args.layers,
        keep_first=args.keep_first,
        init=args.init,
        seed=args.seed,
    )
    architecture = loaded.architecture
    if architecture is None:
        contents: object = model
        kind = ", the whole model: pickled, as MODEL was; to read it say --trust-pickle"
        reopen = f"model = torch.load({str(args.out)!r}, weights_only=False)"
    else:
        contents = compressed_contents(model, architecture, [*loaded.reports, report.to_dict()])
        kind = ""
        reopen = (
            "from sketchlayers.compress import open_compressed; "
            f"model = open_compressed({str(args.out)!r})"
        )
    size = _write(args.out, contents)
    print(report.to_json() if args.json else report)
    print(f"written: {args.out} ({quantity(size, 'B')}){kind}", file=sys.stderr)
    print(f"open it in Python: {reopen}", file=sys.stderr)


# ---------------------------------------------------------------------------- reading arguments


def _rate(text: str) -> Rate:
    pattern, equals, number = text.rpartition("=")
    try:
        value = float(number)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"must be a number or PATTERN=NUMBER (got {text!r})"
        ) from None
    return (pattern, value) if equals else value


def _joined_rate(rates: list[Rate]) -> float | dict[str, float]:
    """One number for the whole model, or the rates of patterns."""
    by_pattern = dict(rate for rate in rates if isinstance(rate, tuple))
    numbers = [rate for rate in rates if isinstance(rate, float)]
    if len(numbers) > 1 or (numbers and by_pattern):
        raise _WrongInput("--rate must be one number, or only pairs PATTERN=NUMBER")
    return numbers[0] if numbers else by_pattern


def _input_size(text: str) -> tuple[int, ...]:
    try:
        size = tuple(int(part) for part in text.split("x"))
    except ValueError:
        size = ()
    if not size or min(size) < 1:
        raise argparse.ArgumentTypeError(f"must be sizes such as 3x224x224 (got {text!r})")
    return size


def _method(args: argparse.Namespace) -> methods.Method:
    """The method with those options that were given."""
    options = {
        option: value
        for option in ("num_sketches", "mixing", "scale", "base", "frame")
        if (value := getattr(args, option)) is not None
    }
    try:
        return methods.get(args.method, **options)
    except TypeError as error:
        raise _WrongInput(str(error)) from error


def _example(model: nn.Module, size: tuple[int, ...] | None) -> Tensor | None:
    """One input of zeros, of the type and on the device of the model's parameters."""
    if size is None:
        return None
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.zeros(1, *size, dtype=like.dtype, device=like.device)


# --------------------------------------------------------------------------------- reading models


@dataclass(frozen=True)
class _Loaded:
    """A model, and how to rebuild it.

    Attributes:
        model: the model.
        architecture: name and number of classes of the torchvision model; None for a pickled model.
        reports: of how it was compressed before, oldest first.
    """

    model: nn.Module
    architecture: Mapping[str, Any] | None = None
    reports: Sequence[Mapping[str, Any]] = ()


def _open_model(args: argparse.Namespace, *, on_meta: bool) -> _Loaded:
    """The model that the arguments name; on the meta device if its values do not matter."""
    names = torchvision_names()
    if args.model in names:
        model = build_torchvision(args.model, args.num_classes, on_meta=on_meta)
        if args.weights is not None:
            _load_weights(model, args.weights)
        return _Loaded(model, {"name": args.model, "num_classes": args.num_classes})
    path = Path(args.model)
    if not path.is_file():
        close = difflib.get_close_matches(args.model, names, n=3)
        hint = f"; close names: {', '.join(close)}" if close else ""
        missing = "" if names else " (torchvision is not installed)"
        raise _WrongInput(
            f"MODEL must be a torchvision classification model{missing} or a file "
            f"(got {args.model!r}{hint})"
        )
    for option in ("weights", "num_classes"):
        if getattr(args, option) is not None:
            flag = option.replace("_", "-")
            raise _WrongInput(f"--{flag} goes with a torchvision name, not with a file")
    return _open_file(path, trust=args.trust_pickle)


def _open_file(path: Path, *, trust: bool) -> _Loaded:
    contents = _read(path, trust=trust)
    if isinstance(contents, nn.Module):
        return _Loaded(contents)
    if is_compressed(contents):
        model = rebuild(path, contents)
        return _Loaded(model, contents["architecture"], reports_of(contents))
    if isinstance(contents, Mapping):
        raise _WrongInput(
            f"{path} holds weights and no model: give the model's name and --weights {path}"
        )
    raise _WrongInput(f"{path} must hold a model (got {type(contents).__name__})")


def _load_weights(model: nn.Module, path: Path) -> None:
    contents = _read(path, trust=False)
    for key in ("state_dict", "model"):
        if isinstance(contents, Mapping) and isinstance(contents.get(key), Mapping):
            contents = contents[key]
    if not isinstance(contents, Mapping):
        raise _WrongInput(f"{path} must hold a state dict (got {type(contents).__name__})")
    try:
        model.load_state_dict(contents)
    except RuntimeError as error:
        raise _WrongInput(f"{path} does not fit the model: {shortened(error)}") from error


def _read(path: Path, *, trust: bool) -> Any:
    return read(path, trust=trust, how_to_trust="say --trust-pickle")


# --------------------------------------------------------------------------------------- writing


def _check_destination(path: Path, force: bool) -> None:
    if path.is_dir() or not path.parent.is_dir():
        raise _WrongInput(f"--out must be a file in a folder that exists (got {path})")
    if path.exists() and not force:
        raise _WrongInput(f"{path} exists; --force overwrites it")


def _write(path: Path, contents: object) -> int:
    """Writes all or nothing; returns the size in bytes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as file:
            torch.save(contents, file)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return size
