"""Ways to compress a trained network without training, each a step beyond the one before."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from options import assignment
from sketchlayers import compress
from sketchlayers.compression import Refinement


@dataclass(frozen=True)
class Variant:
    """A name, and the arguments of `sketchlayers.compress` that make the difference.

    Attributes:
        name: as in tables.
        images: whether calibration images are given.
        options: arguments besides method, rate, calibration and seed.
    """

    name: str
    images: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "options", MappingProxyType(dict(self.options)))

    @property
    def description(self) -> str:
        """The options as text, so that results of other options are not taken for these."""
        return " ".join(f"{name}={value!r}" for name, value in sorted(self.options.items()))

    def but(self, name: str, **options: Any) -> Variant:
        """The same with other options."""
        return Variant(name, self.images, {**self.options, **options})


_FROBENIUS = Variant("frobenius", images=False, options={"allocation": "uniform"})
_DATA = Variant(
    "data", options={"allocation": "uniform", "sequential": False, "sensitivity": False}
)
_ALLOCATION = _DATA.but("allocation", allocation="error")
_SEQUENTIAL = _ALLOCATION.but("sequential", sequential=True)
_SENSITIVITY = _SEQUENTIAL.but("sensitivity", sensitivity=True)
_REFINED = _SENSITIVITY.but("refined", refine=True)

STEPS = (_FROBENIUS, _DATA, _ALLOCATION, _SEQUENTIAL, _SENSITIVITY, _REFINED)
"""Each has what the one before it has, and one thing more."""

EXTRAS = (
    _FROBENIUS.but("frobenius, allocation", allocation="error"),
    _SENSITIVITY.but("without allocation", allocation="uniform"),
    _SENSITIVITY.but("without sequential", sequential=False),
    _SENSITIVITY.but("sensitivity in fit", sensitivity="fit"),
    _SENSITIVITY.but("sensitivity in allocation", sensitivity="allocation"),
    _SENSITIVITY.but("without bias", correct_bias=False),
    _SENSITIVITY.but("batch norm", reestimate_batch_norm=True),
    _SENSITIVITY.but("batch norm if better", reestimate_batch_norm="auto"),
    _REFINED.but("batch norm if better, refined", reestimate_batch_norm="auto"),
    _REFINED.but("refined without sensitivity", sensitivity=False),
    _REFINED.but("refined without both", sensitivity=False, sequential=False),
)
"""Single things taken away from the last two steps, or added."""

GROUPS = {"steps": STEPS, "extras": EXTRAS, "all": STEPS + EXTRAS}


def chosen(names: Sequence[str], own: Sequence[Sequence[str]] = ()) -> list[Variant]:
    """The variants of groups and names, and those that `parsed` reads.

    Raises:
        ValueError: if there is no variant of a name.
    """
    known = {variant.name: variant for variant in GROUPS["all"]}
    found: list[Variant] = []
    for name in names:
        if name not in GROUPS and name not in known:
            raise ValueError(
                f"--variants: must be {', '.join(GROUPS)} or one of "
                f"{', '.join(map(repr, known))} (got {name!r})"
            )
        found += GROUPS.get(name) or (known[name],)
    found += map(parsed, own)
    return list({variant.name: variant for variant in found}.values())


def parsed(words: Sequence[str]) -> Variant:
    """A variant from ``[NAME, OPTION=VALUE, ...]``: all steps but the last, with these options.

    Values are Python's; ``refine.epochs=8`` sets an attribute of the `Refinement`.

    Raises:
        ValueError: if an option is no ``OPTION=VALUE``.
    """
    name, *settings = words
    try:
        options: dict[str, Any] = dict(map(assignment, settings))
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"--variant: {error}") from None
    refinement = {
        key.removeprefix("refine."): options.pop(key)
        for key in list(options)
        if key.startswith("refine.")
    }
    if refinement:
        options["refine"] = Refinement(**refinement)
    return _SENSITIVITY.but(name, **options)


def quietly_compressed(*arguments: Any, **options: Any) -> Any:
    """What `compress` gives; that a network's outputs change much is in its row, as a number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return compress(*arguments, **options)
