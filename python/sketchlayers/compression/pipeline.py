"""What one call of `compress` does after its arguments have been checked, stage by stage.

    survey -> calibrate -> allocate -> fit -> swap -> finish -> report

Each stage is a function from what the ones before it have found to a frozen dataclass. The user's
model stays as it is until `Finished.result`. Every forward call of it, or of a copy, is made in the
caller's thread, runs alone, and ends, if by an exception, before the next one begins.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from sketchlayers._runtime.processes import Processes
from sketchlayers._runtime.progress import progress_bar
from sketchlayers.compression.allocation import ranks
from sketchlayers.compression.allocation.costs import Budget, Costs
from sketchlayers.compression.allocation.damage import DamageMeter, images_to_measure_on
from sketchlayers.compression.allocation.ranks import Ranks
from sketchlayers.compression.allocation.sensitivity import (
    GradientError,
    images_to_look_at,
    output_sensitivity,
)
from sketchlayers.compression.arguments import Rates, Settings
from sketchlayers.compression.calibration.calibrate import Calibration
from sketchlayers.compression.calibration.images import Images
from sketchlayers.compression.calibration.outputs import OriginalOutputs
from sketchlayers.compression.finishing.batch_norms import (
    Statistics,
    measured_batch_norms,
    put_buffers,
)
from sketchlayers.compression.finishing.refine import Refined, Refinement, refine
from sketchlayers.compression.fitting.layer import (
    Choice,
    Fitted,
    Norm,
    fit_alone,
    naming,
    seeded,
)
from sketchlayers.compression.fitting.sequence import fit_one_after_the_other, images_within
from sketchlayers.compression.seeds import layer_seed
from sketchlayers.compression.survey.layers import Layer, Survey, survey
from sketchlayers.compression.survey.reasons import Reason
from sketchlayers.compression.survey.selection import FilterFunction, left_out
from sketchlayers.methods import Method
from sketchlayers.surgery.calls import Call, CallOrder, ExampleInputs, OrderError, call_with
from sketchlayers.surgery.evaluation import evaluating
from sketchlayers.surgery.replace import evaluation_copy, replace_layers
from sketchlayers.surgery.replay import Plan, plan_replays
from sketchlayers.surgery.sample import OutputsDifferError

JUDGED_IMAGES = 512
"""Images, or some more, on which the change of the network's outputs is measured."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is asked for; all checked.

    Attributes:
        model: the user's.
        method: what layers may be replaced by.
        rates: one budget, or rates of layers.
        settings: how to fit.
        images: calibration images; None without.
        calibration: finished moments; None without.
        example_inputs: of one call of the model; None: the first calibration batch.
        layers: names or patterns of the layers that are meant; None: all.
        filter_fn: tells which layers are meant; None: all.
        keep_first: leave the layer that runs first.
        processes: that share the work.
        memory_budget: bytes of activations that are kept.
        progress: draw progress bars.
    """

    model: nn.Module
    method: Method
    rates: Rates
    settings: Settings
    images: Images | None
    calibration: Calibration | None
    example_inputs: ExampleInputs | None
    layers: str | Iterable[str] | None
    filter_fn: FilterFunction | None
    keep_first: bool
    processes: Processes
    memory_budget: int
    progress: bool | None

    @property
    def budget(self) -> Budget | None:
        """The one budget of the whole model; None where layers have rates."""
        return self.rates if isinstance(self.rates, Budget) else None


@dataclass(frozen=True)
class Log:
    """What happens on the way, for the report.

    Attributes:
        notes: advice and exceptions.
        seconds: of each stage.
        reasons: why layers stay as they are although they could be replaced, by name.
    """

    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    reasons: dict[str, Reason] = field(default_factory=dict)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the seconds of the body to a stage's."""
        begin = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

    def open_layers(self, found: Survey) -> list[Layer]:
        """Returns the layers that may be replaced, as far as is known."""
        return [one for one in found.compressible if one.name not in self.reasons]


@dataclass(frozen=True)
class Measured:
    """What calibration has found.

    Attributes:
        norms: how the error of each layer is measured, by name.
        images: on how many images; None without data.
        order: of the layers' calls; None without images.
        outputs: of the original network; None without images, or where they cannot be compared.
        plan: for repeated forward calls on the images; None: each computes everything.
    """

    norms: Mapping[str, Norm]
    images: int | None = None
    order: CallOrder | None = None
    outputs: OriginalOutputs | None = None
    plan: Plan | None = None


