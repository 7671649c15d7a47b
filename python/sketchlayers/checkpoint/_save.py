"""Writing a model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sketchlayers._runtime.files import check_safetensors
from sketchlayers._runtime.parallel import has_shards, unwrapped, whole
from sketchlayers._runtime.processes import Processes
from sketchlayers.nn._geometry import memory_format
from sketchlayers.nn._rounding import roundings
from sketchlayers.reports.report import Report
from sketchlayers.surgery.forms import FormError, with_forms_at

from ._container import DTYPES, Entry, WrongFileError, has_nan, write
from ._layers import describe, forms_of, plain_forms
from ._match import match
from ._packed import described, packed
from .architecture import build

FILE_IN_FOLDER = "model.safetensors"
"""What the Hugging Face Hub calls the file in a model's folder."""


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    architecture: str | Mapping[str, Any] | None = None,
    reports: Report | Iterable[Report | Mapping[str, Any]] = (),
) -> Path:
    """Writes a model, compressed or not, into one safetensors file: all of it, or nothing.

    The file has every tensor of the state dict once, and the configuration of every convolution and
    fully connected layer. Signs, hashes and kept dense weights are not stored: they follow from the
    seeds. What `compress` has rounded, and nobody trained since, is stored in as few bits. `load`
    puts it into a network of the same class, and other programs read all other tensors as those of
    any safetensors file. Of several processes, one should write. For a network that
    ``fully_shard`` has shared out, call it in all of them: the first one writes the whole file.

    Args:
        model: any module; tensors on any device. Of ``DistributedDataParallel``, ``DataParallel``
            and ``torch.compile`` the network inside.
        path: of the file, ending in ``.safetensors``; in a folder that exists it is called
            ``model.safetensors``, as the Hugging Face Hub has it.
        architecture: of a network of torchvision, so that the file is enough to make it again: its
            name, or a dict with "name" and, where they are not the usual ones, "num_classes" and
            "transform_input".
        reports: how the model was compressed, kept in the file: what `compress` returned, or
            several, oldest first. `read_description` gives them back.

    Returns:
        The path of the file.

    Raises:
        RuntimeError: of a sharded network, another process has failed.
        TypeError: the model is no module, something in its state dict is no plain tensor, or a
            compressed layer is of a class that files do not know.
        ValueError: the path has another ending; a tensor has no values, holds NaN, or is of a type
            that files do not hold; or the architecture is not that of the model.

    Example:
        >>> model = nn.Sequential(sketchlayers.SKConv2d(8, 16, 3, rate=0.2), nn.ReLU())
        >>> path = sketchlayers.save(model, "small.safetensors")
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"save: model must be an nn.Module (got {type(model).__name__})")
    model = unwrapped(model)
    path = file_at(path)
    check_safetensors(
        "save",
        path,
        ", or torch.save(model.state_dict(), path) for a state dict without the layers",
    )
    processes = Processes("save", join=has_shards(model))
    with processes.together("writing"):
        writes = processes.rank == 0
        tensors, parts = _contents(model, architecture, reports, with_values=writes)
        if writes:
            rounded = _pack(model, tensors, parts["model"])
            write(path, tensors, parts, version=3 if rounded else 2)
    return path


def file_at(path: str | os.PathLike[str]) -> Path:
    """The path itself, or that of the file in the folder there."""
    path = Path(path)
    return path / FILE_IN_FOLDER if path.is_dir() else path


def _contents(
    model: nn.Module,
    architecture: str | Mapping[str, Any] | None,
    reports: Report | Iterable[Report | Mapping[str, Any]],
    *,
    with_values: bool,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file, and its JSON objects; without values, tensors on the meta device."""
    tensors, aliases = _stored(model, "cpu" if with_values else "meta")
    part: dict[str, Any] = {"layers": describe(model)}
    if forms := plain_forms(model):
        part["plain_forms"] = forms
    if aliases:
        part["aliases"] = aliases
    if inner := [n for n, x in tensors.items() if memory_format(x) != torch.contiguous_format]:
        part["channels_last"] = inner
    if architecture is not None:
        part["architecture"] = _checked(architecture, part, tensors)
    told = [reports] if isinstance(reports, Report) else reports
    listed = [one.to_dict() if isinstance(one, Report) else dict(one) for one in told]
    contiguous = {name: x.contiguous() for name, x in tensors.items()}
    return contiguous, {"model": part} | ({"reports": listed} if listed else {})


def _pack(model: nn.Module, tensors: dict[str, Tensor], part: dict[str, Any]) -> bool:
    """Puts bytes in the place of tensors that are whole numbers times scales, and says so.

    Those that have been trained since they were rounded stay as they are.
    """
    said = {}
    for name, rounding in roundings(model):
        values = tensors.get(name)
        integers = None if values is None or not values.numel() else rounding.integers(values)
        if values is not None and integers is not None:
            said[name] = described(values, rounding)
            tensors[name] = packed(integers, rounding)
    if said:
        part["rounded"] = said
    return bool(said)


def _stored(model: nn.Module, device: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor under its first name, and the other names with the first one of each.

    Sharded ones are gathered and brought to the device one by one, so that no GPU needs memory for
    the whole network.
    """
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) in first:
            aliases[name] = first[id(value)]
            continue
        first[id(value)] = name
        value = whole(value)
        _check_tensor(name, value)
        tensors[name] = value.detach().to(device)
    return tensors, aliases


def _check_tensor(name: str, value: Any) -> None:
    if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided:
        raise TypeError(
            "save: the state dict must have plain tensors "
            f"(got {type(value).__name__} for {name!r})"
        )
    if is_lazy(value) or value.is_meta:
        raise ValueError(f"save: tensors must have values (got none for {name!r})")
    if value.dtype not in DTYPES.values():
        raise ValueError(f"save: files hold no tensors of type {value.dtype} (got {name!r})")
    if has_nan(value.detach()):
        raise ValueError(f"save: tensors must hold no NaN (got some in {name!r})")


def _checked(
    architecture: str | Mapping[str, Any], part: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """The architecture, of which it is certain that the file is enough to make the model again."""
    named = {"name": architecture} if isinstance(architecture, str) else architecture
    options = {key: value for key, value in named.items() if value is not None}
    try:
        network = build(options)
        with with_forms_at(network, forms_of(part)) as network:
            match(network, part, {name: Entry.of(x) for name, x in tensors.items()})
    except (FormError, WrongFileError) as error:
        raise ValueError(f"save: architecture must be that of the model ({error})") from error
    return options
