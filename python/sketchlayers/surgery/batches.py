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

from sketchlayers.surgery.replace import is_out_of_memory

Forward = Callable[[nn.Module, Any], object]
"""Calls a model with one batch of a loader: ``forward(model, batch)``."""

_INPUT_KEYS = ("image", "images", "pixel_values", "input", "inputs", "img", "x", "data")
_LABEL_KEYS = frozenset({"label", "labels", "target", "targets", "y"})
_MOST_TOLD = 4
_REMEDY = "say with forward=lambda model, batch: ... how the model is called with a batch"


class UnknownBatchError(TypeError):
    """It is not known how to call a model with a batch of this kind."""


# What PyTorch raises where inputs do not fit a model, and what unpacking them does.
_MISFITS = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, NotImplementedError),
    *(RuntimeError, TypeError, ValueError),
)


def call_model(model: nn.Module, batch: Any) -> object:
    """Calls the model with the inputs of a batch.

    - A tensor is the input.
    - Of a tuple or list the first item is the input, as in (images, labels).
    - Of a dict, everything but labels is passed by keyword if the model takes arguments of these
      names; otherwise the item with one of the names usual for images is the input.

    Raises:
        UnknownBatchError: the batch is nothing of this kind.
    """
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, Mapping):
        return _call_with_dict(model, batch)
    if isinstance(batch, tuple | list) and batch and isinstance(batch[0], Tensor | Mapping):
        return call_model(model, batch[0])
    raise UnknownBatchError(
        "calibrate: a batch must be a tensor, a tuple or list that begins with one, as (images, "
        f"labels), or a dict (got {described(batch)}); {_REMEDY}"
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


def check_forward(owner: str, forward: object) -> None:
    """Raises unless it can call a model with a batch, or is None.

    Raises:
        TypeError: it cannot be called.
    """
    if forward is not None and not callable(forward):
        raise TypeError(
            f"{owner}: forward must be a function, forward(model, batch) "
            f"(got {type(forward).__name__})"
        )


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
        raise UnknownBatchError(
            "calibrate: a dict of a batch must hold the model's arguments, or a tensor under one "
            f"of the keys {', '.join(_INPUT_KEYS)} (got {described(batch)}); {_REMEDY}"
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


def may_be_misfit(error: Exception) -> bool:
    """Whether the error of a model may be that its inputs do not fit."""
    said = isinstance(error, UnknownBatchError) or is_out_of_memory(error)
    return isinstance(error, _MISFITS) and not said


def cannot_run_on_batch(owner: str, number: int, batch: str, error: Exception) -> ValueError:
    """The error of a model that does not run on a batch.

    Args:
        owner: the function that called it, to begin the message with.
        number: of the batch, from 1 on.
        batch: what it is, as `described` says it.
        error: of the model.
    """
    got = f"{type(error).__name__}: {error}"
    return ValueError(
        f"{owner}: the model must run on every batch of the images (got {got}, in batch {number}: "
        f"{batch}); give inputs as the model takes them, or {_REMEDY}"
    )


def described(value: object) -> str:
    """What a batch is, in words: kinds, types and shapes."""
    if isinstance(value, Tensor):
        kind = f"{str(value.dtype).removeprefix('torch.')} tensor {tuple(value.shape)}"
        return kind if value.device.type == "cpu" else f"{kind} on {value.device}"
    kind = type(value).__name__
    if isinstance(value, Mapping):
        parts = [f"{key}: {described(item)}" for key, item in list(value.items())[:_MOST_TOLD]]
    elif isinstance(value, tuple | list):
        parts = [described(item) for item in value[:_MOST_TOLD]]
    else:
        return kind
    more = ", ..." if len(value) > _MOST_TOLD else ""
    return f"{kind} of ({', '.join(parts)}{more})" if parts else f"empty {kind}"
