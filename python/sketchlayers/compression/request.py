"""From the arguments of `compress` to a task: all checks, and the first look at the images."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sketchlayers import methods
from sketchlayers._runtime.processes import Processes
from sketchlayers.compression.again import from_plain_layers
from sketchlayers.compression.allocation.costs import Unit
from sketchlayers.compression.arguments import check_names
from sketchlayers.compression.arguments import settings as checked_settings
from sketchlayers.compression.cache import Cache
from sketchlayers.compression.calibration.calibration import Calibration
from sketchlayers.compression.calibration.images import Images
from sketchlayers.compression.fingerprints import of_everything
from sketchlayers.compression.finishing.refine import Refinement
from sketchlayers.compression.stages.task import Task
from sketchlayers.compression.survey.selection import FilterFunction
from sketchlayers.methods import Method
from sketchlayers.methods._method import kind_of
from sketchlayers.surgery.batches import Forward
from sketchlayers.surgery.calls import ExampleInputs


def check_model(model: object, name: str = "model") -> None:
    """Raises unless it is a module; ``name`` is that of the argument.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"compress: {name} must be an nn.Module (got {type(model).__name__})")


def chosen_method(
    method: str | Method | None,
    options: Mapping[str, Any],
    *,
    with_data: bool,
    arguments: Iterable[str],
) -> Method:
    """Returns the method with its options.

    Args:
        method: as for `compress`.
        options: keyword arguments that are not arguments of `compress`.
        with_data: whether there is a calibration.
        arguments: names of the arguments of `compress`.

    Raises:
        TypeError, ValueError: there is no such method, or no such option.
        ImportError: the compiled extension is missing.
    """
    if method is None:
        method = "auto" if with_data else "sketch"
    check_names(options, kind_of(method), arguments)
    chosen = methods.get(method, **options)
    chosen.require_extension()
    return chosen


def task_of(
    *,
    model: nn.Module,
    method: Method,
    unit: Unit,
    layer_rates: Mapping[str, float] | None,
    asked: object,
    calibration: Calibration | Iterable[Any] | None,
    example_inputs: ExampleInputs | None,
    layers: str | Iterable[str] | None,
    exclude: str | Iterable[str] | None,
    filter_fn: FilterFunction | None,
    keep_first: bool,
    measure_latency: bool,
    init: str,
    allocation: str | None,
    sequential: bool | None,
    sensitivity: bool | str | None,
    correct_bias: bool,
    reestimate_batch_norm: bool | Literal["auto"],
    refine: bool | Refinement | None,
    bits: int | None,
    group_size: int | None,
    forward: Forward | None,
    memory_budget: int,
    progress: bool | None,
    seed: int | None,
    cache: str | os.PathLike[str] | None,
    original: nn.Module | None,
    several: bool,
) -> Task:
    """Checks the arguments of `compress` that a budget has no part in.

    Args:
        unit: what budgets count.
        layer_rates: of layers; None: budgets are of the whole model.
        several: whether several models will be made.
        asked: budgets and whatever else all processes must be given alike.
        model, method, calibration, example_inputs, layers, exclude, filter_fn, keep_first: as for
            `compress`, and so are all others.

    Raises:
        TypeError, ValueError: see `compress`.
    """
    moments = calibration if isinstance(calibration, Calibration) else None
    folder = _checked_folder(cache)
    if original is not None:
        check_model(original, "original")
    settings = checked_settings(
        init=init,
        data="none" if calibration is None else "images" if moments is None else "moments",
        per_layer=layer_rates is not None,
        allocation=allocation,
        sequential=sequential,
        sensitivity=sensitivity,
        correct_bias=correct_bias,
        reestimate_batch_norm=reestimate_batch_norm,
        refine=refine,
        seed=seed,
        bits=bits,
        group_size=group_size,
        unit=unit,
    )
    processes = Processes("compress", join=calibration is not None and moments is None)
    images = None
    if calibration is not None and moments is None:
        with processes.together("reading the images"):
            images = Images(model, calibration, forward, memory_budget, progress)
        settings = dataclasses.replace(settings, seed=processes.first(settings.seed))
        alike = dataclasses.replace(settings, refinement=None)  # that may hold a function
        if not processes.agree(repr((method, asked, alike))):
            raise ValueError("compress: all processes must be called with the same arguments")
        if processes.count > 1 and not processes.agree(fingerprint(model)):
            raise ValueError(
                "compress: all processes must have the same network (got other values of its "
                "tensors); call sketchlayers.broadcast_model(model) before"
            )
    task = Task(
        model=model,
        method=method,
        unit=unit,
        layer_rates=layer_rates,
        settings=settings,
        images=images,
        calibration=moments,
        example_inputs=example_inputs,
        layers=layers,
        exclude=exclude,
        filter_fn=filter_fn,
        keep_first=keep_first,
        measure_latency=measure_latency,
        processes=processes,
        memory_budget=memory_budget,
        progress=progress if processes.rank == 0 else False,
        cache=Cache(),
    )
    task = from_plain_layers(task, original)
    if moments is not None:
        moments.check(task.model)
    if processes.count > 1:
        folder = None  # each has images of its own
    base = "" if folder is None else of_everything(task.model, moments, images, memory_budget)
    return dataclasses.replace(task, cache=Cache(folder, base, in_memory=several))


def _checked_folder(cache: object) -> Path | None:
    if cache is None:
        return None
    if not isinstance(cache, str | os.PathLike):
        raise TypeError(f"compress: cache must be a folder (got {type(cache).__name__})")
    folder = Path(cache)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"compress: cache must be a folder (got the file {folder})")
    return folder


def fingerprint(model: nn.Module) -> str:
    """Returns a hash of the names and bytes of all tensors."""
    digest = hashlib.blake2b()
    for name, x in model.state_dict().items():
        if isinstance(x, Tensor):
            digest.update(name.encode())
            values = x.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(values.numpy().data)
    return digest.hexdigest()
