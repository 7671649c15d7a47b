"""What autocast does to a layer's computation."""

from __future__ import annotations

import contextlib

import torch


def autocast_type(device: str) -> torch.dtype | None:
    """The type that autocast computes in on a kind of device; ``None`` where it is off."""
    if not _has_autocast(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


@torch.compiler.assume_constant_result  # Dynamo of PyTorch 2.11 does not know the question
def _has_autocast(device: str) -> bool:
    return bool(torch.amp.is_autocast_available(device))


def full_precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """No autocast on the device: a weight is rounded once, by what computes with it."""
    if autocast_type(device.type) is not None:
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
