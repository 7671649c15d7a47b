"""One run of a model on example inputs: which layers are called, in which order, on what shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sketchlayers.compress._swap import copy_model

ExampleInputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


@dataclass(frozen=True)
class Call:
    """Shapes of the first input and of the output of one call of a layer."""

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]


def record_calls(
    model: nn.Module, layers: Iterable[str], example_inputs: ExampleInputs
) -> dict[str, list[Call]]:
    """Runs a copy of the model, in eval mode and without gradients, and notes the layers' calls.

    The copy shares the parameters (but those that the run would give their shapes) and has
    buffers of its own, so the model does not change. Hooks
    of the model run as they do in any forward call.

    Args:
        model: any module.
        layers: names of the layers to watch.
        example_inputs: a tensor, a tuple or list of arguments, or a dict of keyword arguments.

    Returns:
        The calls of each layer that was called, in the order of the first call.

    Raises:
        ValueError: the model does not run on these inputs.
    """
    calls: dict[str, list[Call]] = {}
    probe = copy_model(model, {id(p): p for p in model.parameters() if not is_lazy(p)})
    probe.eval()

    def watch(name: str) -> None:
        def note(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object
        ) -> None:
            inputs = next((x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), None)
            if isinstance(inputs, Tensor) and isinstance(output, Tensor):
                call = Call(tuple(inputs.shape), tuple(output.shape))
                calls.setdefault(name, []).append(call)
            else:
                calls.setdefault(name, [])

        probe.get_submodule(name).register_forward_hook(note, with_kwargs=True)

    for name in layers:
        watch(name)
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=list(devices)):
            if isinstance(example_inputs, Mapping):
                probe(**example_inputs)
            elif isinstance(example_inputs, tuple | list):
                probe(*example_inputs)
            else:
                probe(example_inputs)
    except Exception as error:
        raise ValueError(
            f"compress: the model must run on example_inputs (got {type(error).__name__}: {error})"
        ) from error
    return calls
