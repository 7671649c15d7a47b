"""Quartiles, ratios, and what is timed."""

from __future__ import annotations

import torch
from torch import nn

from sketchlayers.bench import timing
from sketchlayers.bench.timing import Quartiles, quartiles, speeds


def test_speeds_are_ratios_round_by_round() -> None:
    assert speeds([3.0, 6.0, 12.0], [1.0, 2.0, 4.0]) == Quartiles(3.0, 3.0, 3.0)


def test_quartiles_of_known_numbers() -> None:
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == Quartiles(2.0, 3.0, 4.0)


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
