"""The dense weight that a compressed layer shows: computed when it is read, never written."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

_WRITES = frozenset(
    f"__i{name}__"
    for name in (
        *("add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "pow"),
        *("and", "or", "xor", "lshift", "rshift"),
    )
) | {"__setitem__", "__set__", "__delete__"}


class ComputedWeight(Tensor):
    """A weight that is computed from what a layer stores.

    Everything that reads a tensor works, and gives plain tensors. What would write into it, or into
    a view of it, would be lost, and raises instead.
    """

    _owner: str

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        written = _written(func, args, kwargs)
        if written is not None:
            raise RuntimeError(
                f"{written._owner}: weight is computed from the parameters, so that a write into "
                f"it would be lost (got {func.__name__}); write into the layer's parameters "
                "(named_parameters()), take the plain layer, sketchlayers.fold(layer), or write "
                "into a copy, layer.weight.detach().clone()"
            )
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs)
        return _protected(result, args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return copy.deepcopy(_plain(self), memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _plain(self).__reduce_ex__(protocol)


def computed_weight(owner: str, weight: Tensor, memory_format: torch.memory_format) -> Tensor:
    """The weight such that a write into it raises; itself where a graph or a transform sees it.

    It lies in memory as a plain layer's does, since programs call ``view`` of it.
    """
    if (
        type(weight) is not Tensor
        or torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or peek_interpreter_stack() is not None
    ):
        return weight
    return _shown(weight.contiguous(memory_format=memory_format), owner)


def _shown(tensor: Tensor, owner: str) -> ComputedWeight:
    with torch._C.DisableTorchFunctionSubclass():
        shown = tensor.as_subclass(ComputedWeight)
    shown._owner = owner
    return shown


def _plain(weight: ComputedWeight) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        plain: Tensor = weight.as_subclass(Tensor)
    return plain


def _written(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> ComputedWeight | None:
    """The weight among the arguments that the function writes into."""
    name = getattr(func, "__name__", "")
    targets = [kwargs.get("out")]
    in_place = name.endswith("_") and not name.endswith("__")
    if (in_place or name in _WRITES) and args:
        targets.append(args[0])
    for target in targets:
        for tensor in target if isinstance(target, tuple | list) else (target,):
            if isinstance(tensor, ComputedWeight):
                return tensor
    return None


def _protected(result: Any, args: Sequence[Any]) -> Any:
    """Views of a weight are as it is."""
    source = next((arg for arg in args if isinstance(arg, ComputedWeight)), None)
    if source is None:
        return result
    if isinstance(result, tuple | list) and any(isinstance(one, Tensor) for one in result):
        views = [_protected(one, args) for one in result]
        return views if isinstance(result, list) else type(result)(views)
    if type(result) is Tensor or type(result) is ComputedWeight:
        with torch._C.DisableTorchFunctionSubclass():
            if _same_memory(result, source):
                return _shown(result, source._owner)
    return result


def _same_memory(first: Tensor, second: Tensor) -> bool:
    if first.layout != torch.strided or first.device != second.device or first.is_meta:
        return False
    address: int = first.untyped_storage().data_ptr()
    return address != 0 and address == second.untyped_storage().data_ptr()
