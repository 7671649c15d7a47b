"""Makes and evaluates networks of several sizes, of what has been prepared once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import cached_property

from torch import nn

from sketchlayers.compression.allocation.costs import Budget, Unit
from sketchlayers.compression.allocation.ranks import Chosen
from sketchlayers.compression.candidates.evaluation import Evaluate, Evaluator
from sketchlayers.compression.candidates.search import Search
from sketchlayers.compression.candidates.sweep import Sweep, SweepError, row_of
from sketchlayers.compression.pipeline import (
    Outcome,
    make,
    planned,
    prepare,
    smallest_rate,
)
from sketchlayers.compression.result import Compressed, report_of
from sketchlayers.compression.stages.task import Task
from sketchlayers.reports.candidates import Evaluation
from sketchlayers.reports.report import Report


class Made:
    """A smaller network; the user's own does not change before `result`.

    Attributes:
        report: what was done.
    """

    def __init__(self, outcome: Outcome, report: Report) -> None:
        self._outcome = outcome
        self.report = report

    @cached_property
    def model(self) -> nn.Module:
        """The smaller model, beside the user's own."""
        return self._outcome.finished.result(inplace=False)

    def result(self, *, inplace: bool) -> Compressed:
        """Returns the smaller model; ``inplace`` makes it of the user's own."""
        model = self._outcome.finished.result(inplace=True) if inplace else self.model
        return Compressed(model, self.report)

    @property
    def rate(self) -> float:
        """That was reached."""
        return row_of(self.report).rate

    @property
    def evaluation(self) -> Evaluation:
        """Of this network; there must be one."""
        assert self.report.evaluation is not None
        return self.report.evaluation


class Maker:
    """Makes networks of the sizes that it is asked for, and keeps them."""

    def __init__(self, task: Task, budgets: Iterable[Budget], evaluate: Evaluate | None) -> None:
        """Evaluates the original network, then does what all budgets have in common.

        Raises:
            SweepError: the evaluation of the original has failed.
            ValueError: a budget cannot be met.
        """
        self._task = task
        self._made: dict[float, Made] = {}
        self._evaluator = None
        if evaluate is not None:
            try:
                self._evaluator = Evaluator(evaluate, task.model, task.processes)
            except Exception as error:
                raise self._failed("the original network", error) from error
        self._prepared = prepare(task, list(budgets))

    @property
    def sweep(self) -> Sweep:
        """What has been made so far."""
        return Sweep({rate: one.result(inplace=False) for rate, one in self._made.items()})

    def make(self, budget: Budget | None) -> Made:
        """Makes and evaluates a network; None: of the layers' own rates.

        Raises:
            SweepError: the evaluation has failed.
        """
        outcome = make(self._prepared, budget)
        made = Made(outcome, report_of(outcome, self._task, budget))
        key = made.rate if budget is None else budget.rate
        self._made[key] = made
        if self._evaluator is not None:
            try:
                with outcome.log.stage("evaluation"):
                    evaluation = self._evaluator(made.model)
            except Exception as error:
                raise self._failed(f"the network of rate {key:.4g}", error) from error
            made.report = report_of(outcome, self._task, budget, evaluation)
        return made

    def smallest(self, unit: Unit, max_drop: float) -> Made:
        """Looks for the smallest network that loses at most ``max_drop``.

        Raises:
            SweepError: the evaluation has failed, or no candidate loses so little.
        """

        def damage(rate: float) -> float:
            return planned(self._prepared, Budget(unit, rate)).damage or 0.0

        has_curves = bool(self._prepared.curves)
        search = Search(damage if has_curves else None, smallest_rate(self._prepared), max_drop)
        by_choice: dict[frozenset[tuple[str, Chosen]], Made] = {}
        while (rate := search.next()) is not None:
            budget = Budget(unit, rate)
            choice = frozenset(planned(self._prepared, budget).chosen.items())
            if choice not in by_choice:  # ranks are whole numbers: two rates may mean the same
                by_choice[choice] = self.make(budget)
            search.tell(rate, by_choice[choice].evaluation.drop)
        tried = list(by_choice.values())
        good = [one for one in tried if one.evaluation.drop <= max_drop]
        if not good:
            least = min(tried, key=lambda one: one.evaluation.drop)
            raise SweepError(
                f"compress: a network must lose at most max_drop={max_drop:g} "
                f"({len(tried)} candidates lose more; got {least.evaluation.drop_text()} at "
                f"{least.report.budget}={least.rate:.4g} as the least); allow a larger drop, or "
                "try refine=True; this error's attribute sweep has all candidates",
                self.sweep,
            )
        best = min(good, key=lambda one: one.rate)
        best.report = dataclasses.replace(
            best.report,
            candidates=tuple(row_of(one.report, chosen=one is best) for one in tried),
            notes=(*best.report.notes, *_doubts(best.evaluation, max_drop)),
            seconds=self._seconds(tried),
        )
        return best

    def _seconds(self, made: Iterable[Made]) -> dict[str, float]:
        """Of all that was made; what they have in common counts once."""
        common = self._prepared.log.seconds
        total = dict(common)
        for one in made:
            for stage, seconds in one.report.seconds.items():
                own = seconds - common.get(stage, 0.0)
                total[stage] = total.get(stage, 0.0) + own
        return total

    def _failed(self, what: str, error: Exception) -> SweepError:
        return SweepError(
            f"compress: evaluate must succeed for {what} (got {type(error).__name__}: {error}); "
            f"this error's attribute sweep has the {len(self._made)} networks made so far",
            self.sweep,
        )


def _doubts(evaluation: Evaluation, max_drop: float) -> list[str]:
    """What to say where the evaluation is too coarse for the limit."""
    error = evaluation.standard_error
    if error is None or evaluation.drop + error <= max_drop:
        return []
    return [
        f"the {evaluation.drop_text()}: within its standard error it may be more than "
        f"max_drop={max_drop:g}; more examples tell"
    ]
