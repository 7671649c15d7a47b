"""How a call tells that ``torch.onnx.export`` traces it, and what it then takes for constant."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes


def exporting() -> bool:
    """Whether this call is one that ``torch.onnx.export`` traces."""
    return torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export()


def constant(make: Callable[[], Tensor]) -> Tensor:
    """A tensor with values, made of no other one, that a trace takes for a constant."""
    with torch.no_grad(), _disable_current_modes():
        return make()


def scaled(tensor: Tensor, factor: float) -> Tensor:
    """Times a number of the tensor's type: PyTorch 2.11's exporter cannot promote half types."""
    return tensor * torch.full((), factor, dtype=tensor.dtype, device=tensor.device)
