"""Files of compressed torchvision models, and reading the files of others.

What ``sketchlayers compress`` writes of a torchvision model has these contents:

- "format": `FORMAT`;
- "architecture": "name" and "num_classes" of the torchvision model, and "transform_input" if it
  transforms its inputs;
- "state_dict";
- "report": `Report.to_dict`, with the method, its options and the rank of each layer;
- "earlier": the reports, oldest first, of a model that was compressed more than once.

A file whose name ends in ``.safetensors`` holds the state dict as its tensors, and the rest, as
JSON, in its metadata. Any other is a dict that ``torch.load(path, weights_only=True)`` reads.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_safetensors
from torch import Tensor, nn

from sketchlayers import methods
from sketchlayers.compress._swap import replace_layers
from sketchlayers.methods._rank import as_rank

FORMAT = "sketchlayers.compressed"
SAFETENSORS = ".safetensors"
_IN_METADATA = ("architecture", "report", "earlier")

T = TypeVar("T")


def open_compressed(path: str | os.PathLike[str]) -> nn.Module:
    """The model in a file that ``sketchlayers compress`` wrote of a torchvision model.

    It is rebuilt on the CPU, in evaluation mode, and no pickled code is run. A file with a whole
    pickled model, which ``sketchlayers compress --trust-pickle`` writes, is opened by
    ``torch.load(path, weights_only=False)`` instead.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: torchvision is not installed.
        ValueError: the file is another one, or damaged.

    Example:
        >>> model = open_compressed("small.pt")
    """
    path = Path(path)
    contents = read(path)
    if not is_compressed(contents):
        raise ValueError(
            f"open_compressed: {path} must be a file that `sketchlayers compress` wrote of a "
            f"torchvision model (got {type(contents).__name__})"
        )
    return rebuild(path, contents)


def compressed_contents(
    model: nn.Module, architecture: Mapping[str, Any], reports: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What to write of a compressed torchvision model; ``reports`` are oldest first."""
    *earlier, report = reports
    return {
        "format": FORMAT,
        "architecture": dict(architecture),
        "state_dict": model.state_dict(),
        "report": report,
        "earlier": earlier,
    }


def write(path: Path, contents: object) -> int:
    """Writes contents in the format that the file's name asks for; returns the size in bytes.

    Raises:
        ValueError: the name asks for safetensors, and the contents are not in this module's format.
    """
    if path.suffix.lower() != SAFETENSORS:
        return write_atomically(path, lambda file: torch.save(contents, file))
    if not isinstance(contents, Mapping) or not is_compressed(contents):
        raise ValueError(f"{path}: safetensors cannot hold a whole model; choose another ending")
    # Tensors of a state dict may share memory, which safetensors does not write.
    tensors = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in contents["state_dict"].items()
    }
    metadata = {"format": FORMAT} | {key: json.dumps(contents[key]) for key in _IN_METADATA}
    return write_atomically(path, lambda file: file.write(as_safetensors(tensors, metadata)))


def write_atomically(path: Path, write_into: Callable[[BinaryIO], object]) -> int:
    """Writes all or nothing; returns the size in bytes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as file:
            write_into(file)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return size


def reports_of(contents: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """How the model of these contents was compressed, oldest first."""
    earlier = _part(contents, "earlier", list) if "earlier" in contents else []
    return [*earlier, _part(contents, "report", dict)]


def is_compressed(contents: object) -> bool:
    """Whether these contents of a file are in this module's format, damaged or not."""
    return isinstance(contents, Mapping) and contents.get("format") == FORMAT


