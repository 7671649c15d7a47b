"""Layers one after the other, each fitted from the inputs that it will really get.

Of a limited rank the best weight is the one nearest to the best of all (`target`) in the norm of
``E[x~ x~^T]``: errors add up at right angles. Layers that stay dense take the best of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from sketchlayers._runtime.processes import Processes
from sketchlayers.compression.calibration.calibrate import ENOUGH_IMAGES, ENOUGH_PATCHES
from sketchlayers.compression.calibration.moments import LayerMoments, NonFiniteError
from sketchlayers.compression.fitting.layer import Choice, Fitted, Norm, approximate, folded, naming
from sketchlayers.compression.fitting.target import Target, TargetSums
from sketchlayers.surgery.replay import Plan, Replays
from sketchlayers.surgery.sample import Sample


def fit_one_after_the_other(
    model: nn.Module,
    choices: Mapping[str, Choice],
    norms: Mapping[str, Norm],
    sample: Sample,
    plan: Plan | None,
    processes: Processes,
    *,
    fitted: Mapping[str, nn.Module],
    starts: Mapping[str, nn.Module],
    correct_bias: bool,
    known: Mapping[str, Fitted | None],
    keep: Callable[[str, Fitted], None],
    advance: Callable[[int], None],
) -> dict[str, Fitted]:
    """Fits layers in the order in which the model runs them.

    Args:
        model: the original; it does not change.
        choices: by name, in that order; layers that a call of the model reaches at most once.
        norms: of the layers, by name: moments in the original network, and what errors of outputs
            count.
        sample: the images.
        plan: of forward calls of the model, by batches of the sample.
        processes: whose images are summed up.
        fitted: layers that have been replaced already.
        starts: replacements of some layers, fitted alone, from which their fits go on.
        correct_bias: the bias takes up the change of the mean.
        known: what has been fitted before, of the same inputs.
        keep: told of every layer that is fitted.
        advance: told of every layer.

    Returns:
        The fitted layers. Those are missing that were not reached, or that the smaller network
        gives inputs of other shapes than the original one.

    Raises:
        ValueError: a layer's input or output is not finite.
    """
    done: dict[str, Fitted] = {}
    calls = sample.calls()
    originals, actual = (Replays(model, list(choices), calls, plan) for _ in range(2))
    for name, layer in fitted.items():
        actual.replace(name, folded(layer))
    for name, choice in choices.items():
        norm = norms[name]
        if (before := known.get(name)) is not None:
            done[name] = before
            actual.replace(name, folded(before.module))
            advance(1)
            continue
        if done or fitted or norm.moments is None:
            step = processes.least(1 if norm.moments is None else _step(norm.moments, sample))
            target = _target(name, choice.layer, originals, actual, processes, step)
            if target is None and step > 1:  # other batches may reach it
                target = _target(name, choice.layer, originals, actual, processes, 1)
        else:  # its inputs are those that it has in the original network
            target = Target.of_weight(choice.layer, norm.moments)
        if target is not None:
            with naming(name):
                module = approximate(
                    choice,
                    target,
                    norm.sensitivity,
                    correct_bias=correct_bias,
                    start=starts.get(name),
                )
            done[name] = Fitted(module, target.relative_error(choice.layer, module))
            keep(name, done[name])
            actual.replace(name, folded(module))
        advance(1)
    return done


def _step(moments: LayerMoments, sample: Sample) -> int:
    """How many batches to go on by; some, spread over the sample, have images enough."""
    images = max(1, sample.images)
    share = max(ENOUGH_IMAGES / images, ENOUGH_PATCHES * moments.inputs / max(1, moments.count))
    return max(1, min(int(1 / share), len(sample.batches)))


def _target(
    name: str,
    layer: nn.Module,
    originals: Replays,
    actual: Replays,
    processes: Processes,
    step: int,
) -> Target | None:
    """Moments of what a layer shall return and gets; None without pairs of these."""
    sums = TargetSums(layer)
    alike = True
    pairs = zip(originals.inputs(name, step), actual.inputs(name, step), strict=True)
    try:
        for before, now in pairs:
            if before is None and now is None:
                continue
            if before is None or now is None or before.shape != now.shape:
                alike = False
                break
            sums.add(before, now)
        return sums.take(processes) if processes.least(alike) else None
    except NonFiniteError as error:
        raise ValueError(
            f"compress: inputs of {name!r} must be finite in the smaller network "
            f"(got {error.found})"
        ) from error
