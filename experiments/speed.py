"""Milliseconds an image of networks that take turns: PyTorch, ONNX Runtime, training steps."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export_latency import NEEDED, onnx_runtime
from sketchlayers.bench.timing import Step, inference, paired_times, quartiles, speeds


@dataclass(frozen=True)
class Speed:
    """Median milliseconds an image, and the median of the ratios to the first network's."""

    milliseconds: float
    times_as_fast: float


def measure_speeds(
    steps: Mapping[str, Step], images: int, device: torch.device, seconds: float
) -> dict[str, Speed]:
    """Times steps in turn, each on the same number of images; the first is the reference.

    On a processor the clock is that of the calling thread, which stands still while other programs
    run: set one thread, so that all of the work is in it.

    Args:
        steps: one for each network, by name.
        images: that a step works on.
        device: where it does.
        seconds: for all steps together.
    """
    clock = time.perf_counter if device.type == "cuda" else time.thread_time
    times = paired_times(list(steps.values()), seconds, device, clock=clock)
    return {
        name: Speed(1e3 * quartiles(own).median / images, speeds(times[0], own).median)
        for name, own in zip(steps, times, strict=True)
    }


def pytorch_steps(networks: Mapping[str, nn.Module], images: Tensor) -> dict[str, Step]:
    """Calls of the networks in eval mode, with channels_last images."""
    images = images.contiguous(memory_format=torch.channels_last)
    return {name: inference(network, images) for name, network in networks.items()}


def onnx_steps(
    networks: Mapping[str, nn.Module], images: Tensor, folder: Path
) -> dict[str, Step] | None:
    """Calls of the networks in ONNX Runtime; None where a package for that is not installed.

    Args:
        networks: in eval mode, on the processor.
        images: of one call.
        folder: gets a folder of files for each network.
    """
    if not all(map(find_spec, NEEDED["onnx"])):
        return None
    steps = {}
    for number, (name, network) in enumerate(networks.items()):
        own = folder / str(number)
        own.mkdir()
        steps[name] = onnx_runtime(network, images, own)
    return steps


def training_steps(
    networks: Mapping[str, nn.Module], images: Tensor, labels: Tensor
) -> dict[str, Step]:
    """Steps of SGD on copies of the networks, with channels_last images."""
    images = images.contiguous(memory_format=torch.channels_last)
    return {name: _training(network, images, labels) for name, network in networks.items()}


def _training(network: nn.Module, images: Tensor, labels: Tensor) -> Step:
    network = copy.deepcopy(network).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return step
