"""Fits of many small layers at once, each on a thread of its own, for others to go on from.

Layers that are fitted one after the other wait for each other, and the fit of a small one does not
keep more than one core busy. Fitted alone before, all at once, what is left to do in sequence is
little: the inputs there are nearly the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from sketchlayers._runtime.threads import in_parallel
from sketchlayers.compression.fitting.layer import Choice, Norm, approximate, naming
from sketchlayers.compression.fitting.target import Target
from sketchlayers.decompose._separable import SMALL_PATCH


def fit_in_parallel(
    choices: Mapping[str, Choice],
    norms: Mapping[str, Norm],
    *,
    correct_bias: bool,
    keep: Callable[[str, nn.Module], None],
) -> dict[str, nn.Module]:
    """Fits those layers alone whose fits take many steps and are small, on a CPU.

    Args:
        choices: by name.
        norms: of the layers, by name.
        correct_bias: as for `approximate`.
        keep: told of every layer that is fitted, in any thread.

    Returns:
        Their replacements.

    Raises:
        ValueError: a layer cannot be fitted.
    """
    fitted: dict[str, nn.Module] = {}

    def fit(name: str) -> None:
        choice, norm = choices[name], norms[name]
        assert norm.moments is not None
        target = Target.of_weight(choice.layer, norm.moments)
        with naming(name):
            fitted[name] = approximate(choice, target, norm.sensitivity, correct_bias=correct_bias)
        keep(name, fitted[name])

    sizes = {name: _size(choices[name], norms[name]) for name in choices}
    names = sorted((name for name in choices if sizes[name]), key=lambda name: -sizes[name])
    in_parallel([partial(fit, name) for name in names])  # no thread waits for the largest
    return fitted


def _size(choice: Choice, norm: Norm) -> int:
    """How long the fit takes, about; 0 if it is none to make here."""
    if choice.method is None or norm.moments is None or not choice.method.iterates(choice.layer):
        return 0
    weight = choice.layer.get_parameter("weight")
    is_small = weight.is_cpu and norm.moments.inputs <= SMALL_PATCH
    return weight.numel() if is_small else 0
