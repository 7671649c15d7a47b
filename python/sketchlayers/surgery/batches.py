"""What a loader yields, and how a model is called with it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from typing import Any

import torch
from torch import Tensor, nn

Forward = Callable[[nn.Module, Any], object]
"""Calls a model with one batch of a loader: ``forward(model, batch)``."""

_INPUT_KEYS = ("image", "images", "pixel_values", "input", "inputs", "img", "x", "data")
_LABEL_KEYS = frozenset({"label", "labels", "target", "targets", "y"})
_REMEDY = "say with forward=lambda model, batch: ... how the model is called with a batch"


def call_model(model: nn.Module, batch: Any) -> object:
    """Calls the model with the inputs of a batch.

    - A tensor is the input.
    - Of a tuple or list the first item is the input, as in (images, labels).
    - Of a dict, everything but labels is passed by keyword if the model takes arguments of these
      names; otherwise the item with one of the names usual for images is the input.

    Raises:
        TypeError: the batch is nothing of this kind.
    """
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, Mapping):
        return _call_with_dict(model, batch)
    if isinstance(batch, tuple | list) and batch and isinstance(batch[0], Tensor | Mapping):
        return call_model(model, batch[0])
    raise TypeError(
        "calibrate: a batch must be a tensor, a tuple or list that begins with one, as (images, "
        f"labels), or a dict (got {_describe(batch)}); {_REMEDY}"
    )


def to_device(batch: Any, device: torch.device | None) -> Any:
    """Moves all tensors in a batch's tuples, lists and dicts to the device; None: leaves them.

    Inference tensors are copied, so that the model may change them in place outside of that mode.
    """
    if isinstance(batch, Tensor):
        moved = batch if device is None else batch.to(device, non_blocking=True)
        return moved.clone() if moved.is_inference() else moved
    if isinstance(batch, Mapping):
        return rebuilt(batch, {key: to_device(value, device) for key, value in batch.items()})
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(item, device) for item in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(to_device(item, device) for item in batch)
    return batch


def device_of(model: nn.Module) -> torch.device | None:
    """Returns the device of all parameters and buffers; None if there are several, or none."""
    tensors = (*model.parameters(), *model.buffers())
    devices = {tensor.device for tensor in tensors}
    return devices.pop() if len(devices) == 1 else None


def count_images(batch: Any) -> int:
    """Returns the length of the first tensor in the batch; 1 where there is none."""
    if isinstance(batch, Tensor):
        return batch.shape[0] if batch.ndim else 1
    items: Sequence[Any] = ()
    if isinstance(batch, Mapping):
        items = list(batch.values())
    elif isinstance(batch, tuple | list):
        items = batch
    for item in items:
        if isinstance(item, Tensor | Mapping | tuple | list):
            return count_images(item)
    return 1


def is_loader(value: object) -> bool:
    """Tells whether the value can be run through for batches, and is not one itself."""
    return isinstance(value, Iterable) and not isinstance(value, Tensor | Mapping | str | bytes)


def rebuilt(mapping: Mapping[Any, Any], values: dict[Any, Any]) -> Mapping[Any, Any]:
    """Returns a mapping of the same class with other values, as far as it can be made.

    Classes of batches know their items by attribute too.
    """
    if type(mapping) is dict or not isinstance(mapping, MutableMapping):
        return values
    new = copy.copy(mapping)
    new.update(values)
    return new


def batches_in(loader: Iterable[Any]) -> int | None:
    """Returns how many batches the loader will yield; None if it can't tell."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError, AttributeError):
        return None


def is_used_up_by_one_pass(loader: Iterable[Any]) -> bool:
    """Tells whether the loader is an iterator, which yields its batches only once."""
    return isinstance(loader, Iterator)


def generators_of(loader: object) -> list[torch.Generator]:
    """Returns the random generators that a ``DataLoader`` and its sampler shuffle with."""
    sampler = getattr(loader, "sampler", None)
    holders = (loader, sampler, getattr(getattr(loader, "batch_sampler", None), "sampler", None))
    generators = [getattr(holder, "generator", None) for holder in holders]
    return list({id(g): g for g in generators if isinstance(g, torch.Generator)}.values())


def _call_with_dict(model: nn.Module, batch: Mapping[Any, Any]) -> object:
    inputs = {key: value for key, value in batch.items() if key not in _LABEL_KEYS}
    if inputs and _takes(model, inputs):
        return model(**inputs)
    key = next((key for key in _INPUT_KEYS if isinstance(batch.get(key), Tensor)), None)
    if key is None:
        raise TypeError(
            "calibrate: a dict of a batch must hold the model's arguments, or a tensor under one "
            f"of the keys {', '.join(_INPUT_KEYS)} (got {_describe(batch)}); {_REMEDY}"
        )
    return model(batch[key])


def _takes(model: nn.Module, arguments: Mapping[Any, Any]) -> bool:
    """Whether the model has an argument for each of these, and no other one that it needs."""
    if not all(isinstance(name, str) for name in arguments):
        return False
    try:
        inspect.signature(model.forward).bind(**arguments)
    except (TypeError, ValueError):
        return False
    return True


def _describe(batch: object) -> str:
    kind = type(batch).__name__
    if isinstance(batch, Mapping):
        return f"{kind} with the keys {', '.join(map(str, batch)) or 'none'}"
    if isinstance(batch, tuple | list):
        items = ", ".join(type(item).__name__ for item in batch[:3])
        return f"{kind} of {items}{', ...' if len(batch) > 3 else ''}" if batch else f"empty {kind}"
    return kind
