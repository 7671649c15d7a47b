"""What a user's own function says of networks, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sketchlayers._runtime.processes import Processes
from sketchlayers.reports.candidates import Evaluation
from sketchlayers.surgery.evaluation import evaluating, same_random_numbers
from sketchlayers.surgery.replace import evaluation_copy

Evaluate = Callable[[nn.Module], Any]
"""``evaluate(model)`` returns one number, or a 1-D tensor with a score for each example."""


@dataclass(frozen=True)
class _Scores:
    """Attributes: their mean over all processes, and each one of this process if that is known."""

    mean: float
    each: Tensor | None


class Evaluator:
    """Calls a user's function with networks, and compares what it returns with the original's.

    Models are in evaluation mode, without gradients; modes, buffers, gradients and random numbers
    are afterwards as they were.
    """

    def __init__(self, evaluate: Evaluate, original: nn.Module, processes: Processes) -> None:
        """Evaluates the original network, a copy that shares its parameters.

        Raises:
            ValueError: what the function returns is no number, not finite, or empty.
            TypeError: it returns something else.
            Exception: whatever the function raises.
        """
        self._evaluate = evaluate
        self._processes = processes
        self._before = self._scores(evaluation_copy(original))

    def __call__(self, model: nn.Module) -> Evaluation:
        """Evaluates a smaller network; for what is raised see `__init__`."""
        after = self._scores(model)
        first, second = self._before.each, after.each
        if (first is None) != (second is None) or (
            first is not None and second is not None and len(first) != len(second)
        ):
            raise ValueError(
                "evaluate must return as many scores for every network "
                f"(got {_count(second)} after {_count(first)} for the original)"
            )
        error = None
        if first is not None and second is not None:
            error = self._standard_error(first - second)
        return Evaluation(self._before.mean, after.mean, error)

    def _scores(self, model: nn.Module) -> _Scores:
        with self._processes.together("evaluate"):
            with evaluating(model), same_random_numbers():
                result = self._evaluate(model)
            each = _each(result)
            if each is None:
                return _Scores(self._processes.mean(_number(result)), None)
            total = self._processes.sum(torch.stack([each.sum(), _as_number(len(each))]))
            return _Scores(float(total[0] / total[1]), each)

    def _standard_error(self, differences: Tensor) -> float:
        """Of the mean of paired differences."""
        count = _as_number(len(differences))
        sums = torch.stack([count, differences.sum(), differences.square().sum()])
        count, total, squares = self._processes.sum(sums)
        variance = (squares - total * total / count).clamp(min=0) / (count - 1).clamp(min=1)
        return math.sqrt(float(variance / count))


def _each(result: object) -> Tensor | None:
    """The scores of the examples, float64, on the CPU; None for one number."""
    shape = getattr(result, "shape", ())
    if len(shape) == 0 and not isinstance(result, list | tuple):
        return None
    try:
        each = torch.as_tensor(result).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"evaluate must return a number or scores ({error})") from error
    if each.ndim != 1 or not len(each):
        raise ValueError(
            "evaluate must return a number, or a 1-D tensor with a score for each example "
            f"(got shape {tuple(each.shape)})"
        )
    if not each.isfinite().all():
        raise ValueError("evaluate must return finite scores (got NaN or infinite ones)")
    return each


def _number(result: Any) -> float:
    try:
        value = float(result)
    except (TypeError, ValueError) as error:
        raise TypeError(
            "evaluate must return a number, or a 1-D tensor with a score for each example "
            f"(got {type(result).__name__})"
        ) from error
    if not math.isfinite(value):
        raise ValueError(f"evaluate must return a finite number (got {value})")
    return value


def _as_number(value: int) -> Tensor:
    return torch.tensor(float(value), dtype=torch.float64, device="cpu")


def _count(scores: Tensor | None) -> str:
    return "one number" if scores is None else f"{len(scores)} scores"
