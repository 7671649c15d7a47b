"""Models as a command line names them: by torchvision's name, another source, or a file.

A file is one of `sketchlayers.save`, or a whole pickled model, of a user who trusts it. Weights for
a named model may come from a safetensors file or from one of ``torch.save``.
"""

from __future__ import annotations

import difflib
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from sketchlayers._runtime.extras import missing
from sketchlayers._runtime.files import shortened
from sketchlayers.checkpoint import load, read_description
from sketchlayers.checkpoint.architecture import build_torchvision, torchvision_names
from sketchlayers.cli.folders import Preparation
from sketchlayers.cli.messages import WrongInput
from sketchlayers.cli.sources import Source, is_source, open_source

TRANSFORMS_INPUT = ("googlenet", "inception_v3")
"""Networks that transform their inputs themselves, as their published weights need it."""

# torchvision's files of DenseNets are older than its names of their layers.
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\.\w+)$")


@dataclass(frozen=True)
class Loaded:
    """A model, and how to rebuild it.

    Attributes:
        model: the model.
        architecture: name and options of the torchvision model; None for a pickled model.
        reports: of how it was compressed before, oldest first.
        trained: whether its weights come from a file.
        source: where else it comes from than torchvision or a file.
    """

    model: nn.Module
    architecture: Mapping[str, Any] | None = None
    reports: Sequence[Mapping[str, Any]] = ()
    trained: bool = True
    source: Source | None = None

    @property
    def pickled(self) -> bool:
        """Whether nothing but a pickled file says how to make the model."""
        return self.architecture is None and self.source is None

    @property
    def name(self) -> str | None:
        """Name of the torchvision model; None for another one."""
        return None if self.architecture is None else self.architecture["name"]

    def preparation(self, size: Sequence[int] | None) -> Preparation:
        """Returns how images become its inputs.

        Args:
            size: of the input, in place of the usual one.
        """
        usual = None if self.source is None else self.source.preparation
        return Preparation.of(self.name, size, usual)

    def opening(self, path: Path) -> str:
        """Returns the Python that opens a file of this model, compressed."""
        if self.source is None:
            return f"import sketchlayers; model = sketchlayers.load({str(path)!r})"
        into = f"sketchlayers.load({str(path)!r}, into={self.source.dense})"
        return f"import sketchlayers; {self.source.imports}; model = {into}.eval()"


def open_model(
    name: str, weights: Path | None, num_classes: int | None, *, trust: bool, on_meta: bool = False
) -> Loaded:
    """Opens the model of this name or in this file; named ones are in evaluation mode.

    Args:
        name: of a torchvision classification model or of another source, or a path.
        weights: state dict to load into the named model.
        num_classes: of the named model; None for 1000.
        trust: read pickled objects, too.
        on_meta: without values, where nobody asks for them.

    Raises:
        WrongInput: there is no such model, or options do not go together.
        FileNotFoundError, ValueError: a file is missing or damaged.
        ImportError: it is a name, and the package that has it is not installed.
    """
    names = torchvision_names()
    if name in names:
        architecture: dict[str, Any] = {"name": name, "num_classes": num_classes}
        if weights is not None and num_classes is None and name in TRANSFORMS_INPUT:
            architecture["transform_input"] = True
        on_meta = on_meta and weights is None
        model = build_torchvision(**architecture, on_meta=on_meta)
        if on_meta:
            model.to("meta")  # the statistics of batch norms, too
        reports = () if weights is None else _load_weights(model, weights)
        return Loaded(model, architecture, reports, trained=weights is not None)
    path = Path(name)
    if is_source(name) and not path.is_file():
        source = open_source(name, num_classes)
        reports = () if weights is None else _load_weights(source.model, weights)
        trained = source.trained or weights is not None
        return Loaded(source.model, None, reports, trained, source)
    if not path.is_file():
        close = difflib.get_close_matches(name, names, n=3)
        hint = f"; close names: {', '.join(close)}" if close else ""
        if not names and not path.suffix:
            raise ImportError(missing(f"a network of the name {name}", "torchvision", "cli"))
        raise WrongInput(
            "MODEL must be the name of a torchvision classification model, timm/NAME, hf/FOLDER, "
            f"package.module:factory or a file (got {name!r}{hint})"
        )
    for option, value in (("--weights", weights), ("--num-classes", num_classes)):
        if value is not None:
            raise WrongInput(f"{option} goes with the name of a model, not with a file")
    return _open_file(path, trust=trust)


def _open_file(path: Path, *, trust: bool) -> Loaded:
    if is_checkpoint(path):
        description = read_description(path)
        return Loaded(load(path), description.architecture, description.reports)
    contents = read(path, trust=trust)
    if isinstance(contents, nn.Module):
        return Loaded(contents)
    if isinstance(contents, Mapping):
        raise WrongInput(
            f"{path} holds weights and no model: give the model's name and --weights {path}"
        )
    raise WrongInput(f"{path} must hold a model (got {type(contents).__name__})")


def _load_weights(model: nn.Module, path: Path) -> Sequence[Mapping[str, Any]]:
    """Puts the weights of a file into a model; returns how they were compressed before."""
    if is_checkpoint(path):
        described = read_description(path)
        if described.architecture is not None:
            raise WrongInput(
                f"{path} holds a model of its own: give it as MODEL, without --weights"
            )
        load(path, into=model)
        model.eval()
        return described.reports
    contents = read(path, trust=False)
    for key in ("state_dict", "model"):
        if isinstance(contents, Mapping) and isinstance(contents.get(key), Mapping):
            contents = contents[key]
    if not isinstance(contents, Mapping):
        raise WrongInput(f"{path} must hold a state dict (got {type(contents).__name__})")
    try:
        model.load_state_dict(_with_usual_names(contents))
    except RuntimeError as error:
        raise WrongInput(f"{path} does not fit the model: {shortened(error)}") from error
    return ()


def _with_usual_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """Without the prefix of networks trained on several devices, and names of old DenseNets."""
    parallel = all(str(name).startswith("module.") for name in state)
    names = {name: str(name).removeprefix("module." if parallel else "") for name in state}
    return {_OLD_DENSENET.sub(r"\1\2", names[name]): value for name, value in state.items()}


def read(path: Path, *, trust: bool) -> Any:
    """Reads a file of ``torch.save``, or the tensors of a safetensors file of another program.

    Raises:
        FileNotFoundError: there is no such file.
        WrongInput: the file cannot be read, or only with ``trust``, which reads pickled objects.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if _is_safetensors(path):
        return _tensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        if not trust and zipfile.is_zipfile(path):
            raise WrongInput(
                f"{path} holds pickled objects, which run code when they are read; "
                "if you trust it, say --trust-pickle"
            ) from error
        raise WrongInput(f"cannot read {path}: not a file of torch.save, or damaged") from error
    except Exception as error:  # a damaged file can raise anything
        raise WrongInput(
            f"cannot read {path}: {type(error).__name__}: {shortened(error)}"
        ) from error


def is_checkpoint(path: Path) -> bool:
    """Tells whether a file is one of `sketchlayers.save`, damaged or not."""
    return path.is_file() and _is_safetensors(path) and "sketchlayers.version" in _metadata(path)


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a header, and the header in JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except SafetensorError as error:
        raise WrongInput(f"cannot read {path}: damaged ({shortened(error)})") from error


def _tensors(path: Path) -> dict[str, Tensor]:
    kind = _metadata(path).get("format", "")
    if kind.startswith("sketchlayers."):
        raise WrongInput(f"{path} holds no model: it is a file of {kind}")
    return load_file(path)
