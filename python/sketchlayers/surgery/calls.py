"""One run of a model on example inputs: which layers are called, in which order, on what shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sketchlayers.surgery.replace import copy_model

Call = Callable[[nn.Module], object]
"""Calls a model."""
ExampleInputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any] | Call
"""What a model is called with, or a function that calls it."""


@dataclass(frozen=True)
class Shapes:
    """Shapes of the first input and of the output of one call of a layer."""

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]


def record_calls(
    model: nn.Module, layers: Iterable[str], example_inputs: ExampleInputs
) -> dict[str, list[Shapes]]:
    """Runs a copy of the model, in eval mode and without gradients, and notes the layers' calls.

    The copy shares the parameters (but those that the run would give their shapes) and has
    buffers of its own, so the model does not change. Hooks
    of the model run as they do in any forward call.

    Args:
        model: any module.
        layers: names of the layers to watch.
        example_inputs: a tensor, a tuple or list of arguments, a dict of keyword arguments, or a
            function of the model.

    Returns:
        The calls of each layer that was called, in the order of the first call.

    Raises:
        ValueError: the model does not run on these inputs.
    """
    calls: dict[str, list[Shapes]] = {}
    probe = copy_model(model, {id(p): p for p in model.parameters() if not is_lazy(p)})
    probe.eval()

    def watch(name: str) -> None:
        def note(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
        ) -> None:
            inputs = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
            if isinstance(inputs, Tensor) and isinstance(output, Tensor):
                call = Shapes(tuple(inputs.shape), tuple(output.shape))
                calls.setdefault(name, []).append(call)
            else:
                calls.setdefault(name, [])

        probe.get_submodule(name).register_forward_hook(note, with_kwargs=True)

    for name in layers:
        watch(name)
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
            call_with(example_inputs)(probe)
    except Exception as error:
        raise ValueError(
            "compress: the model must run on example_inputs, by default the first calibration "
            f"image (got {type(error).__name__}: {error})"
        ) from error
    return calls


def call_with(example_inputs: ExampleInputs) -> Call:
    """Returns a function that calls a model with these inputs."""
    if isinstance(example_inputs, Mapping):
        return lambda model: model(**example_inputs)
    if isinstance(example_inputs, tuple | list):
        return lambda model: model(*example_inputs)
    if callable(example_inputs) and not isinstance(example_inputs, Tensor):
        return example_inputs
    return lambda model: model(example_inputs)