@dataclass(frozen=True)
class Fits:
    """Layers that take the place of the original ones.

    Attributes:
        layers: by name.
        sequential: whether they were fitted one after the other.
    """

    layers: Mapping[str, Fitted]
    sequential: bool


@dataclass(frozen=True)
class Finished:
    """The smaller network, which is made only where it has been judged or timed.

    Attributes:
        model: the original; it has not been changed.
        swaps: what takes the place of which layer.
        small: the smaller network; None: not made yet.
        batch_norms: buffers that have been measured in it.
        change: of the network's outputs, relative to them; None where it is not known.
        latencies: seconds of one call, before and after; None unless the budget is of seconds.
    """

    model: nn.Module
    swaps: Mapping[nn.Module, nn.Module]
    small: nn.Module | None = None
    batch_norms: Statistics = field(default_factory=dict)
    change: float | None = None
    latencies: tuple[float, float] | None = None

    def result(self, *, inplace: bool) -> nn.Module:
        """Returns the smaller model: the original one, changed, if ``inplace``.

        If anything fails the original one is as it was.
        """
        if not inplace:
            if self.small is not None:
                return self.small
            return replace_layers(self.model, self.swaps, inplace=False)
        before = put_buffers(self.model, self.batch_norms)
        try:
            return replace_layers(self.model, self.swaps, inplace=True)
        except BaseException:
            put_buffers(self.model, before)
            raise


@dataclass(frozen=True)
class Outcome:
    """All that the stages have found."""

    found: Survey
    measured: Measured
    ranks: Ranks
    fits: Fits
    finished: Finished
    log: Log


def run(task: Task) -> Outcome:
    """Does all the work."""
    log = Log()
    found = look_at(task, log)
    if task.settings.init == "fit":
        for layer in log.open_layers(found):
            _check_finite(layer)
    costs = _costs(task, found)
    if task.budget is not None:
        ranks.check_budget(
            found, task.method, log.open_layers(found), task.budget, costs, log.reasons
        )
    measured = measure(task, found, log)
    with log.stage("ranks"):
        chosen = allocate(task, found, measured, costs, log)
    with log.stage("fit"):
        fits = fit(task, found, measured, chosen, log)
    finished = finish(task, found, measured, fits, costs, log)
    return Outcome(found, measured, chosen, fits, finished, log)


# ---------------------------------------------------------------------------------------- survey


def look_at(task: Task, log: Log) -> Survey:
    """Finds the layers, and those that the caller does not mean."""
    found = survey(
        task.model,
        task.method,
        init=task.settings.init,
        examples=_examples(task),
        all_called=task.images is not None,
    )
    log.reasons.update(
        left_out(
            found,
            rates=None if isinstance(task.rates, Budget) else task.rates,
            layers=task.layers,
            filter_fn=task.filter_fn,
            keep_first=task.keep_first,
        )
    )
    return found


def _examples(task: Task) -> list[tuple[Call, int]]:
    """Calls of the model, each with its number of images."""
    if task.example_inputs is not None:
        return [(call_with(task.example_inputs), 1)]
    return [] if task.images is None else task.images.calls()


def _check_finite(layer: Layer) -> None:
    weight: Any = layer.module.get_parameter("weight").detach()
    bad = weight.numel() - int(weight.isfinite().sum())
    if bad:
        raise ValueError(
            f"compress: weights to fit must be finite (got {bad} NaN or infinite of "
            f"{weight.numel()} in {layer.name or 'the model'!r})"
        )


def _costs(task: Task, found: Survey) -> Costs:
    unit = "parameters" if task.budget is None else task.budget.unit
    examples = _examples(task)
    call = examples[0][0] if examples else None
    return Costs(unit, found, task.model, call, task.processes)


# ----------------------------------------------------------------------------------- calibration


