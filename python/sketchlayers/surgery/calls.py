"""Which layers a model calls, in which order, on what shapes."""

from __future__ import annotations

import contextlib
import graphlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sketchlayers.surgery.batches import Forward, cannot_run_on_batch, described, may_be_misfit
from sketchlayers.surgery.evaluation import same_random_numbers
from sketchlayers.surgery.replace import copy_model
from sketchlayers.surgery.sample import BatchCall

Call = Callable[[nn.Module], object]
"""Calls a model."""
ExampleInputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any] | Call
"""What a model is called with, or a function that calls it."""


@dataclass(frozen=True)
class Shapes:
    """Shapes of the first input and of the output of one call of a layer.

    Attributes:
        input_shape: of the first input.
        output_shape: of the output.
        images: how many images the call of the model was for.
    """

    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    images: int = 1


def record_calls(
    model: nn.Module,
    layers: Iterable[str],
    calls: Sequence[tuple[Call, int]],
    *,
    owner: str = "compress",
) -> dict[str, list[Shapes]]:
    """Runs a copy of the model, in eval mode and without gradients, and notes the layers' calls.

    Calls of the model after the first one are made as long as there are layers that none has
    reached, and count for these alone. The copy shares the parameters (but those that the run would
    give their shapes) and has buffers of its own, so the model does not change. Hooks of the model
    run as they do in any forward call.

    Args:
        model: any module.
        layers: names of the layers to watch.
        calls: calls of the model, each with its number of images.
        owner: the function that is called, for messages.

    Returns:
        The calls of each layer that was called, in the order of the first call.

    Raises:
        ValueError: the model does not run on these inputs.
    """
    found: dict[str, list[Shapes]] = {}
    names = list(layers)
    for call, images in calls:
        missing = [name for name in names if name not in found]
        if not missing:
            break
        found |= _record_call(model, missing, call, images, owner)
    return found


def _record_call(
    model: nn.Module, layers: Sequence[str], call: Call, images: int, owner: str
) -> dict[str, list[Shapes]]:
    calls: dict[str, list[Shapes]] = {}

    def note(name: str, inputs: Tensor | None, output: object) -> None:
        shapes = calls.setdefault(name, [])
        if inputs is not None and isinstance(output, Tensor):
            shapes.append(Shapes(tuple(inputs.shape), tuple(output.shape), images))

    probe = watched_copy(model, layers, note)
    try:
        with torch.no_grad(), same_random_numbers():
            call(probe)
    except Exception as error:
        if not may_be_misfit(error):
            raise
        if isinstance(call, BatchCall):
            raise cannot_run_on_batch(owner, call.number + 1, str(call), error) from error
        raise cannot_run_on_examples(owner, call, error) from error
    return calls


def watched_copy(
    model: nn.Module,
    layers: Iterable[str],
    note: Callable[[str, Tensor | None, object], None],
) -> nn.Module:
    """Returns a copy of the model in eval mode that tells of its layers' calls.

    It shares the parameters (but those that a run would give their shapes) and has buffers of its
    own.

    Args:
        model: any module.
        layers: names of the layers to watch.
        note: is called with a layer's name, its first tensor and its output.

    Raises:
        TypeError: the model cannot be copied.
    """
    probe = copy_model(model, {id(p): p for p in model.parameters() if not is_lazy(p)})
    for name in layers:

        def tell(_: nn.Module, args: Any, kwargs: Any, output: object, name: str = name) -> None:
            tensors = (x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
            note(name, next(tensors, None), output)

        probe.get_submodule(name).register_forward_hook(tell, with_kwargs=True)
    return probe.eval()


@dataclass(frozen=True)
class ExampleCall:
    """Calls a model with example inputs."""

    inputs: ExampleInputs

    def __call__(self, model: nn.Module) -> object:
        """The model's outputs."""
        inputs = self.inputs
        if isinstance(inputs, Mapping):
            return model(**inputs)
        if isinstance(inputs, tuple | list):
            return model(*inputs)
        if callable(inputs) and not isinstance(inputs, Tensor):
            return inputs(model)
        return model(inputs)

    def __str__(self) -> str:
        return described(self.inputs)


def cannot_run_on_examples(owner: str, call: Call, error: Exception) -> ValueError:
    """The error of a model that does not run on example inputs.

    Args:
        owner: the function that called it, to begin the message with.
        call: that failed.
        error: of the model.
    """
    return ValueError(
        f"{owner}: the model must run on example_inputs (got {type(error).__name__}: {error}, "
        f"called with {call}); give a tensor, a tuple of arguments, a dict of keyword arguments or "
        "a function that calls the model, of the types and on the device of the parameters"
    )


class OrderError(RuntimeError):
    """Batches come through the layers in different orders."""


class CallOrder:
    """The order in which calls of a model reach its layers; a batch may leave some out.

    Attributes:
        sequences: the layers' names in the order of their calls, one sequence for each kind of
            batch.
    """

    def __init__(self) -> None:
        self.sequences: dict[tuple[str, ...], None] = {}

    @contextlib.contextmanager
    def watching(self, model: nn.Module, layers: Iterable[str]) -> Iterator[Callable[..., object]]:
        """Notes the calls of the body; yields what to call the model through, for each batch."""
        current: list[str] = []
        with contextlib.ExitStack() as stack:
            for name in layers:

                def note(*_: object, name: str = name) -> None:
                    current.append(name)

                layer = model.get_submodule(name)
                stack.callback(layer.register_forward_pre_hook(note).remove)

            def noted(forward: Forward, model: nn.Module, batch: Any) -> object:
                current.clear()
                result = forward(model, batch)
                self.sequences[tuple(current)] = None
                return result

            yield noted

    def calls(self, name: str) -> set[int]:
        """Returns how often batches that reach a layer call it: several numbers, if they differ."""
        return {count for one in self.sequences if (count := Counter(one)[name])}

    def sorted(self, names: Iterable[str]) -> list[str]:
        """Returns layers in the order in which all batches that reach them call them first.

        Raises:
            OrderError: there is none.
        """
        wanted = dict.fromkeys(names)
        sorter: graphlib.TopologicalSorter[str] = graphlib.TopologicalSorter()
        for sequence in self.sequences:
            reached = [name for name in dict.fromkeys(sequence) if name in wanted]
            for before, name in zip([None, *reached], reached, strict=False):
                sorter.add(name, *([] if before is None else [before]))
        try:
            return list(sorter.static_order())
        except graphlib.CycleError as error:
            some = ", ".join(map(repr, dict.fromkeys(error.args[1])))
            raise OrderError(
                "compress: all batches must go through the layers in the same order for sequential "
                f"fitting (got {some} in different orders); use sequential=False"
            ) from error
