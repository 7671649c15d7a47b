"""How long the stages will take, about: before they begin, from the sizes of the layers."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Sequence

import torch

from sketchlayers.compression.allocation.damage import SQUARED_ERRORS, images_to_measure_on
from sketchlayers.compression.allocation.sensitivity import PROJECTIONS, images_to_look_at
from sketchlayers.compression.calibration.calibrate import ENOUGH_IMAGES, ENOUGH_PATCHES
from sketchlayers.compression.survey.layers import Layer
from sketchlayers.methods import Method
from sketchlayers.methods._work import Work

_SPEED = 0.6
"""Of a large matrix product, that all others reach on average."""
_MOMENTS = 0.35
"""Of the operations of products of all patches, that are computed (`PatchProducts`)."""


def expected_seconds(
    method: Method,
    layers: Sequence[Layer],
    *,
    images: int | None,
    seconds_an_image: float,
    calibrated: bool = False,
) -> dict[str, float]:
    """Returns the seconds of the stages that take long, by name, in their order.

    Args:
        method: by which layers are replaced, and fitted.
        layers: those that may be replaced.
        images: how many there are to calibrate on; None: none.
        seconds_an_image: of a forward call of the model, perhaps the first, which takes longer.
        calibrated: whether there are moments without images.
    """
    if not layers:
        return {}
    speed = _SPEED * _flops_per_second(torch.get_num_threads())
    fits = sum(_largest_fit(method, layer).seconds(speed) for layer in layers)
    if images is None and not calibrated:
        return {"fit": fits}
    curves = sum(_curve(method, layer).seconds(speed) for layer in layers)
    if images is None:
        return {"ranks": curves, "fit": fits}
    seconds_an_image = _warm(seconds_an_image, layers, speed)
    moments = sum(_moment_flops(layer, images) for layer in layers) / speed
    forward = seconds_an_image * images
    damage = len(layers) * len(SQUARED_ERRORS) * images_to_measure_on(images, len(layers)) / 2
    share = min(1.0, ENOUGH_IMAGES / max(1, images))
    return {
        "calibration": 2 * forward + moments,
        "sensitivity": seconds_an_image * images_to_look_at(images) * (1 + 2 * PROJECTIONS),
        "ranks": curves + seconds_an_image * damage,
        "fit": fits + 3 * share * forward + 2 * moments,
    }


def _warm(first: float, layers: Sequence[Layer], speed: float) -> float:
    """Seconds of later calls: between those of the first and those of the operations alone."""
    operations = 2 * sum(layer.multiply_adds or 0 for layer in layers) / speed
    return math.sqrt(first * operations) if 0 < operations < first else first


def _curve(method: Method, layer: Layer) -> Work:
    works = [member.curve_work(layer.module) for member in method.members(layer.module)]
    return functools.reduce(Work.plus, works, Work())


def _largest_fit(method: Method, layer: Layer) -> Work:
    works = [member.fit_work(layer.module) for member in method.members(layer.module)]
    return max(works, key=lambda work: work.seconds(1e11), default=Work())


def _moment_flops(layer: Layer, images: int) -> float:
    """Of the second moment of as many patches as are taken from the images."""
    if not layer.multiply_adds or len(layer.shape) < 2:
        return 0.0
    outputs, *inputs = layer.shape
    patch = functools.reduce(int.__mul__, inputs, 1)
    patches = layer.multiply_adds / (outputs * patch)  # of an image
    taken = min(images * patches, max(ENOUGH_IMAGES * patches, ENOUGH_PATCHES * patch))
    return 2 * _MOMENTS * taken * patch**2


@functools.lru_cache(maxsize=1)
def _flops_per_second(threads: int) -> float:
    """Of a product of two matrices in float32, measured once for a number of threads."""
    matrix = torch.ones(1024, 1024)
    seconds = []
    for _ in range(5):
        begin = time.perf_counter()
        torch.mm(matrix, matrix)
        seconds.append(time.perf_counter() - begin)
    return 2 * 1024**3 / max(1e-6, min(seconds))