def measure(task: Task, found: Survey, log: Log) -> Measured:
    """Finds how errors are measured; layers that no data reach stay as they are."""
    names = [layer.name for layer in log.open_layers(found)]
    calibration, order = task.calibration, None
    if task.images is not None and names:
        with log.stage("calibration"):
            calibration, order = task.images.calibrate(names)
    outputs = None if task.images is None else _original_outputs(task, task.images, log)
    if calibration is None:
        return Measured({name: Norm() for name in names}, outputs=outputs)
    for name, why in calibration.missing.items():
        if name in names and why == Reason.NEVER_CALLED:
            log.reasons[name] = why
        elif name in names:
            log.notes.append(f"{name}: fitted in the norm of its weight ({why})")
    _note_few_patches(calibration, names, log)
    names = [layer.name for layer in log.open_layers(found)]
    sensitivities: Mapping[str, Tensor] = {}
    if outputs is not None:
        sensitivities = _sensitivities(task, [name for name in names if name in calibration], log)
    norms = {name: Norm(calibration.get(name), sensitivities.get(name)) for name in names}
    plan = None
    if task.images is not None:
        layers = [layer.name for layer in _in_order(log.open_layers(found), order)]
        plan = plan_replays(task.model, layers, task.images.sample.calls())
    return Measured(norms, calibration.images, order, outputs, plan)


def _original_outputs(task: Task, images: Images, log: Log) -> OriginalOutputs | None:
    try:
        with log.stage("calibration"):
            return OriginalOutputs(
                task.model,
                images.sample.first(JUDGED_IMAGES),
                task.processes,
                most_bytes=task.memory_budget,
            )
    except OutputsDifferError as error:
        log.notes.append(f"layers are fitted by their own outputs: {error}")
        return None


def _note_few_patches(calibration: Calibration, names: list[str], log: Log) -> None:
    few = {name: n for name, n in calibration.advised_images.items() if name in names}
    if few:
        worst = max(few, key=few.__getitem__)
        moments = calibration[worst]
        more = f", and {len(few) - 1} more saw few" if len(few) > 1 else ""
        log.notes.append(
            f"use at least {few[worst]:,} images (got {calibration.images:,}): "
            f"{f'layer {worst}' if worst else 'the model'} saw {moments.count:,} patches for "
            f"its {moments.inputs:,} inputs{more}"
        )


def _sensitivities(task: Task, names: list[str], log: Log) -> Mapping[str, Tensor]:
    settings = task.settings
    wanted = settings.weighted_fit or settings.weighted_allocation
    if task.images is None or not wanted or not names:
        return {}
    sample = task.images.sample
    sample = sample.first(images_to_look_at(sample))
    try:
        with log.stage("sensitivity"):
            return output_sensitivity(
                task.model, names, sample, task.processes, memory_budget=task.memory_budget
            )
    except GradientError as error:
        if task.processes.count > 1:
            raise
        log.notes.append(
            "errors of all outputs of a layer count alike, since the network's gradients cannot "
            f"be taken ({error})"
        )
        return {}


# ------------------------------------------------------------------------------------ allocation


def allocate(task: Task, found: Survey, measured: Measured, costs: Costs, log: Log) -> Ranks:
    """Chooses what every layer shall become."""
    layers = log.open_layers(found)
    chosen = _choose(task, layers, measured, costs, log)
    log.notes.extend(chosen.notes)
    for name, one in chosen.chosen.items():
        if one.method is None:
            log.reasons[name] = Reason.STAYS_DENSE
    return chosen


def _choose(task: Task, layers: list[Layer], measured: Measured, costs: Costs, log: Log) -> Ranks:
    if not isinstance(task.rates, Budget):
        return ranks.by_layer(task.method, layers, task.rates)
    if task.settings.allocation == "uniform":
        return ranks.uniform(task.method, layers, task.rates, costs)

    def by_error(meter: DamageMeter | None) -> Ranks:
        assert isinstance(task.rates, Budget)
        return ranks.by_error(
            task.method,
            _in_order(layers, measured.order),
            task.rates,
            costs,
            {name: _norm_of_fit(task, norm) for name, norm in measured.norms.items()},
            meter,
            progress=task.progress,
        )

    outputs = measured.outputs
    if outputs is None or not task.settings.weighted_allocation or not layers:
        return by_error(None)
    outputs = outputs.first(images_to_measure_on(outputs.sample, len(layers)))
    names = [layer.name for layer in _in_order(layers, measured.order)]
    try:
        return by_error(DamageMeter(task.model, names, outputs, measured.plan))
    except OutputsDifferError as error:
        log.notes.append(f"ranks were chosen by the errors of the layers' own outputs: {error}")
        return by_error(None)


