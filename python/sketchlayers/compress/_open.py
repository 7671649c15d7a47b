"""Models as a command line names them: by torchvision's name, or by a file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from sketchlayers.compress._files import (
    build_torchvision,
    is_compressed,
    read,
    rebuild,
    reports_of,
    shortened,
    torchvision_names,
)

TRANSFORMS_INPUT = ("googlenet", "inception_v3")
"""Networks whose published weights want their inputs transformed, which they do themselves."""

# torchvision's files of DenseNets are older than its names of their layers.
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\.\w+)$")


class WrongInput(Exception):
    """Something that the user gave is wrong; the message is one line."""


@dataclass(frozen=True)
class Loaded:
    """A model, and how to rebuild it.

    Attributes:
        model: the model.
        architecture: name and options of the torchvision model; None for a pickled model.
        reports: of how it was compressed before, oldest first.
        trained: whether its weights come from a file.
    """

    model: nn.Module
    architecture: Mapping[str, Any] | None = None
    reports: Sequence[Mapping[str, Any]] = ()
    trained: bool = True

    @property
    def name(self) -> str | None:
        """Of the torchvision model."""
        return None if self.architecture is None else self.architecture["name"]


def open_model(
    name: str, weights: Path | None, num_classes: int | None, *, trust: bool, on_meta: bool = False
) -> Loaded:
    """The model of this name or in this file, in evaluation mode if it is torchvision's.

    Args:
        name: of a torchvision classification model, or a path.
        weights: state dict to load into the named model.
        num_classes: of the named model; None for 1000.
        trust: read pickled objects, too.
        on_meta: without values, where nobody asks for them.

    Raises:
        WrongInput: there is no such model, or options do not go together.
        FileNotFoundError, ValueError: a file is missing or damaged.
    """
    names = torchvision_names()
    if name in names:
        architecture: dict[str, Any] = {"name": name, "num_classes": num_classes}
        if weights is not None and num_classes is None and name in TRANSFORMS_INPUT:
            architecture["transform_input"] = True
        model = build_torchvision(**architecture, on_meta=on_meta and weights is None)
        if weights is not None:
            _load_weights(model, weights)
        return Loaded(model, architecture, trained=weights is not None)
    path = Path(name)
    if not path.is_file():
        close = difflib.get_close_matches(name, names, n=3)
        hint = f"; close names: {', '.join(close)}" if close else ""
        missing = "" if names else " (torchvision is not installed)"
        raise WrongInput(
            f"MODEL must be a torchvision classification model{missing} or a file "
            f"(got {name!r}{hint})"
        )
    for option, value in (("--weights", weights), ("--num-classes", num_classes)):
        if value is not None:
            raise WrongInput(f"{option} goes with a torchvision name, not with a file")
    return _open_file(path, trust=trust)


def _open_file(path: Path, *, trust: bool) -> Loaded:
    contents = _read(path, trust=trust)
    if isinstance(contents, nn.Module):
        return Loaded(contents)
    if is_compressed(contents):
        model = rebuild(path, contents)
        return Loaded(model, contents["architecture"], reports_of(contents))
    if isinstance(contents, Mapping):
        raise WrongInput(
            f"{path} holds weights and no model: give the model's name and --weights {path}"
        )
    raise WrongInput(f"{path} must hold a model (got {type(contents).__name__})")


def _load_weights(model: nn.Module, path: Path) -> None:
    contents = _read(path, trust=False)
    if is_compressed(contents):
        raise WrongInput(f"{path} holds a compressed model: give it as MODEL, without --weights")
    for key in ("state_dict", "model"):
        if isinstance(contents, Mapping) and isinstance(contents.get(key), Mapping):
            contents = contents[key]
    if not isinstance(contents, Mapping):
        raise WrongInput(f"{path} must hold a state dict (got {type(contents).__name__})")
    try:
        model.load_state_dict(_with_usual_names(contents))
    except RuntimeError as error:
        raise WrongInput(f"{path} does not fit the model: {shortened(error)}") from error


def _with_usual_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """Without the prefix of networks trained on several devices, and names of old DenseNets."""
    parallel = all(str(name).startswith("module.") for name in state)
    names = {name: str(name).removeprefix("module." if parallel else "") for name in state}
    return {_OLD_DENSENET.sub(r"\1\2", names[name]): value for name, value in state.items()}


def _read(path: Path, *, trust: bool) -> Any:
    return read(path, trust=trust, how_to_trust="say --trust-pickle")
