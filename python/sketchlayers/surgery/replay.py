"""Repeated forward calls of a model, without computing again what cannot have changed.

Looking at one layer after the other takes a forward call for every layer. Each is the model's whole
forward, from its start to its end or to the layer that is looked at, in the caller's thread and
context. Modules that have finished before any layer that still changes answer from memory, so that
all calls together compute about as much as one.

Which modules may do so, and which outputs must be kept for it, is read off one traced call
(`plan_replays`): a module is skipped if it touches nothing but its outputs, and an output is kept
if an operator outside of skipped modules reads it. Others are answered by NaN. Two batches are
compared with calls that skip nothing; if there is a difference, nothing is skipped.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.modules import module as nn_module
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from sketchlayers.surgery.calls import Call
from sketchlayers.surgery.replace import evaluation_copy

Key = tuple[str, int]
"""A call of a module: its name, and how many calls of it there were before."""

_PLAIN = (Tensor, int, float, bool, str, type(None), torch.dtype, torch.device, torch.Size)
"""What a module may return, in tuples, lists and dicts, and be skipped."""
_COMPARED = 1 << 16
"""Values of an input that are compared."""
_TOLERANCE = 1e-4
"""Relative difference of the inputs of a layer above which a replay is wrong."""


class Reached(BaseException):
    """Ends a forward call at a layer, with its input; not an Exception, which a model may catch."""

    def __init__(self, inputs: Tensor) -> None:
        super().__init__()
        self.inputs = inputs


class Replays:
    """Forward calls of a copy of a model, layer by layer.

    The copy shares the parameters and has buffers of its own. Its hooks run as always, but for
    those inside modules that answer from memory.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[str], calls: Sequence[Call], plan: Plan | None
    ) -> None:
        """Nothing runs yet.

        Args:
            model: in any mode; the copy is in evaluation mode.
            layers: names of the layers that will be looked at, in the order of their first calls.
            calls: one a batch.
            plan: of the same model and layers; None: no module is skipped.
        """
        self._model = evaluation_copy(model)
        self._calls = calls
        self._plan = plan
        self._changing = dict.fromkeys(layers)  # those that have not been looked at
        self._replacements: dict[str, nn.Module] = {}
        self._memory: list[dict[Key, _Kept]] = [{} for _ in calls]
        self._at: str | None = None
        self._run = _Run({})
        intercept(self._model, self._around)

    def inputs(self, layer: str, step: int = 1) -> Iterator[Tensor | None]:
        """Yields what the layer gets in every ``step``-th batch; None where it is not reached."""
        self._look_at(layer)
        for number in range(0, len(self._calls), step):
            try:
                self._forward(number, stop=layer)
            except Reached as reached:
                yield reached.inputs
            else:
                yield None

    def outputs(self, layer: str, replacement: nn.Module) -> Iterator[Any]:
        """Yields what the model returns with another layer in the place of this one."""
        self._look_at(layer)
        self._replacements[layer] = replacement
        try:
            for number in range(len(self._calls)):
                yield self._forward(number, stop=None)
        finally:
            del self._replacements[layer]

    def replace(self, layer: str, replacement: nn.Module) -> None:
        """Computes a layer by another one from now on, which is put into evaluation mode."""
        self._replacements[layer] = replacement.eval()

    def _look_at(self, layer: str) -> None:
        """Earlier layers do not change any more."""
        if layer == self._at:
            return
        if layer not in self._changing:  # back to an earlier one
            raise ValueError(f"replay: layers must be looked at in their order (got {layer!r})")
        for earlier in itertools.takewhile(lambda name: name != layer, list(self._changing)):
            del self._changing[earlier]
        self._at = layer

    @torch.no_grad()
    def _forward(self, number: int, *, stop: str | None) -> Any:
        self._run = _Run(self._memory[number], stop)
        try:
            return self._calls[number](self._model)
        finally:
            self._forget(self._memory[number])

    def _forget(self, memory: dict[Key, _Kept]) -> None:
        """Forgets outputs that no call from the present layer on needs."""
        if self._plan is not None and self._at is not None:
            needed = self._plan.needed.get(self._at, {})
            for key, kept in memory.items():
                if key not in needed:
                    kept.forget()

    def _around(
        self, name: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Stands in for the forward of every module."""
        run = self._run
        key = (name, run.counts[name])
        run.counts[name] += 1
        if key in run.memory:
            kept = run.memory[key]
            run.counts += kept.inside
            return kept.value()
        if name in self._changing:
            run.recording = False
            if name == run.stop:
                raise Reached(args[0] if args else kwargs["input"])
        before = run.counts.copy()
        result = self._replacements.get(name, forward)(*args, **kwargs)
        if run.recording and self._plan is not None and key in self._plan.skippable:
            kept = _Kept(result, run.counts - before, copied=key in self._plan.written_later)
            for inner in [one for one in run.memory if one[0].startswith(f"{name}.")]:
                if before[inner[0]] <= inner[1] < run.counts[inner[0]]:
                    del run.memory[inner]
            run.memory[key] = kept
        return result


@dataclass
class _Run:
    """One forward call that is under way.

    Attributes:
        memory: what is known of this batch.
        stop: the layer at which the call ends.
        counts: calls of each module so far.
        recording: whether no layer that may change has been entered yet.
    """

    memory: dict[Key, _Kept]
    stop: str | None = None
    counts: Counter[str] = field(default_factory=Counter)
    recording: bool = True


class _Kept:
    """What a call of a module has returned, or NaN of that shape.

    Attributes:
        inside: calls of modules in it.
    """

    def __init__(self, result: Any, inside: Counter[str], *, copied: bool) -> None:
        self.inside = inside
        self._copied = copied
        self._result = self._copy(result)

    def value(self) -> Any:
        """Returns it; a copy where what follows works in place."""
        return self._copy(self._result)

    def forget(self) -> None:
        """Puts NaN without memory of their own in place of the values."""
        self._result = tree_map(_unknown, self._result)

    def _copy(self, result: Any) -> Any:
        if not self._copied:
            return result
        return tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, result)


def _unknown(value: Any) -> Any:
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return value
    return torch.full((), math.nan, dtype=value.dtype, device=value.device).expand(value.shape)


def intercept(model: nn.Module, around: Callable[..., Any]) -> None:
    """Lets ``around(name, forward, args, kwargs)`` stand in for every module's forward.

    Not for the model's own, nor for compiled TorchScript modules. ``model`` is changed for good.
    """
    for name, module in model.named_modules():
        if name and not isinstance(module, torch.jit.ScriptModule):
            module.forward = _intercepted(name, module.forward, around)


def _intercepted(
    name: str, original: Callable[..., Any], around: Callable[..., Any]
) -> Callable[..., Any]:
    @functools.wraps(original)  # who asks for the signature gets that of the original
    def forward(*args: Any, **kwargs: Any) -> Any:
        return around(name, original, args, kwargs)

    return forward


# ------------------------------------------------------------------------------------- tracing


@dataclass
class _ModuleCall:
    """One call of a module in a traced run; times count operators and calls.

    Attributes:
        key: its name and number.
        begin: when it began.
        end: when it had returned.
        outputs: storages of what it returned.
        nbytes: of what it returned.
        pure: whether it did nothing but return something.
    """

    key: Key
    begin: int
    end: int = -1
    outputs: frozenset[int] = frozenset()
    nbytes: int = 0
    pure: bool = True


@dataclass(frozen=True)
class _Operator:
    """One operator in a traced run: when, and storages.

    Attributes:
        time: when it ran.
        read: storages of its arguments.
        written: those that it made or changed.
        returned: those of what it returned; none where it returned a number.
    """

    time: int
    read: frozenset[int]
    written: frozenset[int]
    returned: frozenset[int]

    def matters(self, wanted: set[int]) -> bool:
        """Tells whether what it reads must be right if some storages must.

        What returns a number may decide what the model does.
        """
        return not self.returned or bool(self.returned & wanted or self.written & self.read)


class Plan:
    """Which calls of modules may be skipped, and whose outputs are needed then.

    Attributes:
        skippable: calls that do nothing but return something.
        written_later: calls whose outputs are changed in place after they have returned.
        needed: the calls whose outputs are read when a run is repeated from a layer on, with their
            bytes, by layer.
    """

    def __init__(
        self,
        calls: Sequence[_ModuleCall],
        operators: Sequence[_Operator],
        layers: Iterable[str],
    ) -> None:
        """Takes a traced run that has reached all layers."""
        self._calls = sorted((one for one in calls if one.pure), key=lambda one: one.begin)
        self._operators = operators
        self._writes: dict[int, list[int]] = {}  # times, rising
        for operator in operators:
            for storage in operator.written:
                self._writes.setdefault(storage, []).append(operator.time)
        self.skippable = frozenset(one.key for one in self._calls)
        self.written_later = frozenset(
            one.key
            for one in self._calls
            if any(self._writes.get(storage, [-1])[-1] > one.end for storage in one.outputs)
        )
        entered = {one.key[0]: one.begin for one in reversed(calls) if one.key[1] == 0}
        self.needed = {
            layer: self._read_after(entered[layer]) for layer in layers if layer in entered
        }

    def most_bytes(self) -> int:
        """Returns the memory that one batch takes at most."""
        return max((sum(one.values()) for one in self.needed.values()), default=0)

    def _read_after(self, begin: int) -> dict[Key, int]:
        skipped = self._finished(begin)
        begins = [one.begin for one in skipped]
        holders: dict[int, list[_ModuleCall]] = {}
        for one in skipped:
            for storage in one.outputs:
                holders.setdefault(storage, []).append(one)
        found: dict[Key, int] = {}
        wanted: set[int] = set()
        for operator in reversed(self._operators):
            at = bisect_right(begins, operator.time) - 1
            if at >= 0 and operator.time < skipped[at].end:
                continue  # it is skipped itself
            if operator.time < begin and not operator.matters(wanted):
                continue
            wanted |= operator.read
            for storage in operator.read & holders.keys():
                for one in self._last_holders(holders[storage], storage, operator.time):
                    found[one.key] = one.nbytes
        return found

    def _finished(self, time: int) -> list[_ModuleCall]:
        """The outermost calls that had returned by then."""
        found: list[_ModuleCall] = []
        for one in self._calls:
            if one.end <= time and (not found or one.begin >= found[-1].end):
                found.append(one)
        return found

    def _last_holders(
        self, calls: Sequence[_ModuleCall], storage: int, time: int
    ) -> Iterator[_ModuleCall]:
        """Those that returned a storage since the last of them that wrote to it."""
        writes = self._writes.get(storage, [])
        for one in reversed([one for one in calls if one.end <= time]):
            yield one
            if bisect_right(writes, one.begin) < bisect_right(writes, one.end):
                return


class _Trace(TorchDispatchMode):
    """Records the operators and the calls of modules of one forward call."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls: list[_ModuleCall] = []
        self.operators: list[_Operator] = []
        self._model = model
        self._time = itertools.count()
        self._counts: Counter[str] = Counter()
        self._born: dict[int, int] = {}
        self._alive: list[StorageWeakRef] = []  # while they are, addresses are not used again
        intercept(model, self._around)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        time = next(self._time)
        read = self._storages((args, kwargs), -1)
        arguments = zip(function._schema.arguments, args, strict=False)
        named = {one.name: one for one in function._schema.arguments}
        written = [value for one, value in arguments if one.is_write]
        written += [value for key, value in kwargs.items() if key in named and named[key].is_write]
        result = function(*args, **kwargs)
        created = self._storages(result, time)
        changed = self._storages(written, -1) | created - read
        self.operators.append(_Operator(time, read, changed, created))
        return result

    def finish(self, result: Any) -> None:
        """Takes what the model has returned: that is read too."""
        nothing: frozenset[int] = frozenset()
        read = self._storages(result, -1)
        self.operators.append(_Operator(next(self._time), read, nothing, nothing))

    def _around(
        self, name: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        module = self._model.get_submodule(name)
        call = _ModuleCall((name, self._counts[name]), next(self._time))
        self._counts[name] += 1
        self.calls.append(call)
        self._storages((args, kwargs), -1)
        before, numbers = _attributes(module), _random_state()
        first = len(self.operators)
        result = forward(*args, **kwargs)
        leaves = tree_flatten(result)[0]
        call.outputs = self._storages(leaves, -1)
        call.nbytes = sum(x.nbytes for x in leaves if isinstance(x, Tensor))
        call.end = next(self._time)
        written = frozenset().union(*(one.written for one in self.operators[first:]))
        call.pure = (
            not any(map(_has_hooks, islice(module.modules(), 1, None)))  # they may do anything
            and all(isinstance(x, _PLAIN) for x in leaves)
            and before == _attributes(module)
            and numbers == _random_state()
            and all(self._born[x] >= call.begin for x in written - call.outputs)
        )
        return result

    def _storages(self, values: Any, time: int) -> frozenset[int]:
        found = set()
        for value in tree_leaves(values):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                if storage._cdata not in self._born:
                    self._born[storage._cdata] = time
                    self._alive.append(StorageWeakRef(storage))
                found.add(storage._cdata)
        return frozenset(found)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _attributes(module: nn.Module) -> dict[tuple[int, str], object]:
    """The attributes of a module and those in it, by identity; of containers, their items too."""
    found: dict[tuple[int, str], object] = {}
    for one in module.modules():
        for name, value in vars(one).items():
            items: object = None
            if isinstance(value, list | tuple | set | frozenset):
                items = tuple(map(id, value))
            elif isinstance(value, dict):
                items = tuple((key, id(item)) for key, item in value.items())
            elif isinstance(value, torch.Generator):
                items = value.get_state().numpy().tobytes()
            found[id(one), name] = (id(value), items)
    return found


def _random_state() -> tuple[object, ...]:
    return hash(torch.get_rng_state().numpy().tobytes()), hash(random.getstate())


def plan_replays(model: nn.Module, layers: Sequence[str], calls: Sequence[Call]) -> Plan | None:
    """Traces a forward call and tries on two batches whether replays give the same.

    Args:
        model: unchanged.
        layers: names of the layers that will be looked at, in the order of their first calls.
        calls: one a batch.

    Returns:
        What may be skipped; None if nothing may.
    """
    if nn_module._global_forward_hooks or nn_module._global_forward_pre_hooks or not calls:
        return None
    try:
        trace = _Trace(evaluation_copy(model))
        with torch.no_grad(), trace:
            trace.finish(calls[0](trace._model))
        plan = Plan(trace.calls, trace.operators, layers)
        return plan if _gives_the_same(model, layers, calls[:2], plan) else None
    except Exception:  # a tensor without a storage, a module that cannot be skipped after all
        return None


def _gives_the_same(
    model: nn.Module, layers: Sequence[str], calls: Sequence[Call], plan: Plan
) -> bool:
    wanted: list[dict[str, Tensor]] = []
    watched = evaluation_copy(model)

    def note(name: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if name in names:
            wanted[-1].setdefault(name, _summary(args[0] if args else kwargs["input"]))
        return forward(*args, **kwargs)

    names = frozenset(layers)
    intercept(watched, note)
    for call in calls:
        wanted.append({})
        with torch.no_grad():
            call(watched)
    replays = Replays(model, layers, calls, plan)
    for layer in layers:
        for values, inputs in zip(wanted, replays.inputs(layer), strict=True):
            if (inputs is None) != (layer not in values):
                return False
            if inputs is not None and not torch.allclose(
                _summary(inputs), values[layer], rtol=_TOLERANCE, atol=1e-12
            ):
                return False
    return True


def _summary(values: Tensor) -> Tensor:
    """Some of the values, and their sizes: numbers that tell inputs apart."""
    flat = values.detach().flatten()
    some = flat[:: max(1, flat.numel() // _COMPARED)].double()
    ramp = torch.linspace(1, 2, max(1, some.numel()), dtype=some.dtype, device=some.device)
    sums = [some.abs().sum(), some.square().sum(), (some.abs() * ramp[: some.numel()]).sum()]
    return torch.stack(sums).cpu()
