"""Sums over the processes that ``torchrun`` started, and failing together.

Without ``torch.distributed``, or where it is not initialised, there is one process and nothing to
do.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor


class Processes:
    """The processes of the default process group, or this one alone."""

    def __init__(self, *, join: bool) -> None:
        """Takes whether to work with the other processes, if there are any."""
        initialised = join and dist.is_available() and dist.is_initialized()
        self.count = dist.get_world_size() if initialised else 1
        self.rank = dist.get_rank() if initialised else 0

    def sum(self, tensor: Tensor) -> Tensor:
        """The elementwise sum over all processes, on the tensor's device; may change ``tensor``."""
        if self.count == 1:
            return tensor
        device = self._device(tensor)
        total = tensor.to(device)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def mean(self, value: float, weight: float = 1.0) -> float:
        """The mean of what the processes give, weighted."""
        if self.count == 1:
            return value
        total, weights = self.sum(
            torch.tensor([weight * value, weight], dtype=torch.float64)
        ).tolist()
        return total / weights

    def first(self, value: int) -> int:
        """What the first process gives, a number of 64 bits."""
        return self._gather(value)[0]

    def least(self, value: int) -> int:
        """The smallest of what the processes give."""
        return min(self._gather(value))

    @contextlib.contextmanager
    def together(self, work: str) -> Iterator[None]:
        """Waits until all processes are through the body; if it fails in one it fails in all.

        Args:
            work: what the body does, for the error of the processes in which it did not fail.

        Raises:
            RuntimeError: it failed in other processes, but not in this one.
        """
        error = None
        try:
            yield
        except Exception as raised:
            error = raised
        failed = self._gather(int(error is not None))
        if error is not None:
            raise error
        if any(failed):
            ranks = ", ".join(str(rank) for rank, flag in enumerate(failed) if flag)
            raise RuntimeError(
                f"calibrate: {work} must succeed in all processes (it failed in those of rank "
                f"{ranks}; their own errors tell why)"
            )

    def agree(self, text: str) -> bool:
        """Whether all processes give the same text."""
        digest = hashlib.blake2b(text.encode(), digest_size=6).digest()
        return len(set(self._gather(int.from_bytes(digest, "little")))) == 1

    def _gather(self, value: int) -> list[int]:
        """The value of every process, in the order of their ranks."""
        if self.count == 1:
            return [value]
        values = torch.zeros(self.count, dtype=torch.int64)
        values[self.rank] = value
        return self.sum(values).tolist()

    @staticmethod
    def _device(tensor: Tensor) -> torch.device:
        """Where the backend can sum the tensor: where it is, else on the GPU of this process."""
        supported = dist.get_backend_config()
        if f"{tensor.device.type}:" in supported:
            return tensor.device
        return torch.device("cpu" if "cpu:" in supported else "cuda")
