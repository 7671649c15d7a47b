"""What autocast does to a layer's computation."""

from __future__ import annotations

import contextlib

import torch

_WITH_AUTOCAST = frozenset(
    name for name in ("cpu", "cuda", "mps", "xpu") if torch.amp.is_autocast_available(name)
)


def autocast_type(device: str) -> torch.dtype | None:
    """The type that autocast computes in on a kind of device; ``None`` where it is off."""
    if not _has_autocast(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def _has_autocast(device: str) -> bool:
    # Dynamo of PyTorch 2.11 does not know the question, and to mark a function for it
    # (`assume_constant_result`) imports all of it.
    if device in _WITH_AUTOCAST:
        return True
    return not torch.compiler.is_compiling() and bool(torch.amp.is_autocast_available(device))


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """No autocast on the device: a weight is rounded once, by what computes with it."""
    if autocast_type(device.type) is not None:
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
