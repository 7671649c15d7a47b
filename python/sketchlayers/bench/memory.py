"""Peak memory of one call: parameters, buffers, input, and what PyTorch's allocator held in it."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from sketchlayers._runtime.timing import Step, synchronize
from sketchlayers.inference import clear_cache

from .timing import inference, training_step


def allocation_peak(step: Step, device: torch.device) -> int:
    """The most bytes that the allocator held during a step, beyond what it held before.

    What was allocated before must not be freed in the step.
    """
    if device.type == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler talks on stderr
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    events = profile.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda item: item[0]):
        held += change
        peak = max(peak, held)
    return peak


def tensor_bytes(*tensors: Tensor) -> int:
    """Bytes of the tensors' elements."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def held_bytes(layer: nn.Module, data: Tensor) -> int:
    """Bytes of parameters, buffers and input."""
    return tensor_bytes(data, *layer.parameters(), *layer.buffers())


def step_memory(layer: nn.Module, data: Tensor) -> int:
    """Peak bytes of a training step, whose gradients are allocated in it."""
    step = training_step(layer, data)
    step()
    data.grad = None
    layer.zero_grad(set_to_none=True)
    return held_bytes(layer, data) + allocation_peak(step, data.device)


def inference_memory(layer: nn.Module, data: Tensor) -> int:
    """Peak bytes of forward calls in eval mode, whatever the layer caches for them included.

    Two calls are watched, for what the first one caches and the second one reads.
    """
    step = inference(layer, data)
    step()
    clear_cache(layer)

    def twice() -> None:
        step()
        step()

    return held_bytes(layer, data) + allocation_peak(twice, data.device)
