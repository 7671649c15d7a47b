"""The dense weight of a sketched layer, kept from one inference call to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, NoReturn, Self

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.utils._device import DeviceContext

from sketchlayers.nn._autocast import autocast_type
from sketchlayers.nn._fingerprint import fingerprint
from sketchlayers.nn._seeded import SeededModule

_MOST_SHAPES = 256  # decisions remembered; inputs of ever new shapes must not fill the memory
_TRANSIENT = ("_kept", "_decisions", "_decided_at")

_era = 0  # decisions of earlier ones were made in another way


def decide_again() -> None:
    """Lets every layer forget which shapes it wants the dense weight for."""
    global _era
    _era += 1


class _Kept(NamedTuple):
    """One dense weight and what it was formed from; immutable, so that threads can share it."""

    key: tuple[object, ...]
    weight: Tensor
    # Memory that is still held is not given to another tensor, so that an equal data pointer
    # means the same memory.
    sources: tuple[Tensor | None, ...]


class WeightCache(SeededModule):
    """Keeps the dense weight while nothing that it is made from changes.

    A call in eval mode that records no gradients of the factors takes the weight that an earlier
    call has formed, if the same factors and signs are still there: the same tensors, with the same
    data pointers, version counters, types, strides, and values in 128 places of each. A write past
    the version counter (through ``.data``, NumPy or DLPack) that changes none of these places is
    not noticed, and `clear_cache` must be called after it.

    No weight is kept, and the operator runs as it does in training,

    - on other devices than the CPU, where looking at values would wait for the device;
    - while compiling, exporting or tracing, under ``torch.func`` or forward-mode derivatives, and
      under a mode such as ``FakeTensorMode`` (that of the default device aside);
    - for factors that are no plain parameters of the layer (a parametrisation, pruning, a replica
      of ``DataParallel``), that ``fully_shard`` gathers for every call, that were made in
      inference mode (they have no version counter), that have gaps in memory, or that lie in shared
      memory (another process may write there).

    The weight is no part of the state dict, of a pickle or of a copy. It is dropped when the layer
    is set to training, converts its parameters or loads a state dict, and when a call records
    gradients of the factors.
    """

    # Names of the parameters that the weight is made from.
    _trained: ClassVar[tuple[str, ...]]

    # Also for layers that were unpickled, whose ``__init__`` has not run.
    _kept: _Kept | None = None
    _decisions: dict[torch.Size, bool] | None = None
    _decided_at: int = 0

    def __init__(self, seed: int | None, device: torch.device | str | int | None) -> None:
        super().__init__(seed, device)
        self._kept = None
        self._decisions = None

    def dense_weight(self) -> Tensor:
        """The weight to keep."""
        raise NotImplementedError

    def _weight_options(self) -> tuple[object, ...]:
        """What else the weight depends on."""
        return ()

    def _prefers_kept_weight(self, input: Tensor) -> bool:
        """Whether a call is to use the dense weight, were it there already.

        Raises:
            RuntimeError: the shape does not fit the layer.
        """
        return True

    def clear_cache(self) -> None:
        """Drop the kept dense weight; the next inference call forms it again.

        Needed after a few entries of the factors were written in a way that leaves the version
        counters alone; see `WeightCache`.
        """
        self._kept = self._decisions = None

    def train(self, mode: bool = True) -> Self:
        """As ``nn.Module.train``; training frees the kept dense weight."""
        if mode:
            self._kept = None
        return super().train(mode)

    def __prepare_scriptable__(self) -> NoReturn:
        """Called by ``torch.jit.script`` before anything else.

        Raises:
            NotImplementedError: always; what TorchScript compiles must be plain layers.
        """
        raise NotImplementedError(
            f"{type(self).__name__}: torch.jit.script needs plain layers, so the model must be "
            "folded first, with sketchlayers.fold(model); torch.jit.trace and torch.export take it "
            "as it is"
        )

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        for name in _TRANSIENT:
            state.pop(name, None)
        return state

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._kept = self._decisions = None
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any) -> None:
        self._kept = None
        super()._load_from_state_dict(*args)

    def _keeps_weight(self) -> bool:
        """Whether a call at this moment may keep the dense weight."""
        if torch.compiler.is_compiling() or self.training:
            return False
        # `fully_shard` hooks every module of which it has a parameter, and gathers new values into
        # the same memory, past the version counter.
        if self._load_state_dict_pre_hooks:
            return False
        records = torch.is_grad_enabled()
        for name in self._trained:
            parameter = self._parameters.get(name)
            # An exact comparison: a subclass, such as a fake or distributed tensor, has its own
            # rules.
            if type(parameter) is not nn.Parameter or (records and parameter.requires_grad):
                return False
            if not (parameter.is_cpu or parameter.is_meta):
                return False
        return not (
            peek_interpreter_stack() is not None
            or torch._C._len_torch_dispatch_stack()
            or torch._C._get_tracing_state() is not None
            or forward_ad._current_level >= 0
            or (torch._C._len_torch_function_stack() and _in_function_mode())
        )

    def _would_keep_weight(self) -> bool:
        """As `_keeps_weight`, and the factors are such as can be followed; meta ones stand for any.

        For telling the plan: a call finds out by itself.
        """
        if not self._keeps_weight():
            return False
        own = self._parameters[self._trained[0]]
        assert own is not None
        return own.is_meta or (self._weight_key(None) is not None and self._may_form())

    def _kept_weight(self, input: Tensor) -> Tensor | None:
        """The dense weight for this input; ``None`` where the operator is to run.

        It is in the type that autocast computes in, where that is on. Nothing is checked here that
        the operator checks: an input that may not fit is left to it.
        """
        # This runs at every call: the cheap answers come first, in attributes more than helpers.
        if torch.compiler.is_compiling() or self.training or type(input) is not Tensor:
            return None
        shape = input.shape
        decisions = self._decisions if self._decided_at == _era else None
        decision = None if decisions is None else decisions.get(shape)
        if decision is False:
            return None
        if not self._keeps_weight():
            if torch.is_grad_enabled():  # in eval mode too, training is not to hold the weight
                self._kept = None
            return None
        if decision is None and not self._decide(input):
            return None
        lowered = autocast_type(input.device.type) if torch._C._is_any_autocast_enabled() else None
        kept = self._kept
        key = self._weight_key(lowered)
        if kept is not None and kept.key != key:
            self._kept = kept = None  # freed before the new one is formed
        if kept is None:
            if key is None or not self._may_form():
                return None
            kept = self._form(key, lowered)
        weight = kept.weight
        if input.device != weight.device or (
            input.dtype is not weight.dtype and not _unified(input, weight)
        ):
            return None
        return weight

    def _decide(self, input: Tensor) -> bool:
        try:
            decision = self._prefers_kept_weight(input)
        except RuntimeError:
            return False  # the operator says what is wrong with it
        decisions = self._decisions if self._decided_at == _era else None
        if decisions is None or len(decisions) >= _MOST_SHAPES:
            self._decisions = decisions = {}
            self._decided_at = _era
        decisions[input.shape] = decision
        return decision

    def _weight_key(self, lowered: torch.dtype | None) -> tuple[object, ...] | None:
        """What a kept weight depends on; None for tensors that cannot be followed.

        ``lowered`` is the type that autocast brings it to, ``None`` without autocast.
        """
        tensors = self._sources()
        state = fingerprint(*tensors)
        if state is None:
            return None
        return (lowered, self._made, *self._weight_options(), *map(id, tensors), *state)

    def _may_form(self) -> bool:
        tensors = [self._parameters[name] for name in self._trained]
        return not any(tensor is not None and tensor.is_shared() for tensor in tensors)

    def _form(self, key: tuple[object, ...], lowered: torch.dtype | None) -> _Kept:
        sources = self._sources()
        # Aliases for their memory, which a swap of ``.data`` leaves.
        memory = tuple(None if tensor is None else tensor.detach() for tensor in sources)
        # A normal tensor, which later calls outside of inference mode may save for backward.
        with torch.inference_mode(False), torch.no_grad():
            weight = self.dense_weight()
            if lowered is not None and weight.dtype is not torch.float64:
                weight = weight.to(lowered)
        kept = _Kept(key, weight, (*sources, *memory))
        if self._weight_key(lowered) == key:  # else another thread has changed them meanwhile
            self._kept = kept
        return kept

    def _sources(self) -> list[Tensor | None]:
        """The tensors that the weight is made from, but for those that follow from the seed."""
        parameters, buffers = self._parameters, self._buffers
        trained = [parameters[name] for name in self._trained]
        return [*trained, *(buffers[name] for name in self._fixed if name in buffers)]


def _in_function_mode() -> bool:
    """Whether a function mode sees every call, as a tracer's does; that of a device does not."""
    modes = map(torch._C._get_function_stack_at, range(torch._C._len_torch_function_stack()))
    return any(type(mode) is not DeviceContext for mode in modes)


def _unified(input: Tensor, weight: Tensor) -> bool:
    """Whether autocast brings input and weight to one type, as it does for the operator."""
    return (
        torch._C._is_any_autocast_enabled()
        and autocast_type(input.device.type) is not None
        and input.is_floating_point()
        and torch.float64 not in (input.dtype, weight.dtype)
    )
