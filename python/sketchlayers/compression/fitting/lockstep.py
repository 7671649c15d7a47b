"""Forward calls of a model, all paused at the same layer.

Fitting layers one after the other, each from the inputs that the layers before it leave it, would
need a forward pass for every layer. Here every batch has a call of its own, in a thread that stops
inside the layer; when all batches have come to a layer, it can be looked at and replaced, and the
calls go on from there. One pass is enough for the whole model, whatever its forward does. Threads
take turns: one runs, the others wait.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sketchlayers.compression.finishing.network import evaluation_copy

Call = Callable[[nn.Module], Any]
"""Calls a model on one batch."""


class OrderError(RuntimeError):
    """Calls come to different layers, so that they cannot be paused at the same one."""


class Lockstep:
    """The calls of a copy of a model on some batches; a context manager.

    The copy shares the parameters and has buffers of its own. Its hooks run as always.

    Attributes:
        inputs: what the layer at which the calls are paused gets, batch by batch.
    """

    def __init__(self, model: nn.Module, layers: Iterable[str], calls: Sequence[Call]) -> None:
        """Nothing runs before the first `advance`.

        Args:
            model: in any mode; the copy is in evaluation mode.
            layers: names of layers that a call reaches at most once.
            calls: one a batch.
        """
        self._model = evaluation_copy(model)
        self._replacements: dict[str, nn.Module] = {}
        self._here = threading.local()
        for name in layers:
            self._stop_at(name, self._model.get_submodule(name))
        self._runs = [_Run(self._model, call, self._here) for call in calls]

    @property
    def inputs(self) -> list[Tensor]:
        """What the layer gets where the calls are paused, batch by batch."""
        return [run.inputs for run in self._runs if run.inputs is not None]

    def advance(self) -> str | None:
        """Lets all calls go on to the next layer; its name, None when they have ended.

        Raises:
            OrderError: the calls come to different layers.
            Exception: whatever the model raises.
        """
        places = [run.resume() for run in self._runs]
        if len(set(places)) > 1:
            found = sorted({repr(place) for place in places if place is not None})
            raise OrderError(
                "compress: all batches must go through the layers in the same order for sequential "
                f"fitting (got {', '.join(found)} at the same time); use sequential=False"
            )
        return places[0] if places else None

    def replace(self, name: str, layer: nn.Module) -> None:
        """Computes this layer by another one from now on, the paused calls included.

        The new layer is put into evaluation mode.
        """
        self._replacements[name] = layer.eval()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for run in self._runs:
            run.cancel()

    def _stop_at(self, name: str, layer: nn.Module) -> None:
        original = layer.forward

        def forward(input: Tensor) -> Any:  # the name that layers have, for calls by keyword
            run: _Run | None = getattr(self._here, "run", None)
            if run is not None:
                run.pause(name, input)
            return self._replacements.get(name, original)(input)

        layer.forward = forward


class _Cancelled(BaseException):
    """Unwinds a paused call; no model should catch it."""


class _Run:
    """One call in its own thread."""

    def __init__(self, model: nn.Module, call: Call, here: threading.local) -> None:
        self.inputs: Tensor | None = None
        self._place: str | None = None
        self._error: BaseException | None = None
        self._cancelled = False
        self._go, self._paused = threading.Event(), threading.Event()
        # Contexts of PyTorch belong to a thread: the call's are those of whoever makes it.
        self._contexts = _contexts_here()
        self._thread = threading.Thread(target=self._work, args=(model, call, here), daemon=True)

    def resume(self) -> str | None:
        """Goes on to the next layer and waits there; its name, None at the end."""
        self._paused.clear()
        if self._thread.ident is None:
            self._thread.start()
        elif self._thread.is_alive():
            self._go.set()
        else:
            return None
        self._paused.wait()
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        return self._place

    def pause(self, name: str, inputs: Tensor) -> None:
        """Called in the thread: waits here until the call may go on."""
        self.inputs, self._place = inputs, name
        self._paused.set()
        self._go.wait()
        self._go.clear()
        self.inputs = None
        if self._cancelled:
            raise _Cancelled

    def cancel(self) -> None:
        """Ends the call, wherever it is."""
        self._cancelled = True
        self._go.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _work(self, model: nn.Module, call: Call, here: threading.local) -> None:
        here.run = self
        try:
            with contextlib.ExitStack() as stack:
                for enter in self._contexts:
                    stack.enter_context(enter())
                call(model)
        except _Cancelled:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._place = self.inputs = None
            self._paused.set()


def _contexts_here() -> list[Callable[[], contextlib.AbstractContextManager[object]]]:
    """What another thread must enter to compute as this one does, without gradients."""
    threads = torch.get_num_threads()

    @contextlib.contextmanager
    def as_many_threads() -> Iterator[None]:
        torch.set_num_threads(threads)
        yield

    types = ["cpu", "cuda"] if torch.cuda.is_initialized() else ["cpu"]
    found: list[Callable[[], contextlib.AbstractContextManager[object]]] = [
        as_many_threads,
        partial(torch.inference_mode, torch.is_inference_mode_enabled()),
        torch.no_grad,
    ]
    for kind in types:
        enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
        found.append(partial(torch.autocast, kind, dtype=dtype, enabled=enabled))
    if torch.cuda.is_initialized():
        found.append(partial(torch.cuda.device, torch.cuda.current_device()))
    return found


def live_bytes(model: nn.Module, layers: Iterable[str], call: Call) -> int:
    """Returns the most memory that one paused call holds: tensors alive when it is inside a layer.

    Args:
        model: as for `Lockstep`.
        layers: as for `Lockstep`.
        call: on a small batch.
    """
    tensors: list[weakref.ref[Tensor]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = function(*args, **(kwargs or {}))
            tensors.extend(weakref.ref(x) for x in tree_leaves(result) if isinstance(x, Tensor))
            return result

    def watched(model: nn.Module) -> None:
        with Watch():
            call(model)

    most = 0
    with Lockstep(model, layers, [watched]) as lockstep:
        while lockstep.advance() is not None:
            most = max(most, _bytes_alive(tensors))
    return most


def _bytes_alive(tensors: list[weakref.ref[Tensor]]) -> int:
    """Bytes of the storages of those tensors that still exist; forgets the others."""
    alive = [tensor for reference in tensors if (tensor := reference()) is not None]
    tensors[:] = map(weakref.ref, alive)
    storages = (tensor.untyped_storage() for tensor in alive)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
