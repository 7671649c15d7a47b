"""Paired rounds with a clock that only the steps move."""

from __future__ import annotations

from collections.abc import Callable

import torch

from sketchlayers._runtime.timing import paired_times

CPU = torch.device("cpu")


class Clock:
    """Time passes only when a step says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def step(self, name: str, seconds: Callable[[], float]) -> Callable[[], None]:
        def run() -> None:
            self.calls.append(name)
            self.now += seconds()

        return run


def test_every_round_runs_every_step_once() -> None:
    clock = Clock()
    steps = [clock.step("a", lambda: 0.25), clock.step("b", lambda: 0.5)]
    times = paired_times(steps, 3.0, CPU, clock=clock)
    rounds = clock.calls[4:]  # after two calls each to warm up
    assert times == [[0.25] * 7, [0.5] * 7]  # 7 rounds take 5.25 s, above the 3 s asked for
    assert all(set(rounds[i : i + 2]) == {"a", "b"} for i in range(0, len(rounds), 2))


def test_rounds_go_on_until_the_time_is_over() -> None:
    clock = Clock()
    times = paired_times([clock.step("a", lambda: 1.0)], 20.0, CPU, clock=clock)
    assert len(times[0]) == 20


def test_the_order_changes_from_round_to_round() -> None:
    clock = Clock()
    steps = [clock.step(name, lambda: 1.0) for name in "abc"]
    paired_times(steps, 60.0, CPU, clock=clock)
    rounds = clock.calls[6:]
    assert len({tuple(rounds[i : i + 3]) for i in range(0, len(rounds), 3)}) > 3


def test_a_machine_that_slows_down_leaves_paired_ratios_alone() -> None:
    clock = Clock()
    factor = iter([1.0] * 4 + [2.0**i for i in range(7) for _ in range(2)])
    current = [1.0]

    def slowed(base: float) -> Callable[[], float]:
        def seconds() -> float:
            current[0] = next(factor)
            return base * current[0]

        return seconds

    steps = [clock.step("dense", slowed(3.0)), clock.step("sketch", slowed(1.0))]
    dense, sketch = paired_times(steps, 1.0, CPU, clock=clock)
    assert [theirs / ours for theirs, ours in zip(dense, sketch, strict=True)] == [3.0] * 7


def test_short_steps_are_called_until_a_sample_is_full() -> None:
    clock = Clock()
    steps = [clock.step("a", lambda: 0.25), clock.step("b", lambda: 2.0)]
    times = paired_times(steps, 1.0, CPU, least=1, sample=0.6, clock=clock)
    assert times == [[0.25], [2.0]]
    assert clock.calls[4:].count("a") == 3 and clock.calls[4:].count("b") == 1
