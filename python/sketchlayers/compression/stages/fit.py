"""The fifth stage: the layers that take the place of the original ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sketchlayers._runtime.progress import progress_bar
from sketchlayers.compression.allocation.ranks import Ranks
from sketchlayers.compression.calibration.images import Images
from sketchlayers.compression.fitting.layer import (
    Choice,
    Fitted,
    Norm,
    fit_alone,
    naming,
    seeded,
)
from sketchlayers.compression.fitting.parallel import fit_in_parallel
from sketchlayers.compression.fitting.sequence import fit_one_after_the_other, images_within
from sketchlayers.compression.seeds import layer_seed
from sketchlayers.compression.stages.measure import Measured
from sketchlayers.compression.stages.task import Log, Task
from sketchlayers.compression.survey.layers import Survey
from sketchlayers.compression.survey.reasons import Reason
from sketchlayers.surgery.calls import OrderError


@dataclass(frozen=True)
class Fits:
    """Layers that take the place of the original ones.

    Attributes:
        layers: by name.
        sequential: whether they were fitted one after the other.
    """

    layers: Mapping[str, Fitted]
    sequential: bool


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
            task.norm_of_fit(norm),
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
    norms = {name: task.norm_of_fit(measured.norms[name]) for name in choices}
    starts = fit_in_parallel(choices, norms, correct_bias=task.settings.correct_bias)
    with progress_bar("fitting", len(choices), unit="layer", show=task.progress) as bar:
        done = fit_one_after_the_other(
            task.model,
            choices,
            norms,
            sample,
            measured.plan,
            task.processes,
            fitted={name: one.module for name, one in fitted.items()},
            starts=starts,
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
