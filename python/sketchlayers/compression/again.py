"""Models with compressed layers: what they are compressed from when that is done again."""

from __future__ import annotations

import copy
import dataclasses

from torch import nn

from sketchlayers import methods
from sketchlayers.compression.stages.survey import look_at
from sketchlayers.compression.stages.task import Log, Task
from sketchlayers.compression.survey.layers import survey
from sketchlayers.methods import Method
from sketchlayers.surgery.forms import folded_layers
from sketchlayers.surgery.replace import replace_layers


def from_plain_layers(task: Task, original: nn.Module | None) -> Task:
    """Lets a task begin with plain layers where layers that it is about are compressed.

    They are those of ``original``, or else the folded ones. Compressed layers that the task is not
    about stay, and so they do where nothing is fitted.

    Raises:
        ValueError: ``original`` is another network.
    """
    given, compressed = task.model, _compressed(task.model)
    if original is None and (not compressed or task.settings.init != "fit"):
        return task
    if original is None:
        plain = replace_layers(given, folded_layers(given), inplace=False)
    else:
        _check_alike(given, original, task.method)
        plain = original
    images = None if task.images is None else task.images.of(plain)
    whole = dataclasses.replace(task, model=plain, images=images)
    log = Log()
    meant = {layer.name for layer in log.open_layers(look_at(whole, log))}
    if task.calibration is not None:  # that of the compressed network does not know them
        meant &= {*task.calibration, *task.calibration.missing}
    again = tuple(name for name in compressed if name in meant)
    stay = [name for name in compressed if name not in meant]
    if original is None and not again:
        return task
    if stay:
        swaps = {
            plain.get_submodule(name): copy.deepcopy(given.get_submodule(name)) for name in stay
        }
        plain = replace_layers(plain, swaps, inplace=False)
        images = None if images is None else images.of(plain)
    if original is not None:
        note = "the weights are those of original"
        note += f"; compressed as they were: {', '.join(stay)}" if stay else ""
    else:
        note = (
            f"{len(again)} layers were compressed already: they were folded, and sizes before are "
            "those of the plain layers; from the original network's weights (original=) the error "
            "is smaller"
        )
    return dataclasses.replace(
        task, model=plain, images=images, given=given, again=again, notes=(note,)
    )


def _compressed(model: nn.Module) -> dict[str, nn.Module]:
    kinds = methods.compressed_layers()
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def _check_alike(given: nn.Module, original: nn.Module, method: Method) -> None:
    """Raises unless both have weights of the same shapes at the same places."""
    shapes = [
        {layer.name: layer.shape for layer in survey(model, method, init="random").layers}
        for model in (given, original)
    ]
    for name in {**shapes[0], **shapes[1]}:
        here, there = (found.get(name, "nothing") for found in shapes)
        if here != there:
            raise ValueError(
                "compress: original must be the network that the model was made from (got "
                f"{there} in it and {here} in the model, for the weight of {name!r})"
            )