def _in_order(layers: list[Layer], order: CallOrder | None) -> list[Layer]:
    """The layers in the order of their calls, as far as there is one."""
    if order is None:
        return layers
    try:
        place = {name: number for number, name in enumerate(order.sorted(x.name for x in layers))}
    except OrderError:
        return layers
    return sorted(layers, key=lambda layer: place.get(layer.name, len(place)))


def _norm_of_fit(task: Task, norm: Norm) -> Norm:
    return norm if task.settings.weighted_fit else Norm(norm.moments)


# --------------------------------------------------------------------------------------- fitting


def fit(task: Task, found: Survey, measured: Measured, chosen: Ranks, log: Log) -> Fits:
    """Makes the new layers; with sequential fits also those that stay dense, with other weights."""
    layers = {layer.name: layer for layer in log.open_layers(found) if layer.name in chosen.chosen}
    layers |= {
        layer.name: layer
        for layer in found.compressible
        if log.reasons.get(layer.name) == Reason.STAYS_DENSE
    }
    choices = {
        name: Choice(
            layer.module,
            chosen.chosen[name].method,
            chosen.chosen[name].rank,
            layer_seed(task.settings.seed, name),
        )
        for name, layer in layers.items()
    }
    sequence = _sequence(task, choices, measured, log)
    alone = {name: one for name, one in choices.items() if name not in sequence and one.method}
    fitted = _fit_each(task, alone, measured.norms)
    if sequence and task.images is not None:
        fitted |= _fit_in_sequence(task, task.images, sequence, fitted, measured, log)
    for name, one in fitted.items():
        one.module.train(layers[name].module.training)  # they ran in evaluation mode
    return Fits(
        {name: fitted[name] for name in layers if name in fitted},
        bool(sequence) or (task.settings.sequential and not choices),
    )


def _sequence(
    task: Task, choices: Mapping[str, Choice], measured: Measured, log: Log
) -> dict[str, Choice]:
    """The layers that can be fitted to the inputs that they will really get, in order."""
    order = measured.order
    if not task.settings.sequential or order is None:
        return {}
    names = [name for name in choices if measured.norms[name].moments is not None]
    varying = [name for name in names if len(order.calls(name)) > 1]
    if varying:
        log.notes.append(
            f"{', '.join(varying)}: fitted alone, since the number of calls depends on the batch"
        )
    try:
        ordered = order.sorted(name for name in names if order.calls(name) == {1})
        if not task.processes.agree(repr(ordered)):
            raise OrderError(
                "compress: all processes must go through the layers in the same order for "
                "sequential fitting; use sequential=False"
            )
    except OrderError as error:
        if task.settings.only_sequential or task.processes.count > 1:
            raise
        log.notes.append(f"layers were fitted each for itself: {error}")
        return {}
    return {name: choices[name] for name in ordered}


def _fit_each(
    task: Task, choices: Mapping[str, Choice], norms: Mapping[str, Norm]
) -> dict[str, Fitted]:
    fitted = {}
    with progress_bar("fitting", len(choices), unit="layer", show=task.progress) as bar:
        for name, choice in choices.items():
            with naming(name):
                fitted[name] = _fit_alone(task, name, choice, norms[name])
            bar(1)
    return fitted


def _fit_alone(task: Task, name: str, choice: Choice, norm: Norm) -> Fitted:
    device = choice.layer.get_parameter("weight").device
    with seeded(layer_seed(task.settings.seed, f"{name}:init"), device):
        return fit_alone(
            choice,
            _norm_of_fit(task, norm),
            init=task.settings.init,
            correct_bias=task.settings.correct_bias,
        )


