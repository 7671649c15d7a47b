"""Reading a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sketchlayers._runtime.files import shortened
from sketchlayers._runtime.parallel import has_shards, unwrapped
from sketchlayers.nn._rounding import Rounding, note
from sketchlayers.surgery.forms import FormError, with_forms_at

from ._container import Container, Entry, WrongFileError, opened
from ._layers import forms_of
from ._match import match
from ._packed import PackedDescription, unpacked
from ._save import file_at
from .architecture import build


@dataclass(frozen=True)
class Description:
    """What a file says of the model in it.

    Attributes:
        version: of the format.
        architecture: the torchvision network that the model was made from; None for another one.
        layers: kind and configuration of every convolution and fully connected layer, by its place.
        reports: how the model was compressed, oldest first.
        shapes: of the stored tensors.
        bits: of each number of those that are stored in few.
    """

    version: int
    architecture: Mapping[str, Any] | None
    layers: Mapping[str, Mapping[str, Any]]
    reports: tuple[Mapping[str, Any], ...]
    shapes: Mapping[str, tuple[int, ...]]
    bits: Mapping[str, int]


def load(
    path: str | os.PathLike[str],
    into: nn.Module | None = None,
    *,
    device: torch.device | str | int | None = None,
) -> nn.Module:
    """The model in a file that `save` wrote.

    The header of the file is compared with the network before anything is allocated, and the
    checksum of all contents before anything is changed. No pickled code is run.

    Args:
        path: of the file, or of a folder with ``model.safetensors``.
        into: the network as its class makes it, or already compressed; it may be on the meta
            device. It is changed: compressed layers take the places of its own, with all that
            `compress` lets them keep, and its tensors are replaced by those of the file, of the
            file's types, on the devices where the network has its own (the CPU for meta). So make
            optimisers afterwards. None: a torchvision network, if `save` was told its architecture,
            on the CPU and in evaluation mode. What ``fully_shard`` has shared out takes this
            process's part of every tensor, in the types of the network, whose compressed layers
            must be those of the file; all processes read the file.
        device: where all of the network shall be; None: see above. On ``"meta"`` the network has
            the layers of the file and no values: the header alone is read. Such a network can be
            sharded, be given memory by ``to_empty``, and take the file then.

    Returns:
        The model: ``into`` itself, unless that is a single layer to be replaced.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: torchvision is needed and not installed; or the file has a sketched or hashed
            layer, and the compiled extension is missing, or was built for another PyTorch.
        RuntimeError: there is no such device here.
        TypeError: ``into`` is no module, or ``DistributedDataParallel`` or the like around one.
        ValueError: the file is another one, damaged, or of a later version; or it does not fit the
            network. The network is as it was.

    Example:
        >>> dense = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU())
        >>> options = {"rate": 0.5, "keep_first": False, "init": "random"}
        >>> small, report = sketchlayers.compress(dense, "sketch", **options)
        >>> path = sketchlayers.save(small, "small.safetensors")
        >>> model = sketchlayers.load(path, into=dense)
    """
    if into is not None and not isinstance(into, nn.Module):
        raise TypeError(f"load: into must be an nn.Module (got {type(into).__name__})")
    if into is not None and unwrapped(into) is not into:
        # What wraps a network may hold its parameters, as a reducer of gradients does.
        raise TypeError(
            f"load: into must be the network itself (got {type(into).__name__} around it); load "
            "into the network before it is wrapped or compiled"
        )
    if device is not None and into is not None and has_shards(into):
        raise ValueError(f"load: device must be None for a sharded network (got device={device!r})")
    place = None if device is None else _usable(device)
    path = file_at(path)
    try:
        with opened(path) as container:
            part = _model_part(container)
            few_bits = _in_few_bits(part, container)
            entries = container.entries | {name: one.entry for name, one in few_bits.items()}
            network = _network(part) if into is None else into
            with with_forms_at(network, forms_of(part)) as network:
                found = match(network, part, entries, device=place)
                if found.has_values:
                    tensors, rounded = _values(container, few_bits)
                    model = found.take(tensors)
                    _note(found.sources, rounded, model)
                else:
                    model = found.take(_without_values(entries))
    except (FormError, WrongFileError) as error:
        raise ValueError(f"load: {path} cannot be loaded: {error}") from error
    return model.eval() if into is None else model


def read_description(path: str | os.PathLike[str]) -> Description:
    """What the header of a file says; tensors are not read, and the checksum is not compared.

    Args:
        path: of the file, or of a folder with ``model.safetensors``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is another one, damaged, or of a later version.
    """
    path = file_at(path)
    try:
        with opened(path) as container:
            part = _model_part(container)
            few_bits = _in_few_bits(part, container)
            entries = container.entries | {name: one.entry for name, one in few_bits.items()}
            reports = container.parts.get("reports", [])
            if not isinstance(reports, list) or not all(isinstance(one, dict) for one in reports):
                raise WrongFileError("its reports must be a list of JSON objects")
            return Description(
                version=container.version,
                architecture=part.get("architecture"),
                layers=part["layers"],
                reports=tuple(reports),
                shapes={name: entry.shape for name, entry in entries.items()},
                bits={name: one.bits for name, one in few_bits.items()},
            )
    except WrongFileError as error:
        raise ValueError(f"read_description: {path} cannot be read: {error}") from error


def _usable(device: torch.device | str | int) -> torch.device:
    """The device, on which there can be tensors.

    Raises:
        RuntimeError: there is none here.
    """
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, NotImplementedError, RuntimeError) as error:  # as builds of PyTorch do
        raise RuntimeError(
            f"load: device must be one that PyTorch can use here (got device={device!r}: "
            f"{shortened(error)})"
        ) from error


def _model_part(container: Container) -> dict[str, Any]:
    part = container.parts.get("model")
    if not isinstance(part, dict) or not isinstance(part.get("layers"), dict):
        raise WrongFileError("its description of the model must be a JSON object with layers")
    return part


def _in_few_bits(part: Mapping[str, Any], container: Container) -> dict[str, PackedDescription]:
    """What the file holds as whole numbers of a few bits."""
    said = part.get("rounded", {})
    if not isinstance(said, dict):
        raise WrongFileError("what it says of few bits must be a JSON object")
    missing = [name for name in said if name not in container.entries]
    if missing:
        raise WrongFileError(f"it must have the tensor {missing[0]} that it says is in few bits")
    return {
        name: PackedDescription(name, one, container.entries[name]) for name, one in said.items()
    }


def _values(
    container: Container, few_bits: Mapping[str, PackedDescription]
) -> tuple[dict[str, Tensor], dict[str, Rounding]]:
    """All tensors, and how those in few bits follow from them."""
    tensors, rounded = container.read(), {}
    for name, description in few_bits.items():
        tensors[name], rounded[name] = unpacked(tensors[name], description)
    return tensors, rounded


def _note(sources: Mapping[str, str], rounded: Mapping[str, Rounding], model: nn.Module) -> None:
    """Notes on the modules of a model what was stored in few bits."""
    for name, source in sources.items():
        if source in rounded:
            place, _, own = name.rpartition(".")
            note(model.get_submodule(place), own, rounded[source])


def _without_values(entries: Mapping[str, Entry]) -> dict[str, Tensor]:
    return {
        name: torch.empty(entry.shape, dtype=entry.dtype, device="meta")
        for name, entry in entries.items()
    }


def _network(part: Mapping[str, Any]) -> nn.Module:
    if "architecture" not in part:
        raise WrongFileError(
            "it does not say how to make the network, so into= must be given (of torchvision's "
            "networks, save(..., architecture=NAME) keeps it)"
        )
    return build(part["architecture"])
