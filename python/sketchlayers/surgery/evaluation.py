"""Running a model on data without leaving a trace in it."""

from __future__ import annotations

import contextlib
import functools
import random
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from sketchlayers._runtime.settings import SharedSetting

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Turns on evaluation mode without gradients; afterwards the model is as it was before.

    Modes of all modules and values of buffers are restored. What was compiled runs eagerly, since
    compiled code does not see hooks. An outer autocast stays, an outer inference mode does not:
    what is computed may be used with gradients later.
    """
    modes = [(module, module.training) for module in model.modules()]  # its own is the first
    buffers = [
        (module, name, buffer, buffer.detach().clone(), _version(buffer))
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    with torch.inference_mode(False), torch.no_grad(), _eagerly:
        try:
            model.eval()
            yield
        finally:
            # Through `train` first: some modules do more than set the flag, and undo it there.
            model.train(modes[0][1])
            for module, mode in modes:
                module.training = mode
            for module, name, buffer, values, version in buffers:
                _restore(module, name, buffer, values, version)


@contextlib.contextmanager
def same_random_numbers(generators: Iterable[torch.Generator] = ()) -> Iterator[None]:
    """Afterwards all random generators are as they were before.

    Those of PyTorch (of the GPUs too), Python and NumPy, and the ones given.
    """
    before = [(generator, generator.get_state()) for generator in generators]
    python, numpy = random.getstate(), _numpy_random()
    numpy_before = numpy.get_state() if numpy else None
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=gpus):
        try:
            yield
        finally:
            for generator, state in before:
                generator.set_state(state)
            random.setstate(python)
            if numpy:
                numpy.set_state(numpy_before)


@contextlib.contextmanager
def random_numbers(number: int, model: nn.Module) -> Iterator[None]:
    """Draws the same random numbers in every body with this number; afterwards all is as before.

    Those of PyTorch, Python and NumPy, and of generators that are attributes of modules.
    """
    own: list[torch.Generator] = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if torch.Generator in type(value).__mro__  # `isinstance` of this class is slow
    ]
    with same_random_numbers(own):
        torch.default_generator.manual_seed(number)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed_all(number)
        for generator in own:
            generator.manual_seed(number)
        random.seed(number)
        numpy = _numpy_random()
        if numpy:
            numpy.seed(number)
        yield


def _numpy_random() -> Any:
    """NumPy's random numbers, if anybody has loaded NumPy."""
    return getattr(sys.modules.get("numpy"), "random", None)


def outside_of_modes(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Makes a function compute outside of inference mode, and call models as they are written.

    What it returns can then be trained whatever the caller's mode, and models that are compiled
    run eagerly meanwhile, since compiled code does not see hooks.
    """

    @functools.wraps(function)
    def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with torch.inference_mode(False), _eagerly:
            return function(*args, **kwargs)

    return call


def _force_eager() -> contextlib.AbstractContextManager[object]:
    # Before torch._dynamo is loaded nothing has been compiled, and loading it is slow.
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    return torch.compiler.set_stance("force_eager")


_eagerly = SharedSetting(_force_eager)
"""What was compiled runs eagerly."""


def _version(tensor: Tensor) -> int | None:
    """How often the tensor has been written to; None where nobody counts."""
    return None if tensor.is_inference() else tensor._version


def _restore(
    module: nn.Module, name: str, buffer: Tensor, values: Tensor, version: int | None
) -> None:
    """Puts the old values back, and the old tensor if another one of its kind has its place.

    A buffer that grew, as tables of positions do, stays: the module may know its size elsewhere.
    """
    # Batch norms write their running statistics without counting it.
    if version is None or _version(buffer) != version or not torch.equal(buffer, values):
        with torch.inference_mode(buffer.is_inference()):
            buffer.copy_(values)
    now = module._buffers.get(name)
    if (
        now is not None
        and now is not buffer
        and (now.shape, now.dtype) == (values.shape, values.dtype)
    ):
        module._buffers[name] = buffer
