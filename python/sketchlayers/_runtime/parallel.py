"""Networks as PyTorch's parallel training has them: wrapped, or shared out among processes."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def is_sharded(tensor: Any) -> bool:
    """Whether it is a ``DTensor``, which is expensive to import."""
    return type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "full_tensor")


def has_shards(model: nn.Module) -> bool:
    """Whether parameters are sharded, gathered at the moment or not."""
    return any(own_class(module) is not type(module) for module in model.modules()) or any(
        map(is_sharded, model.parameters())
    )


def whole(tensor: Any) -> Any:
    """The tensor itself, gathered from all processes if it is sharded."""
    return tensor.detach().full_tensor() if is_sharded(tensor) else tensor


def own_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module, without what ``fully_shard`` puts in front of it."""
    kind, base, *others = type(module).__mro__
    if base.__name__ == "FSDPModule" and base.__module__.startswith("torch."):
        kind = others[0]
    return kind


def check_whole(owner: str, parameter: Tensor) -> None:
    """Raises unless the parameter is here.

    Raises:
        RuntimeError: it is sharded.
    """
    if is_sharded(parameter):
        raise RuntimeError(
            f"{owner}: its parameters must be here as a whole (got shards of them); call unshard() "
            "of the module that was given to fully_shard before"
        )


def unwrapped(model: nn.Module) -> nn.Module:
    """The network inside ``DistributedDataParallel``, ``DataParallel`` and ``torch.compile``.

    Their state dicts have other names than the network's, which fit no other network.
    """
    while True:
        if isinstance(model, DataParallel | DistributedDataParallel):
            model = model.module
        elif _is_compiled(model):
            model = model.get_submodule("_orig_mod")
        else:
            return model


def _is_compiled(model: nn.Module) -> bool:
    compiler = sys.modules.get("torch._dynamo.eval_frame")  # expensive to import
    return compiler is not None and isinstance(model, compiler.OptimizedModule)
