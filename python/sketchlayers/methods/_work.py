"""How much a fit computes: for an estimate of the time that it takes, not for a choice."""

from __future__ import annotations

from typing import NamedTuple

STEP_SECONDS = 1.5e-3
"""What a step takes beside its operations, about: a hundred calls of PyTorch."""


class Work(NamedTuple):
    """Floating-point operations, and steps of calls that take time however small they are."""

    flops: float = 0.0
    steps: float = 0.0

    def seconds(self, flops_per_second: float) -> float:
        """Returns the time, about."""
        return self.flops / flops_per_second + STEP_SECONDS * self.steps

    def plus(self, other: Work) -> Work:
        """Returns the sum."""
        return Work(self.flops + other.flops, self.steps + other.steps)

    def times(self, count: float) -> Work:
        """Returns so many times as much."""
        return Work(count * self.flops, count * self.steps)
