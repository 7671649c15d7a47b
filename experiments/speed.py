"""Images per second of networks, measured side by side."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Speed:
    """Images per second in inference and in training (forward, backward and SGD step)."""

    inference: float
    training: float


def measure_speeds(
    networks: Mapping[str, nn.Module], images: Tensor, labels: Tensor, *, rounds: int = 7
) -> dict[str, Speed]:
    """Medians over `rounds` in which every network gets its turn, so that all see the same machine.

    The networks themselves are left as they are.
    """
    inference = {name: _inference(network, images) for name, network in networks.items()}
    training = {name: _training(network, images, labels) for name, network in networks.items()}
    inference_seconds = _median_seconds(inference, images.device, rounds)
    training_seconds = _median_seconds(training, images.device, rounds)
    return {
        name: Speed(len(images) / inference_seconds[name], len(images) / training_seconds[name])
        for name in networks
    }


def _median_seconds(
    steps: Mapping[str, Callable[[], object]], device: torch.device, rounds: int
) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_number in range(rounds + 1):
        for name, step in steps.items():
            seconds = _seconds(step, device)
            # The first round warms up caches and memory.
            if round_number:
                times[name].append(seconds)
    return {name: median(values) for name, values in times.items()}


def _seconds(step: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _inference(network: nn.Module, images: Tensor) -> Callable[[], object]:
    network = copy.deepcopy(network).eval()

    @torch.no_grad()
    def step() -> Tensor:
        return network(images)

    return step


def _training(network: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], object]:
    network = copy.deepcopy(network).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return step
