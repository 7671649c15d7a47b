"""Processes started by ``torchrun``: who am I, which device is mine, sums over all of us."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes of one run; without ``torchrun`` there is one."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes files."""
        return self.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """Elementwise sum of `values` over all processes; `values` stays as it is."""
        values = values.clone()
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def share_buffers(self, network: nn.Module) -> None:
        """Gives every process the main one's buffers, that is its batch norm statistics."""
        if self.size > 1:
            for buffer in network.buffers():
                dist.broadcast(buffer, 0)

    def shared(self, value: T) -> T:
        """The main process's value."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, 0, device=self.device)
        return values[0]

    def wait(self) -> None:
        """Returns when all processes have arrived here."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def join(device: str | None = None) -> Iterator[World]:
    """Joins the processes that ``torchrun`` started, with NCCL on GPUs and gloo on CPUs.

    Args:
        device: ``"cpu"`` or ``"cuda"``; None takes a GPU where there is one.

    Raises:
        ValueError: if a GPU is asked for and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if device is not None and device.startswith("cuda") and not has_gpu:
        raise ValueError(f"device: PyTorch must see a GPU (got device={device!r} and none)")
    use_gpu = has_gpu if device is None else device.startswith("cuda")
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(torch.device(device or ("cuda" if use_gpu else "cpu")))
        return
    local = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if use_gpu else torch.device("cpu")
    if use_gpu:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if use_gpu else "gloo")
    try:
        yield World(local, dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
