"""Smaller models of several sizes, made from one calibration."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sketchlayers.compression.result import Compressed
from sketchlayers.reports.candidates import CandidateReport, candidates_table, draw_candidates

if TYPE_CHECKING:
    from sketchlayers.reports.report import Report


class Sweep(Mapping[float, Compressed]):
    """Smaller models and their reports by the rate that was asked; prints as a table.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 10))
        >>> sweep = sketchlayers.sweep(model, (0.8, 0.6), calibration=[torch.randn(16, 3, 8, 8)])
        >>> small, report = sweep[0.6]
        >>> [row.rate_asked for row in sweep.rows]
        [0.8, 0.6]
    """

    def __init__(self, members: Mapping[float, Compressed]) -> None:
        self._members = dict(members)

    def __getitem__(self, rate: float) -> Compressed:
        for known, member in self._members.items():
            if isinstance(rate, int | float) and math.isclose(known, rate, rel_tol=1e-9):
                return member
        raise KeyError(
            f"Sweep: the rate must be one of {', '.join(map(str, self._members))} (got {rate!r})"
        )

    def __iter__(self) -> Iterator[float]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)

    @property
    def rows(self) -> tuple[CandidateReport, ...]:
        """A line for each rate: its size, the change of its outputs, its evaluation."""
        return tuple(row_of(member.report) for member in self._members.values())

    def to_dict(self) -> dict[str, Any]:
        """Returns all rows and reports as dict, list, str, int, float and None."""
        reports = [member.report.to_dict() for member in self._members.values()]
        return {"rows": [row.to_dict() for row in self.rows], "reports": reports}

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws the evaluations over the rates; without any, the changes of the outputs.

        Args:
            path: of the file to write; its ending says what kind, such as ``.png`` or ``.svg``.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: matplotlib draws no files of this kind.
        """
        draw_candidates(self.rows, Path(path))

    def __str__(self) -> str:
        if not self._members:
            return "Sweep: nothing was done"
        report = next(iter(self._members.values())).report
        return candidates_table(self.rows, report.parameters_before, report.multiply_adds_before)

    __repr__ = __str__


class SweepError(RuntimeError):
    """A sweep or a search has ended early; what was done is in ``sweep``.

    Attributes:
        sweep: the models that have been made, the last one perhaps without an evaluation.
    """

    def __init__(self, message: str, sweep: Sweep) -> None:
        super().__init__(message)
        self.sweep = sweep


def row_of(report: Report, *, chosen: bool = False) -> CandidateReport:
    """What a table of several sizes says of one; with rates of layers, that of the whole model."""
    asked = report.rate if isinstance(report.rate_asked, Mapping) else report.rate_asked
    return CandidateReport(
        budget=report.budget,
        rate_asked=asked,
        rate=report.rate if report.budget_rate is None else report.budget_rate,
        parameters=report.parameters_after,
        multiply_adds=report.multiply_adds_after,
        output_change=report.output_change,
        evaluation=report.evaluation,
        chosen=chosen,
    )
