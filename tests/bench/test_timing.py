"""Paired rounds with a clock that only the steps move, quartiles, ratios."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from sketchlayers.bench import timing
from sketchlayers.bench.timing import Quartiles, paired_times, quartiles, speeds

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
    assert speeds(dense, sketch) == Quartiles(3.0, 3.0, 3.0)


def test_quartiles_of_known_numbers() -> None:
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == Quartiles(2.0, 3.0, 4.0)
    assert quartiles([1.0, 2.0, 4.0]).spread == pytest.approx(0.75)


def test_the_fastest_has_the_lowest_median() -> None:
    assert timing.fastest([[1.0, 9.0, 9.0], [8.0, 8.0, 0.1], [7.0, 7.0, 100.0]]) == 2


def test_inference_runs_in_eval_mode_without_gradients() -> None:
    seen: list[tuple[bool, bool]] = []

    class Spy(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            seen.append((self.training, torch.is_grad_enabled()))
            return super().forward(input)

    layer = Spy(2, 2)
    timing.inference(layer, torch.ones(1, 2))()
    assert seen == [(False, False)]
    timing.training_step(layer, torch.ones(1, 2, requires_grad=True))()
    assert seen[-1] == (True, True)


def test_a_training_step_makes_every_gradient_anew() -> None:
    layer, data = nn.Linear(2, 3), torch.ones(4, 2, requires_grad=True)
    step = timing.training_step(layer, data)
    step()
    first = layer.weight.grad
    assert first is not None and data.grad is not None
    expected = first.clone()
    step()
    assert layer.weight.grad is not None
    assert torch.equal(layer.weight.grad, expected)
