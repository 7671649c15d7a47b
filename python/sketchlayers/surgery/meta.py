"""Modules without values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class WithoutValues(TorchFunctionMode):
    """Modules are built with their weights on the meta device, and nothing initialises them.

    ``torch.device("meta")`` would put all tensors there, also those that some models compute their
    sizes with, and would go through every initialisation, in Python.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.empty and (kwargs or {}).get("device") is None:
            return func(*args, **{**(kwargs or {}), "device": "meta"})
        # `torch.nn.init` hands its tensor on by name.
        filled = args[0] if args else (kwargs or {}).get("tensor")
        if isinstance(filled, Tensor) and filled.is_meta and _fills(func.__name__):
            return filled
        return func(*args, **(kwargs or {}))


def _fills(name: str) -> bool:
    """Whether a function of this name writes values into its first argument, as ``normal_``."""
    return name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
