"""What `compress` returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn

from sketchlayers.compression.allocation.costs import Budget
from sketchlayers.compression.allocation.ranks import Chosen
from sketchlayers.compression.pipeline import Outcome
from sketchlayers.compression.stages.task import Task
from sketchlayers.compression.survey.layers import (
    Layer,
    multiply_adds,
    stored_bytes,
    stored_tensors,
)
from sketchlayers.nn._rounding import roundings
from sketchlayers.reports.candidates import Evaluation
from sketchlayers.reports.report import Report
from sketchlayers.reports.rows import LayerReport


class Compressed(NamedTuple):
    """The smaller model and what was done; unpacks as ``model, report = compress(...)``."""

    model: nn.Module
    report: Report


def report_of(
    outcome: Outcome, task: Task, budget: Budget | None, evaluation: Evaluation | None = None
) -> Report:
    """Returns the report of what was done to meet a budget; None: the layers' own rates."""
    method, settings = task.method, task.settings
    return Report(
        method=method.name,
        options=method.options(),
        init=settings.init,
        seed=settings.seed,
        rate_asked=budget.rate if budget is not None else dict(task.layer_rates or {}),
        layers=tuple(_layer_report(layer, outcome) for layer in outcome.found.layers),
        others=outcome.found.others,
        other_bytes=outcome.found.other_bytes,
        notes=tuple(outcome.log.notes),
        budget="rate" if budget is None else budget.argument,
        budget_rate=outcome.ranks.rate,
        allocation=None if budget is None else settings.allocation,
        images=outcome.measured.images,
        sequential=outcome.fits.sequential,
        output_change=outcome.finished.change,
        latencies=outcome.finished.latencies,
        evaluation=evaluation,
        seconds=outcome.log.seconds,
    )


def _layer_report(layer: Layer, outcome: Outcome) -> LayerReport:
    chosen = outcome.ranks.chosen.get(layer.name, Chosen())
    new = outcome.fits.layers.get(layer.name)
    reason = layer.reason or outcome.log.reasons.get(layer.name)
    after = layer.parameters, layer.bytes, layer.multiply_adds
    if new is None:
        chosen = Chosen()
    else:
        after = (
            sum(parameter.numel() for parameter in new.module.parameters()),
            _bytes_after(new.module),
            multiply_adds(new.module, layer.calls) if layer.calls else None,
        )
    return LayerReport(
        name=layer.name,
        kind=layer.kind,
        shape=layer.shape,
        method=None if chosen.method is None else chosen.method.name,
        rank=chosen.rank,
        parameters_before=layer.parameters,
        parameters_after=after[0],
        bytes_before=layer.bytes,
        bytes_after=after[1],
        multiply_adds_before=layer.multiply_adds,
        multiply_adds_after=after[2],
        relative_error=None if new is None else new.relative_error,
        reason=None if reason is None else reason.text,
        bits=None if new is None else min((x.bits for _, x in roundings(new.module)), default=None),
    )


def _bytes_after(module: nn.Module) -> int:
    """What a file holds of a new layer."""
    rounded = dict(roundings(module))
    return sum(
        rounded[name].stored_bytes(tensor.numel()) if name in rounded else stored_bytes(tensor)
        for name, tensor in stored_tensors(module)
    )
