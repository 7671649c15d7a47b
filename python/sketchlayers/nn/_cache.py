"""The dense weight of a sketched layer, kept from one inference call to the next."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, NoReturn, Self

import torch
from torch import Tensor

from sketchlayers import _extension
from sketchlayers.nn._autocast import autocast_type
from sketchlayers.nn._seeded import SeededModule

_MOST_SHAPES = 256  # decisions remembered; inputs of ever new shapes must not fill the memory
_TRANSIENT = ("_kept", "_seed_followed_at", "_decisions", "_decided_at")

_era = 0  # decisions of earlier ones were made in another way


def decide_again() -> None:
    """Lets every layer forget which shapes it wants the dense weight for."""
    global _era
    _era += 1


class _Kept(NamedTuple):
    """One dense weight and what it was formed from; immutable, so that threads can share it."""

    state: int
    weight: Tensor
    # Tensors and memory that are still held are not given to others, so that equal addresses mean
    # the same ones.
    sources: tuple[Tensor, ...]


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

    # Names of the parameters that the weight is made from, and of attributes that it depends on.
    _trained: ClassVar[tuple[str, ...]]
    _weight_options: ClassVar[tuple[str, ...]] = ()
    # Those, names of buffers, and of the attributes.
    _weight_sources: ClassVar[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]]

    # Also for layers that were unpickled, whose ``__init__`` has not run.
    _kept: _Kept | None = None
    _seed_followed_at: int | None = None  # a state of the layer
    _decisions: dict[torch.Size, bool] | None = None
    _decided_at: int = 0

    def __init__(self, seed: int | None, device: torch.device | str | int | None) -> None:
        super().__init__(seed, device)
        self._kept = None
        self._decisions = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if hasattr(cls, "_trained"):
            cls._weight_sources = cls._trained, ("seed_bits", *cls._fixed), cls._weight_options

    def dense_weight(self) -> Tensor:
        """The weight to keep."""
        raise NotImplementedError

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

    def _would_keep_weight(self) -> bool:
        """Whether a call at this moment may keep the dense weight; factors on meta stand for any.

        For telling the plan: a call finds out by itself.
        """
        if torch.compiler.is_compiling():
            return False
        first = self._parameters.get(self._trained[0])
        if first is not None and first.is_meta:
            return not (self.training or (torch.is_grad_enabled() and first.requires_grad))
        return self._state() is not None and self._may_form()

    def _state(self) -> int | None:
        """Another number after nearly any change of what the weight is made from, and of autocast.

        None where a call may not use an earlier weight.
        """
        look = _state_reader()
        return None if look is None else look(self.__dict__, self._weight_sources)

    def _current_weight(self, input: Tensor) -> Tensor | None:
        """The dense weight for this input; ``None`` where the operator is to run.

        What was written into the seed's buffer takes effect before. The weight is in the type that
        autocast computes in, where that is on. Nothing is checked here that the operator checks: an
        input that may not fit is left to it.
        """
        # This runs at every call, and what it costs is what the layer is slower than a dense one.
        state = self._state()
        if state is None:
            self._follow_seed()
            if torch.is_grad_enabled():  # in eval mode too, training is not to hold the weight
                self._kept = None
            return None
        if state != self._seed_followed_at:
            self._follow_seed()
            self._seed_followed_at = state = self._state()
        if type(input) is not Tensor:
            return None
        decisions = self._decisions if self._decided_at == _era else None
        decision = None if decisions is None else decisions.get(input.shape)
        if decision is None:
            decision = self._decide(input)
        if not decision:
            return None
        kept = self._kept
        if kept is None or kept.state != state:
            self._kept = kept = None  # freed before the new one is formed
            if state is None or not self._may_form():
                return None
            kept = self._form(state, input.device.type)
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

    def _may_form(self) -> bool:
        tensors = [self._parameters[name] for name in self._trained]
        return not any(tensor is not None and tensor.is_shared() for tensor in tensors)

    def _form(self, state: int, device: str) -> _Kept:
        buffers = (self._buffers.get(name) for name in self._fixed)
        sources = [*(self._parameters[name] for name in self._trained), *buffers]
        held = [tensor for tensor in sources if tensor is not None]
        # Aliases for their memory, which a swap of ``.data`` leaves.
        memory = [tensor.detach() for tensor in held]
        lowered = autocast_type(device)
        # A normal tensor, which later calls outside of inference mode may save for backward.
        with torch.inference_mode(False), torch.no_grad():
            weight = self.dense_weight()
            if lowered is not None and weight.dtype is not torch.float64:
                weight = weight.to(lowered)
        kept = _Kept(state, weight, (*held, *memory))
        if self._state() == state:  # else another thread has changed them meanwhile
            self._kept = kept
        return kept


@functools.cache
def _state_reader() -> Callable[[dict[str, Any], object], int | None] | None:
    if _extension.problem() is not None:
        return None
    reader: Callable[[dict[str, Any], object], int | None] = _extension.load().weight_state
    return reader


def _unified(input: Tensor, weight: Tensor) -> bool:
    """Whether autocast brings input and weight to one type, as it does for the operator."""
    return (
        torch._C._is_any_autocast_enabled()
        and autocast_type(input.device.type) is not None
        and input.is_floating_point()
        and torch.float64 not in (input.dtype, weight.dtype)
    )