def _fit_in_sequence(
    task: Task,
    images: Images,
    choices: Mapping[str, Choice],
    fitted: Mapping[str, Fitted],
    measured: Measured,
    log: Log,
) -> dict[str, Fitted]:
    sample, size = images_within(task.memory_budget, measured.plan, images.sample)
    if sample.images < images.sample.images:
        log.notes.append(
            f"{sample.images} of {images.sample.images} images took part in the sequential fit: "
            f"memory_budget={task.memory_budget}, {size} bytes an image"
        )
    norms = {name: _norm_of_fit(task, measured.norms[name]) for name in choices}
    with progress_bar("fitting", len(choices), unit="layer", show=task.progress) as bar:
        done = fit_one_after_the_other(
            task.model,
            choices,
            norms,
            sample,
            measured.plan,
            task.processes,
            fitted={name: one.module for name, one in fitted.items()},
            correct_bias=task.settings.correct_bias,
            advance=bar,
        )
    missed = {name: one for name, one in choices.items() if name not in done and one.method}
    if missed and task.settings.only_sequential:
        raise OrderError(
            "compress: the smaller network must run its layers as the original one does for "
            f"sequential fitting (got other inputs of {', '.join(map(repr, missed))}); use "
            "sequential=False"
        )
    if missed:
        log.notes.append(
            f"{', '.join(missed)}: fitted alone, since the images of the sequential fit do not "
            "reach it in the smaller network as in the original one"
        )
        done |= _fit_each(task, missed, measured.norms)
    return done


# ------------------------------------------------------------------------------------- finishing


def finish(
    task: Task, found: Survey, measured: Measured, fits: Fits, costs: Costs, log: Log
) -> Finished:
    """Puts the layers into a copy of the network; with images, refines and judges it."""
    modules = {layer.name: layer.module for layer in found.layers}
    swaps = {modules[name]: fitted.module for name, fitted in fits.layers.items()}
    small, statistics, change, latencies = None, Statistics(), None, None
    if task.images is not None:
        small = replace_layers(task.model, swaps, inplace=False)
        with evaluating(small):
            change, statistics = _finish(task, task.images, small, swaps, measured.outputs, log)
        put_buffers(small, statistics)
    if task.budget is not None and task.budget.unit == "seconds":
        if small is None:
            small = replace_layers(task.model, swaps, inplace=False)
        latencies = costs.latencies(task.model, small)
    return Finished(task.model, swaps, small, statistics, change, latencies)


def _finish(
    task: Task,
    images: Images,
    small: nn.Module,
    swaps: Mapping[nn.Module, nn.Module],
    outputs: OriginalOutputs | None,
    log: Log,
) -> tuple[float | None, Statistics]:
    change = _change(outputs, small, log)
    statistics = Statistics()
    if task.settings.reestimate_batch_norm:
        with log.stage("batch norm"):
            change, statistics = _reestimate(task, images, small, outputs, change, log)
    if task.settings.refinement is not None:
        with log.stage("refinement"):
            done = _refine(task, task.settings.refinement, images, small, swaps)
        log.notes.append(
            f"refined for {done.epochs} epochs: on held-out images the outputs change by "
            f"{done.after:.3f} instead of {done.before:.3f}"
        )
        change = _change(outputs, small, log)
    return change, statistics


def _refine(
    task: Task,
    settings: Refinement,
    images: Images,
    small: nn.Module,
    swaps: Mapping[nn.Module, nn.Module],
) -> Refined:
    try:
        return refine(
            evaluation_copy(task.model),
            small,
            list(swaps.values()),
            images.sample,
            settings,
            task.processes,
            seed=task.settings.seed,
            progress=task.progress,
        )
    except Exception as error:
        error.add_note(
            f"(compress: refine calls the model with {settings.batch_size} images at a time, "
            "whatever the loader does; Refinement(batch_size=...) changes that)"
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
    small: nn.Module,
    outputs: OriginalOutputs | None,
    before: float | None,
    log: Log,
) -> tuple[float | None, Statistics]:
    statistics = measured_batch_norms(small, images.sample, task.processes)
    previous = put_buffers(small, statistics)
    change = _change(outputs, small, log)
    auto = task.settings.reestimate_batch_norm == "auto"
    if auto and before is not None and change is not None and not change < before:
        put_buffers(small, previous)
        log.notes.append(
            "batch norms were left as they are: with new statistics the outputs would "
            f"change by {change:.3f} instead of {before:.3f}"
        )
        return before, Statistics()
    return change, statistics
