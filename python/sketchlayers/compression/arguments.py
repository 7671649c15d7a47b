"""Checks of the arguments of `compress`, done before any work."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Literal, get_args

import torch

from sketchlayers.compression.allocation.costs import Budget, Unit
from sketchlayers.compression.finishing.refine import Refinement
from sketchlayers.methods._method import Init, Method
from sketchlayers.nn._checks import percent_hint, whole_number
from sketchlayers.nn._rounding import FEWEST_BITS, MOST_BITS

BudgetName = Literal["rate", "flops_rate", "latency_rate", "bytes_rate"]
Allocation = Literal["uniform", "error"]
Sensitivity = bool | Literal["fit", "allocation"]

Rates = Budget | dict[str, float]
"""One budget for the whole model, or a rate for each name or pattern of a layer."""

_MEANINGS = {
    "rate": "it is the fraction of the parameters that is kept",
    "flops_rate": "it is the fraction of the multiply-adds that is kept",
    "latency_rate": "it is the fraction of the time that is kept",
    "bytes_rate": "it is the fraction of the bytes of a file that is kept",
}
_UNITS: dict[str, Unit] = {
    "rate": "parameters",
    "flops_rate": "multiply-adds",
    "latency_rate": "seconds",
    "bytes_rate": "bytes",
}
_WORDS = {
    "flops_rate": ("flop", "mac", "multiply"),
    "latency_rate": ("latency", "speed"),
    "rate": ("ratio", "sparsity", "density", "amount", "budget", "percent", "compression", "prun"),
    "calibration": ("calib", "data", "image", "loader", "sample"),
}
"""Words in the names of the arguments that do the same in other packages."""


@dataclass(frozen=True)
class Settings:
    """How to fit; all decided.

    Attributes:
        init: "fit" or "random".
        allocation: how a budget becomes ranks.
        sequential: fit layers one after the other.
        only_sequential: where that cannot be done, fail.
        sensitivity: whether errors of outputs are weighted in the fits, and in the allocation.
        correct_bias: biases take up the change of the mean.
        reestimate: batch norm: False, True, or "auto".
        refinement: None for none.
        seed: what the layers' seeds are derived from.
        bits: that layers' numbers are rounded to; None: as the budget says.
        group_size: inputs that share a scale; None: all of an output.
    """

    init: Init
    allocation: Allocation
    sequential: bool
    only_sequential: bool
    weighted_fit: bool
    weighted_allocation: bool
    correct_bias: bool
    reestimate_batch_norm: bool | Literal["auto"]
    refinement: Refinement | None
    seed: int
    bits: int | None = None
    group_size: int | None = None


def settings(
    *,
    init: str,
    data: Literal["none", "moments", "images"],
    per_layer: bool,
    allocation: str | None,
    sequential: bool | None,
    sensitivity: bool | str | None,
    correct_bias: bool,
    reestimate_batch_norm: bool | str,
    refine: bool | Refinement | None,
    seed: int | None,
    bits: int | None,
    group_size: int | None,
    unit: Unit,
) -> Settings:
    """Checks the settings and fills in defaults, which depend on the data.

    Args:
        data: what `calibration` is: nothing, finished moments, or images.
        per_layer: whether the caller gives every layer its rate.
        init, allocation, sequential, sensitivity, correct_bias: as for `compress`.
        reestimate_batch_norm, refine, seed, bits, group_size: as for `compress`.
        unit: what budgets count.

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument out of its range, or one that needs data that there are not.
    """
    _one_of("init", init, get_args(Init))
    _one_of("allocation", allocation, (None, *get_args(Allocation)))
    _one_of("sensitivity", sensitivity, (None, True, False, "fit", "allocation"))
    _one_of("reestimate_batch_norm", reestimate_batch_norm, (True, False, "auto"))
    for name, flag in (("sequential", sequential), ("correct_bias", correct_bias)):
        if flag is not None and not isinstance(flag, bool):
            raise TypeError(f"compress: {name} must be True or False (got {flag!r})")
    images = data == "images"
    if init == "random" and data != "none":
        raise ValueError(
            "compress: init must be 'fit' with calibration (got 'random'): a random start has "
            "no use for it"
        )
    if init == "random" and allocation == "error":
        raise ValueError("compress: allocation must be 'uniform' with init='random' (got 'error')")
    if per_layer and allocation is not None:
        raise ValueError(
            f"compress: allocation must be None where rate names layers (got {allocation!r})"
        )
    for name, value in (
        ("sequential", sequential),
        ("sensitivity", sensitivity),
        ("reestimate_batch_norm", reestimate_batch_norm),
        ("refine", refine),
    ):
        if value and not images:
            what = "a file of moments has none" if data == "moments" else "got calibration=None"
            raise ValueError(f"compress: {name} needs images: give calibration a loader ({what})")
    if refine is None or isinstance(refine, bool):
        refinement = Refinement() if refine else None
    elif isinstance(refine, Refinement):
        refinement = refine
    else:
        raise TypeError(
            f"compress: refine must be a bool or a Refinement (got {type(refine).__name__})"
        )
    bits = _checked_bits(bits)
    rounds = bits is not None or unit == "bytes"
    if group_size is not None:
        whole_number("compress", "group_size", group_size)
        if not rounds:
            raise ValueError(
                f"compress: group_size goes with bits or bytes_rate (got {group_size} without)"
            )
    for name, value in (("refine", refinement), ("init='random'", init == "random")):
        if rounds and value:
            raise ValueError(
                f"compress: {name} must be left out with bits or bytes_rate: training moves the "
                "numbers away from what few bits hold"
            )
    weighted = images if sensitivity is None else sensitivity
    default = "uniform" if data == "none" and unit != "bytes" else "error"
    if unit == "bytes" and allocation == "uniform":
        raise ValueError(
            "compress: allocation must be 'error' with bytes_rate (got 'uniform'): bits are chosen "
            "by the errors that they make"
        )
    return Settings(
        init=init,  # type: ignore[arg-type]
        allocation=default if allocation is None else allocation,  # type: ignore[arg-type]
        sequential=images if sequential is None else sequential,
        only_sequential=sequential is True,
        weighted_fit=weighted in (True, "fit"),
        weighted_allocation=weighted in (True, "allocation"),
        correct_bias=correct_bias,
        reestimate_batch_norm=reestimate_batch_norm,  # type: ignore[arg-type]
        refinement=refinement,
        seed=_checked_seed(seed),
        bits=bits,
        group_size=group_size,
    )


def _checked_bits(bits: int | None) -> int | None:
    if bits is None:
        return None
    return whole_number("compress", "bits", bits, FEWEST_BITS, MOST_BITS)


@dataclass(frozen=True)
class Goal:
    """How small models shall be.

    Attributes:
        unit: what is counted.
        budgets: of the whole model; none where layers have rates of their own, or in a search.
        layer_rates: by name or pattern; None: none.
        max_drop: of what the caller measures; None: sizes are given.
    """

    unit: Unit
    budgets: tuple[Budget, ...] = ()
    layer_rates: Mapping[str, float] | None = None
    max_drop: float | None = None


def checked_goal(
    *,
    rate: float | Mapping[str, float] | None,
    flops_rate: float | None,
    latency_rate: float | None,
    bytes_rate: float | None,
    max_drop: float | None,
    budget: str,
    evaluate: object,
    with_data: bool,
) -> Goal:
    """Returns how small `compress` shall make a model.

    Raises:
        TypeError: nothing says so, or something of another type does.
        ValueError: several do, or one is out of its range, or lacks what it needs.
    """
    _check_evaluate(evaluate)
    _one_of("budget", budget, tuple(_UNITS))
    if max_drop is None:
        if budget != "rate":
            raise ValueError(
                f"compress: budget goes with max_drop (got budget={budget!r} without); a rate is "
                f"given as {budget}=..."
            )
        rates = checked_rates(rate, flops_rate, latency_rate, bytes_rate)
        if isinstance(rates, Budget):
            return Goal(rates.unit, (rates,))
        return Goal("parameters", layer_rates=rates)
    given = {
        "rate": rate,
        "flops_rate": flops_rate,
        "latency_rate": latency_rate,
        "bytes_rate": bytes_rate,
    }
    if others := [name for name, value in given.items() if value is not None]:
        raise ValueError(
            f"compress: max_drop must be given without {others[0]}: it finds the rate itself "
            f"(got both); to look at given rates use sketchlayers.sweep"
        )
    if isinstance(max_drop, bool) or not isinstance(max_drop, Real):
        raise TypeError(f"compress: max_drop must be a number (got {type(max_drop).__name__})")
    if not 0 <= float(max_drop) < math.inf:
        raise ValueError(f"compress: max_drop must be at least 0 (got {max_drop})")
    if evaluate is None:
        raise TypeError(
            "compress: max_drop needs evaluate, a function that says how good a network is, such "
            "as evaluate=lambda model: accuracy on images with labels (got evaluate=None)"
        )
    if not with_data:
        raise ValueError(
            "compress: max_drop needs calibration, images that layers are fitted to (got "
            "calibration=None)"
        )
    return Goal(_UNITS[budget], max_drop=float(max_drop))


def checked_sweep(rates: Iterable[float], *, budget: str, evaluate: object) -> Goal:
    """Returns what sizes a sweep shall have.

    Raises:
        TypeError: the rates are no numbers.
        ValueError: there is none, or one is out of its range.
    """
    _check_evaluate(evaluate)
    _one_of("budget", budget, tuple(_UNITS))
    if isinstance(rates, str | Mapping) or not isinstance(rates, Iterable):
        hint = "; the method is given as method=..." if isinstance(rates, str) else ""
        raise TypeError(
            "sweep: rates must be numbers, such as (0.7, 0.5, 0.3) "
            f"(got {type(rates).__name__}{hint})"
        )
    values = dict.fromkeys(_in_range(budget, rate, "") for rate in rates)
    if not values:
        raise ValueError("sweep: rates must be given (got none)")
    unit = _UNITS[budget]
    return Goal(unit, tuple(Budget(unit, rate) for rate in values))


def _check_evaluate(evaluate: object) -> None:
    if evaluate is not None and not callable(evaluate):
        raise TypeError(
            "compress: evaluate must be a function, evaluate(model) "
            f"(got {type(evaluate).__name__})"
        )


def checked_rates(
    rate: float | Mapping[str, float] | None,
    flops_rate: float | None,
    latency_rate: float | None,
    bytes_rate: float | None = None,
) -> Rates:
    """Returns the one budget that was given, or the layers' own rates.

    Raises:
        TypeError: none, or one of another type.
        ValueError: several, or one out of its range.
    """
    given = {
        name: value
        for name, value in (
            ("rate", rate),
            ("flops_rate", flops_rate),
            ("latency_rate", latency_rate),
            ("bytes_rate", bytes_rate),
        )
        if value is not None
    }
    if not given:
        raise TypeError(
            f"compress: rate must be given, such as rate=0.5: {_MEANINGS['rate']}; or a dict "
            "{name or pattern of layers: rate}; or max_drop, for the smallest network that is "
            "good enough"
        )
    if len(given) > 1:
        raise ValueError(
            "compress: one of rate, flops_rate, latency_rate and bytes_rate must be given "
            f"(got {' and '.join(given)})"
        )
    if isinstance(rate, Mapping):
        if not rate:
            raise ValueError("compress: rate must name a layer or pattern (got an empty dict)")
        return {
            pattern: _in_range("rate", value, f" for {pattern!r}")
            for pattern, value in rate.items()
        }
    ((name, value),) = given.items()
    return Budget(_UNITS[name], _in_range(name, value, ""))


def check_names(options: Iterable[str], method: type[Method], arguments: Iterable[str]) -> None:
    """Says what is probably meant by keyword arguments that nobody knows.

    Args:
        options: names of the keyword arguments that are not arguments of `compress`.
        method: the method whose options they should be.
        arguments: names of the arguments of `compress`.

    Raises:
        TypeError: a name is close to that of an argument, or is what other packages call one.
    """
    own = [field.name for field in dataclasses.fields(method)]
    for option in options:
        close = difflib.get_close_matches(option, [*own, *arguments], n=1, cutoff=0.8)
        if option in own or (close and close[0] in own):
            continue
        hint = f"did you mean {close[0]}?" if close else _meant(option)
        if hint is not None:
            raise TypeError(f"compress: there is no argument {option!r}: {hint}")


def _meant(option: str) -> str | None:
    """Which argument of `compress` does what one of this name does in other packages."""
    for argument, words in _WORDS.items():
        if any(word in option.lower() for word in words):
            if argument == "calibration":
                return "give batches of images to calibration; labels are not needed"
            return f"give {argument}, between 0 and 1: {_MEANINGS[argument]}"
    return None


def _in_range(name: str, rate: object, of: str) -> float:
    if isinstance(rate, bool) or not isinstance(rate, Real):
        raise TypeError(f"compress: {name}{of} must be a number (got {type(rate).__name__})")
    value = float(rate)
    if not 0 < value <= 1:
        raise ValueError(
            f"compress: {name}{of} must be in (0, 1] (got {name}={value:g}): {_MEANINGS[name]}"
            f"{percent_hint(name, value)}"
        )
    return value


def _checked_seed(seed: int | None) -> int:
    """The seed; for None, one drawn from PyTorch's default generator."""
    if seed is None:
        return int(torch.randint(2**63 - 1, (), dtype=torch.int64, device="cpu"))
    return whole_number("compress", "seed", seed, -(2**63))


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if not any(value is one or (isinstance(one, str) and value == one) for one in allowed):
        choices = [repr(one) for one in allowed]
        raise ValueError(
            f"compress: {name} must be {', '.join(choices[:-1])} or {choices[-1]} (got {value!r})"
        )
