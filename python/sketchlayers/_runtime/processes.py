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
    """The processes of the default process group, or this one alone.

    All of them must call the same methods in the same order. Inside `together` a process may fail
    at any time: the others hear of it at the next call of any method.
    """

    def __init__(self, owner: str, *, join: bool) -> None:
        """Takes who asks, for errors, and whether to work with other processes if there are any."""
        initialised = join and dist.is_available() and dist.is_initialized()
        self.count = dist.get_world_size() if initialised else 1
        self.rank = dist.get_rank() if initialised else 0
        self._owner = owner
        self._work = "the work"

    def sum(self, tensor: Tensor) -> Tensor:
        """The elementwise sum over all processes, on the tensor's device; may change ``tensor``."""
        if self.count == 1:
            return tensor
        self._gather(0)
        total = tensor.to(self._device(tensor))
        dist.all_reduce(total)
        return total.to(tensor.device)

    def mean(self, value: float, weight: float = 1.0) -> float:
        """The mean of what the processes give, weighted."""
        if self.count == 1:
            return value
        total, weights = self.sum(
            torch.tensor([weight * value, weight], dtype=torch.float64, device="cpu")
        ).tolist()
        return total / weights

    def first(self, value: int) -> int:
        """What the first process gives, a number of 64 bits."""
        return self._gather(value)[0]

    def least(self, value: int) -> int:
        """The smallest of what the processes give."""
        return min(self._gather(value))

    def take_first(self, tensor: Tensor) -> None:
        """Makes the values of a tensor in all processes those of the first one."""
        if self.count > 1:
            self._gather(0)
            values = tensor.detach().to(self._device(tensor)).contiguous()
            dist.broadcast(values, 0)
            tensor.detach().copy_(values)

    @contextlib.contextmanager
    def together(self, work: str) -> Iterator[None]:
        """Waits until all processes are through the body; if it fails in one it fails in all.

        Args:
            work: what the body does, for the error of the processes in which it did not fail.

        Raises:
            RuntimeError: it failed in other processes, but not in this one.
        """
        outer, self._work = self._work, work
        try:
            yield
            self._gather(0)
        except Exception as error:
            if not _is_known_to_all(error):
                error._is_known_to_all = True  # type: ignore[attr-defined]
                self._exchange(0, failed=True)
            raise
        finally:
            self._work = outer

    def agree(self, text: str) -> bool:
        """Whether all processes give the same text."""
        digest = hashlib.blake2b(text.encode(), digest_size=6).digest()
        return len(set(self._gather(int.from_bytes(digest, "little")))) == 1

    def _gather(self, value: int) -> list[int]:
        """The value of every process, in the order of their ranks.

        Raises:
            RuntimeError: some have failed.
        """
        values, failed = self._exchange(value)
        if failed:
            ranks = ", ".join(map(str, failed))
            error = RuntimeError(
                f"{self._owner}: {self._work} must succeed in all processes (it failed in those of "
                f"rank {ranks}; their own errors tell why)"
            )
            error._is_known_to_all = True  # type: ignore[attr-defined]
            raise error
        return values

    def _exchange(self, value: int, *, failed: bool = False) -> tuple[list[int], list[int]]:
        """The values of all processes, and the ranks of those that have failed."""
        if self.count == 1:
            return [value], []
        told = torch.zeros(2, self.count, dtype=torch.int64, device="cpu")
        told[:, self.rank] = torch.tensor([value, int(failed)], device="cpu")
        told = told.to(self._device(told))
        dist.all_reduce(told)
        values, flags = told.tolist()
        return values, [rank for rank, flag in enumerate(flags) if flag]

    @staticmethod
    def _device(tensor: Tensor) -> torch.device:
        """Where the backend can work on the tensor: where it is, else on this process's GPU."""
        supported = dist.get_backend_config()
        if f"{tensor.device.type}:" in supported:
            return tensor.device
        return torch.device("cpu" if "cpu:" in supported else "cuda")


def _is_known_to_all(error: BaseException | None) -> bool:
    """Whether the processes have exchanged that there was this error, or one that led to it."""
    while error is not None and not hasattr(error, "_is_known_to_all"):
        error = error.__cause__ or error.__context__
    return error is not None
