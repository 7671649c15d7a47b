"""The second stage: how the errors of layers are measured on the images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from sketchlayers.compression.allocation.sensitivity import (
    GradientError,
    images_to_look_at,
    output_sensitivity,
)
from sketchlayers.compression.cache import (
    JSON,
    TENSORS,
    DamagedError,
    digest,
    hash_of,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from sketchlayers.compression.calibration.calibration import Calibration
from sketchlayers.compression.calibration.images import Images
from sketchlayers.compression.calibration.outputs import KeptOutputs, OriginalOutputs
from sketchlayers.compression.fitting.layer import (
    Norm,
)
from sketchlayers.compression.stages.task import Log, Task
from sketchlayers.compression.survey.layers import Layer, Survey
from sketchlayers.compression.survey.reasons import Reason
from sketchlayers.surgery.calls import CallOrder, OrderError
from sketchlayers.surgery.replay import Plan, plan_replays
from sketchlayers.surgery.sample import OutputsDifferError, Sample

JUDGED_IMAGES = 512
"""Images, or some more, on which the change of the network's outputs is measured."""


@dataclass(frozen=True)
class Measured:
    """What calibration has found.

    Attributes:
        norms: how the error of each layer is measured, by name.
        images: on how many images; None without data.
        order: of the layers' calls; None without images.
        outputs: of the original network; None without images, or where they cannot be compared.
        plan: for repeated forward calls on the images; None: each computes everything.
        image_bytes: of activations that such calls keep for an image.
    """

    norms: Mapping[str, Norm]
    images: int | None = None
    order: CallOrder | None = None
    outputs: OriginalOutputs | None = None
    plan: Plan | None = None
    image_bytes: int = 0


def measure(task: Task, found: Survey, log: Log) -> Measured:
    """Finds how errors are measured; layers that no data reach stay as they are."""
    names = [layer.name for layer in log.open_layers(found)]
    calibration, order = task.calibration, None
    known: list[list[Tensor]] = []
    if task.images is not None and names:
        with log.stage("calibration"):
            calibration, order, known = _calibrated(task, task.images, names, log)
    outputs = None if task.images is None else _original_outputs(task, task.images, known, log)
    if calibration is None:
        return Measured({name: Norm() for name in names}, outputs=outputs)
    for name, why in calibration.missing.items():
        if name in names and why == Reason.NEVER_CALLED:
            log.reasons[name] = why
        elif name in names:
            log.notes.append(f"{name}: fitted in the norm of its weight ({why})")
    for name in names:
        if order is not None and name not in calibration.missing and not order.calls(name):
            log.reasons[name] = Reason.NEVER_CALLED  # of kinds that have no moments
    _note_few_patches(calibration, names, log)
    names = [layer.name for layer in log.open_layers(found)]
    sensitivities: Mapping[str, Tensor] = {}
    if outputs is not None:
        sensitivities = _sensitivities(task, [name for name in names if name in calibration], log)
    norms = {name: Norm(calibration.get(name), sensitivities.get(name)) for name in names}
    plan, image_bytes = None, 0
    if task.images is not None:
        layers = [layer.name for layer in in_order(log.open_layers(found), order)]
        plan, image_bytes = _plan(task.model, layers, task.images.sample)
    return Measured(norms, calibration.images, order, outputs, plan, image_bytes)


def _plan(model: nn.Module, layers: list[str], sample: Sample) -> tuple[Plan | None, int]:
    """The plan, and the bytes that are kept for an image."""
    plan = plan_replays(model, layers, sample.calls())
    return plan, 0 if plan is None else -(-plan.most_bytes() // sample.first(1).images)


def _calibrated(
    task: Task, images: Images, names: list[str], log: Log
) -> tuple[Calibration, CallOrder, list[list[Tensor]]]:
    """Moments, the order of calls and the first outputs, by a pass over the images.

    The cache has the moments and the order alone.
    """
    cache, key = task.cache, task.cache.key("calibration", names)
    kept = cache.get("order", key, JSON, read_json)
    if kept is not None:
        sequences, checksum = kept
        read = partial(_read_calibration, checksum)
        calibration = cache.get("calibration", key, TENSORS, read)
        if calibration is not None:
            log.taken["calibration"] += 1
            order = CallOrder()
            order.sequences = dict.fromkeys(map(tuple, sequences))
            return calibration, order, []
    outputs = KeptOutputs(len(images.sample.first(JUDGED_IMAGES).batches), task.memory_budget)
    calibration, order = images.calibrate(names, outputs)
    if cache.in_use:
        found = [list(order.sequences), _checksum(calibration)]
        cache.put("calibration", key, TENSORS, calibration.save)
        cache.put("order", key, JSON, lambda path: write_json(path, found))
    return calibration, order, outputs.targets


def _read_calibration(checksum: str, path: Path) -> Calibration:
    calibration = Calibration.load(path)
    if _checksum(calibration) != checksum:
        raise DamagedError("its checksum is wrong")
    return calibration


def _checksum(calibration: Calibration) -> str:
    tensors = (x for one in calibration.values() for x in (one.second_moment, one.mean))
    return digest(*calibration, *map(hash_of, tensors))


def _original_outputs(
    task: Task, images: Images, known: list[list[Tensor]], log: Log
) -> OriginalOutputs | None:
    try:
        with log.stage("calibration"):
            return OriginalOutputs(
                task.model,
                images.sample.first(JUDGED_IMAGES),
                task.processes,
                most_bytes=task.memory_budget,
                known=known,
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
    key = task.cache.key("sensitivity", names)
    kept = task.cache.get("sensitivity", key, TENSORS, read_tensors)
    if kept is not None:
        log.taken["sensitivity"] += 1
        return kept[0]
    sample = task.images.sample
    sample = sample.first(images_to_look_at(sample.images))
    try:
        with log.stage("sensitivity"):
            found = output_sensitivity(
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
    if cut := [name for name in names if name not in found]:
        more = f" and {len(cut) - 3} more" if len(cut) > 3 else ""
        log.notes.append(
            f"errors of all outputs count alike in {', '.join(map(repr, cut[:3]))}{more}, since no "
            "gradient of the network's outputs gets there (as under no_grad, or in a reentrant "
            "checkpoint: use_reentrant=False lets gradients through)"
        )
    else:
        task.cache.put("sensitivity", key, TENSORS, lambda path: write_tensors(path, found))
    return found


def in_order(layers: list[Layer], order: CallOrder | None) -> list[Layer]:
    """Returns the layers in the order of their calls, as far as there is one."""
    if order is None:
        return layers
    try:
        place = {name: number for number, name in enumerate(order.sorted(x.name for x in layers))}
    except OrderError:
        return layers
    return sorted(layers, key=lambda layer: place.get(layer.name, len(place)))
