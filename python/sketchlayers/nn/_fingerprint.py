"""Whether tensors have changed, by what can be told at every call at next to no cost."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor

from sketchlayers import _extension
from sketchlayers.nn._geometry import CHANNELS_LAST


def fingerprint(*tensors: Tensor | None) -> tuple[object, ...] | None:
    """Another value after nearly any change of the tensors or of their values.

    It covers addresses, version counters, types, strides and, on the CPU, 128 numbers spread evenly
    over each tensor (all of a smaller one): a write past the version counter, as through ``.data``,
    is noticed if it changes one of these. On other devices, where reading values would wait for the
    device, such a write is not noticed.

    Returns:
        None where nothing can be told: for a tensor with gaps, without memory or made in inference
        mode (it has no version counter), and without the compiled extension.
    """
    sample = _sampler()
    if sample is None:
        return None
    parts: list[object] = []
    try:
        for tensor in tensors:
            if tensor is None:
                continue
            address = tensor.data_ptr()
            if not address:
                return None
            parts += (address, tensor._version, tensor.dtype, tensor.stride())
            if tensor.is_cpu:
                if not (tensor.is_contiguous() or _is_channels_last(tensor)):
                    return None
                parts.append(sample(address, tensor.nbytes))
    except RuntimeError:  # without memory, or without a version counter
        return None
    return tuple(parts)


def _is_channels_last(tensor: Tensor) -> bool:
    last = CHANNELS_LAST.get(tensor.dim())
    return last is not None and tensor.is_contiguous(memory_format=last)


@functools.cache
def _sampler() -> Callable[[int, int], int] | None:
    if _extension.problem() is not None:
        return None
    sample: Callable[[int, int], int] = _extension.load().sample_memory
    return sample
