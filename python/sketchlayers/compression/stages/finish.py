"""The last stage: the smaller network, its batch norms, refinement and outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from sketchlayers.compression.calibration.images import Images
from sketchlayers.compression.calibration.outputs import OriginalOutputs
from sketchlayers.compression.finishing.batch_norms import (
    Statistics,
    measured_batch_norms,
    put_buffers,
)
from sketchlayers.compression.finishing.latency import (
    Timed,
    calls_of_batch,
    calls_of_examples,
    measured_latencies,
)
from sketchlayers.compression.finishing.refine import Refined, Refinement, refine
from sketchlayers.compression.stages.fit import Fits
from sketchlayers.compression.stages.measure import Measured
from sketchlayers.compression.stages.task import Log, Task
from sketchlayers.compression.survey.layers import Survey
from sketchlayers.reports.rows import Latency
from sketchlayers.surgery.evaluation import evaluating, random_numbers
from sketchlayers.surgery.forms import folded_copy, without_needless
from sketchlayers.surgery.replace import evaluation_copy, replace_layers
from sketchlayers.surgery.sample import OutputsDifferError


@dataclass(frozen=True)
class Finished:
    """The smaller network, which is made only where it has been judged or timed.

    Attributes:
        model: the original; it has not been changed.
        swaps: what takes the place of which layer of it.
        given: what to change in place: the original, or what it was made of.
        swaps_in_place: what takes the place of which layer of that.
        small: the smaller network; None: not made yet.
        batch_norms: buffers that have been measured in it.
        change: of the network's outputs, relative to them; None where it is not known.
        latencies: of one call of both networks.
    """

    model: nn.Module
    swaps: Mapping[nn.Module, nn.Module]
    given: nn.Module
    swaps_in_place: Mapping[nn.Module, nn.Module]
    small: nn.Module | None = None
    batch_norms: Statistics = field(default_factory=dict)
    change: float | None = None
    latencies: tuple[Latency, ...] = ()

    def result(self, *, inplace: bool) -> nn.Module:
        """Returns the smaller model: the original one, changed, if ``inplace``.

        If anything fails the original one is as it was.
        """
        if not inplace:
            small = self.small
            if small is None:
                small = replace_layers(self.model, self.swaps, inplace=False)
            return without_needless(small)
        before = {name: self.given.get_buffer(name).clone() for name in self.batch_norms}
        try:
            put_buffers(self.given, self.batch_norms)
            return replace_layers(self.given, self.swaps_in_place, inplace=True)
        except BaseException:
            put_buffers(self.given, before)
            raise


def finish(task: Task, found: Survey, measured: Measured, fits: Fits, log: Log) -> Finished:
    """Puts the layers into a copy of the network; with images, refines and judges it."""
    modules = {layer.name: layer.module for layer in found.layers}
    swaps = {modules[name]: fitted.module for name, fitted in fits.layers.items()}
    small, statistics, change = None, Statistics(), None
    latencies: tuple[Latency, ...] = ()
    if task.images is not None:
        small = replace_layers(task.model, swaps, inplace=False)
        with evaluating(small):
            change, statistics = _finish(task, task.images, small, swaps, measured.outputs, log)
        put_buffers(small, statistics)
    if calls := _calls_to_time(task):
        if small is None:
            small = replace_layers(task.model, swaps, inplace=False)
        spent = sum(log.seconds.values())
        with log.stage("latency"):
            latencies = measured_latencies(task.model, small, calls, task.processes, spent=spent)
    given = task.given or task.model
    places = {name: fitted.module for name, fitted in fits.layers.items()}
    places |= {name: modules[name] for name in task.again if name not in places}
    in_place = {given.get_submodule(name): module for name, module in places.items()}
    return Finished(task.model, swaps, given, in_place, small, statistics, change, latencies)


def _calls_to_time(task: Task) -> list[Timed]:
    if not task.measure_latency:
        return []
    if task.example_inputs is not None:
        return calls_of_examples(task.example_inputs)
    if task.images is None:
        return []
    return calls_of_batch(task.images.sample.forward, task.images.sample.batches[0])


def _finish(
    task: Task,
    images: Images,
    small: nn.Module,
    swaps: Mapping[nn.Module, nn.Module],
    outputs: OriginalOutputs | None,
    log: Log,
) -> tuple[float | None, Statistics]:
    plain = folded_copy(small)
    change = _change(outputs, plain, log)
    statistics = Statistics()
    if task.settings.reestimate_batch_norm:
        with log.stage("batch norm"):
            change, statistics = _reestimate(task, images, plain, outputs, change, log)
        put_buffers(small, statistics)
    if task.settings.refinement is not None:
        with log.stage("refinement"):
            done = _refine(task, task.settings.refinement, images, small, swaps)
        log.notes.append(
            f"refined for {done.epochs} epochs: on held-out images the outputs change by "
            f"{done.after:.3f} instead of {done.before:.3f}"
        )
        change = _change(outputs, folded_copy(small), log)
    return change, statistics


def _refine(
    task: Task,
    settings: Refinement,
    images: Images,
    small: nn.Module,
    swaps: Mapping[nn.Module, nn.Module],
) -> Refined:
    seed = task.settings.seed
    try:
        with random_numbers((seed + task.processes.rank) % 2**32, small):  # models may draw some
            return refine(
                evaluation_copy(task.model),
                small,
                list(swaps.values()),
                images.sample,
                settings,
                task.processes,
                seed=seed,
                progress=task.progress,
            )
    except Exception as error:
        if settings.batch_size is not None:
            error.add_note(
                f"(compress: refine calls the model with {settings.batch_size} images at a time, "
                "whatever the loader does; Refinement(batch_size=None) takes what the model allows)"
            )
        raise


def _change(outputs: OriginalOutputs | None, small: nn.Module, log: Log) -> float | None:
    if outputs is None:
        return None
    try:
        return outputs.relative_change(small)
    except OutputsDifferError as error:
        log.notes.append(f"the change of the outputs was not measured: {error}")
        return None


def _reestimate(
    task: Task,
    images: Images,
    plain: nn.Module,
    outputs: OriginalOutputs | None,
    before: float | None,
    log: Log,
) -> tuple[float | None, Statistics]:
    statistics = measured_batch_norms(plain, images.sample, task.processes)
    put_buffers(plain, statistics)
    change = _change(outputs, plain, log)
    auto = task.settings.reestimate_batch_norm == "auto"
    if auto and before is not None and change is not None and not change < before:
        log.notes.append(
            "batch norms were left as they are: with new statistics the outputs would "
            f"change by {change:.3f} instead of {before:.3f}"
        )
        return before, Statistics()
    return change, statistics