def rebuild(path: Path, contents: Mapping[str, Any]) -> nn.Module:
    """The compressed model of these contents of ``path``.

    Raises:
        ImportError: torchvision is not installed.
        ValueError: the contents are damaged.
    """
    try:
        architecture = _part(contents, "architecture", dict)
        model = build_torchvision(
            architecture["name"],
            architecture["num_classes"],
            transform_input=architecture.get("transform_input", False),
        )
        for report in reports_of(contents):
            _replace_as_reported(model, report)
        model.load_state_dict(_part(contents, "state_dict", dict))
    except ImportError:
        raise
    except KeyError as error:
        raise ValueError(f"{path} is damaged: {error} is missing") from error
    except Exception as error:  # wrong values can fail anywhere on the way
        raise ValueError(f"{path} is damaged: {shortened(error)}") from error
    return model


def _part(contents: Mapping[str, Any], key: str, kind: type[T]) -> T:
    value = contents[key]
    if not isinstance(value, kind):
        raise TypeError(f"{key} must be a {kind.__name__} (got {type(value).__name__})")
    return value


def _replace_as_reported(model: nn.Module, report: Mapping[str, Any]) -> None:
    """Puts untrained layers of the reported methods and ranks into the model."""
    method = methods.get(report["method"], **_part(report, "options", dict))
    replacements = {}
    for row in _part(report, "layers", list):
        if row["method"] is not None:
            layer = model.get_submodule(row["name"])
            # One that stands for several has given the layer one of them, as it is by default.
            own = method if row["method"] == method.name else methods.get(row["method"])
            replacements[layer] = own.build(layer, as_rank(row["rank"]), init="random", seed=0)
    replace_layers(model, replacements, inplace=True)


def torchvision_names() -> list[str]:
    """Names of torchvision's classification models; none if it is not installed."""
    try:
        from torchvision import models
    except ImportError:
        return []
    return list(models.list_models(module=models))


def build_torchvision(
    name: str,
    num_classes: int | None = None,
    *,
    transform_input: bool = False,
    on_meta: bool = False,
) -> nn.Module:
    """The untrained model, in evaluation mode.

    Args:
        name: what torchvision calls it.
        num_classes: None for its own number.
        transform_input: whether GoogLeNet or Inception normalise inputs as their authors did.
        on_meta: build it without values, where it allows that.
    """
    from torchvision import models

    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if transform_input:
        options["transform_input"] = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how some models initialise themselves
        if on_meta:
            # Some models compute their sizes with tensors and cannot be made without values.
            with contextlib.suppress(NotImplementedError), torch.device("meta"):
                return models.get_model(name, weights=None, **options).eval()
        return models.get_model(name, weights=None, **options).eval()


def read(
    path: Path,
    *,
    trust: bool = False,
    how_to_trust: str = "use torch.load(path, weights_only=False)",
) -> Any:
    """What ``torch.save`` or `write` wrote, on the CPU; pickled objects only with ``trust``.

    Of a safetensors file of others, it is the dict of its tensors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or only with ``trust``; the message ends in
            ``how_to_trust`` then.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    if is_safetensors(path):
        return _read_safetensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust)
    except pickle.UnpicklingError as error:
        if not trust and zipfile.is_zipfile(path):
            raise ValueError(
                f"{path} holds pickled objects, which run code when they are read; "
                f"if you trust it, {how_to_trust}"
            ) from error
        raise ValueError(f"cannot read {path}: not a file of torch.save, or damaged") from error
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(
            f"cannot read {path}: {type(error).__name__}: {shortened(error)}"
        ) from error


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a header, and the header in JSON."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if (kind := metadata.get("format", "")) != FORMAT:
            if kind.startswith("sketchlayers."):
                raise ValueError(f"{path} holds no model: it is a file of {kind}")
            return tensors
        parts = {key: json.loads(metadata[key]) for key in _IN_METADATA if key in metadata}
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"cannot read {path}: damaged ({shortened(error)})") from error
    return {"format": FORMAT, "state_dict": tensors, **parts}


def shortened(error: Exception) -> str:
    """The message of an error as one line that is not too long."""
    text = " ".join(str(error).split()).removeprefix("compress: ")
    return text if len(text) <= 300 else f"{text[:300]}..."
