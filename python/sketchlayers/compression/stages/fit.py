"""The fifth stage: the layers that take the place of the original ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from sketchlayers._runtime.progress import progress_bar
from sketchlayers.compression.allocation.ranks import Ranks
from sketchlayers.compression.cache import TENSORS, read_tensors, write_tensors
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
from sketchlayers.compression.fitting.sequence import fit_one_after_the_other
from sketchlayers.compression.fitting.stored import Stored, restored, stored_form
from sketchlayers.compression.seeds import layer_seed
from sketchlayers.compression.stages.measure import Measured
from sketchlayers.compression.stages.survey import refused_layers
from sketchlayers.compression.stages.task import Log, Task
from sketchlayers.compression.survey.layers import Survey
from sketchlayers.compression.survey.reasons import Reason
from sketchlayers.nn._rounding import roundings, rows_of
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
            chosen.chosen[name].bits,
            task.settings.group_size,
        )
        for name, layer in layers.items()
    }
    bits = task.bits_of_refused
    refused = {
        layer.name: Choice(layer.module, None, None, 0, bits, task.settings.group_size)
        for layer in refused_layers(task, found, log)
    }
    choices |= refused
    sequence = _sequence(task, choices, measured, log)
    alone = {
        name: one
        for name, one in choices.items()
        if name not in sequence and (one.method or one.bits)
    }
    norms = {**measured.norms, **dict.fromkeys(refused, Norm())}
    fitted = _fit_each(task, alone, norms, log)
    if sequence and task.images is not None:
        fitted |= _fit_in_sequence(task, task.images, sequence, alone, fitted, measured, log)
    for name, one in fitted.items():
        one.module.train(choices[name].layer.training)  # they ran in evaluation mode
    _note_exceptions(choices, fitted, log)
    return Fits(
        {name: fitted[name] for name in choices if name in fitted},
        bool(sequence) or (task.settings.sequential and not choices),
    )


def _note_exceptions(choices: Mapping[str, Choice], fitted: Mapping[str, Fitted], log: Log) -> None:
    """Says which parameters were not rounded as asked for, and why."""
    floats, undivided = [], []
    for layer, one in fitted.items():
        if choices[layer].bits is None:
            continue
        size, known = choices[layer].group_size, dict(roundings(one.module))
        for name, parameter in one.module.named_parameters(layer):
            own = name.removeprefix(f"{layer}.")
            if own.rpartition(".")[2] == "bias":
                continue
            if own not in known:
                floats.append(name)
                continue
            inputs = parameter.numel() // rows_of(parameter.shape)
            if size is not None and inputs > size and inputs % size:
                undivided.append(f"{name} ({inputs})")
    if floats:
        log.notes.append(
            "not rounded, since few bits and their scales would be no fewer bytes: "
            f"{', '.join(floats)}"
        )
    if undivided:
        log.notes.append(
            "one scale for each output, since the group size does not divide the inputs: "
            f"{', '.join(undivided)}"
        )


def _sequence(
    task: Task, choices: Mapping[str, Choice], measured: Measured, log: Log
) -> dict[str, Choice]:
    """The layers that can be fitted to the inputs that they will really get, in order."""
    order = measured.order
    if not task.settings.sequential or order is None:
        return {}
    norms = measured.norms
    names = [name for name in choices if name in norms and norms[name].moments is not None]
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
    task: Task, choices: Mapping[str, Choice], norms: Mapping[str, Norm], log: Log
) -> dict[str, Fitted]:
    fitted = {}
    with progress_bar("fitting", len(choices), unit="layer", show=task.progress) as bar:
        for name, choice in choices.items():
            key = _key(task, "alone", name, choice)
            one = _known(task, key, choice, log)
            if one is None:
                with naming(name):
                    one = _fit_alone(task, name, choice, norms[name])
                _keep(task, key, one)
            fitted[name] = one
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
    choices: dict[str, Choice],
    alone: dict[str, Choice],
    fitted: Mapping[str, Fitted],
    measured: Measured,
    log: Log,
) -> dict[str, Fitted]:
    size = 2 * measured.image_bytes  # in both networks
    sample = images.sample.at_most(task.memory_budget // max(1, size))
    if sample.images < images.sample.images:
        log.notes.append(
            f"{sample.images} of {images.sample.images} images took part in the sequential fit: "
            f"memory_budget={task.memory_budget}, {size} bytes an image"
        )
    norms = {name: task.norm_of_fit(measured.norms[name]) for name in choices}
    keys, key = {}, task.cache.key("sequence", sample.images)
    for name, choice in (alone | choices).items():  # the inputs depend on all layers before
        keys[name] = key = _key(task, key, name, choice)

    before = {name: _known(task, keys[name], choice, log) for name, choice in choices.items()}
    left = {name: choice for name, choice in choices.items() if before[name] is None}

    def keep(name: str, one: Fitted) -> None:
        _keep(task, keys[name], one)

    steps = len(left) + len(choices)
    with progress_bar("fitting", steps, unit="layer", show=task.progress) as bar:
        starts = _fit_ahead(task, left, norms, log, bar)
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
            known=before,
            keep=keep,
            advance=bar,
        )
    missed = {
        name: one for name, one in choices.items() if name not in done and (one.method or one.bits)
    }
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
        done |= _fit_each(task, missed, measured.norms, log)
    return done


def _fit_ahead(
    task: Task,
    choices: Mapping[str, Choice],
    norms: Mapping[str, Norm],
    log: Log,
    advance: Callable[[int], None],
) -> dict[str, nn.Module]:
    """What the fits of small layers go on from in the sequence."""
    choices = {name: replace(choice, bits=None) for name, choice in choices.items()}
    keys = {name: _key(task, "ahead", name, choice) for name, choice in choices.items()}
    before = {
        name: one.module
        for name, choice in choices.items()
        if (one := _known(task, keys[name], choice, log)) is not None
    }

    def keep(name: str, module: nn.Module) -> None:
        _keep(task, keys[name], Fitted(module, None))
        advance(1)

    left = {name: choice for name, choice in choices.items() if name not in before}
    correct_bias = task.settings.correct_bias
    fitted = fit_in_parallel(left, norms, correct_bias=correct_bias, keep=keep)
    advance(len(choices) - len(fitted))
    return before | fitted


def _key(task: Task, before: str, name: str, choice: Choice) -> str:
    """Of the fit of a layer after others."""
    settings = task.settings
    how = (settings.init, settings.correct_bias, settings.weighted_fit)
    rounding = choice.bits, choice.group_size
    return task.cache.key(before, name, choice.method, choice.rank, choice.seed, how, rounding)


def _known(task: Task, key: str, choice: Choice, log: Log) -> Fitted | None:
    """The layer as it was fitted before; None if it was not."""

    def read(path: Path) -> Fitted:
        tensors, errors = read_tensors(path)
        return restored(Stored(tensors, tuple(errors)), choice)

    if key in task.cache.memory:
        return restored(task.cache.memory[key], choice)
    one = task.cache.get("fit", key, TENSORS, read)
    if one is not None:
        log.taken["fits"] += 1
    return one


def _keep(task: Task, key: str, one: Fitted) -> None:
    cache = task.cache
    if cache.in_use and task.settings.init == "fit":
        stored = stored_form(one)
        cache.remember(key, stored)
        cache.put("fit", key, TENSORS, lambda path: write_tensors(path, *stored))
