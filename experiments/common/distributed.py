"""Processes started by ``torchrun``: who am I, which device is mine, sums over all of us."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn  # before `join`: its defaults would keep the group to the very end
from torch import Tensor

T = TypeVar("T")

RANK, SIZE = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
"""This process's number among those that ``torchrun`` started, and how many they are."""


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
    if SIZE == 1:
        yield World(torch.device(device or ("cuda" if use_gpu else "cpu")))
        return
    local = own_device("cuda" if use_gpu else "cpu")
    if use_gpu:
        torch.cuda.set_device(local)
    # A job that `torchrun` starts again may get the store of the attempt before, which has the
    # addresses of processes that are gone; so every attempt has keys of its own.
    store, rank, size = next(dist.rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"attempt_{attempt}", store)
    dist.init_process_group("nccl" if use_gpu else "gloo", store=store, rank=rank, world_size=size)
    try:
        yield World(local, RANK, SIZE)
    finally:
        dist.destroy_process_group()


def own_device(name: str) -> torch.device:
    """The device of this process: of several GPUs the one that goes with its number."""
    device = torch.device(name)
    if device.type == "cuda" and device.index is None and SIZE > 1:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


def share(work: Sequence[T]) -> Sequence[T]:
    """What this process does of pieces of work that need no other process."""
    return work[RANK::SIZE]


def alone() -> None:
    """Ends a script that cannot share its work, unless this is the only process.

    Raises:
        SystemExit: there are others.
    """
    if SIZE > 1:
        if RANK == 0:
            script = Path(sys.argv[0]).name
            print(
                f"error: {script} runs in one process, start it by python instead of torchrun "
                f"(got {SIZE} processes)",
                file=sys.stderr,
            )
        raise SystemExit(2)
