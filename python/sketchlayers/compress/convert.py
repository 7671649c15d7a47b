"""Whole models: `compress` makes a smaller one, `fold` a plain one again, `inspect` looks first."""

from __future__ import annotations

import contextlib
import hashlib
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple, get_args

import torch
from torch import nn

from sketchlayers import methods
from sketchlayers.compress import allocate
from sketchlayers.compress._calls import ExampleInputs
from sketchlayers.compress._choose import FilterFunction, left_out, match, why_not
from sketchlayers.compress._swap import replace_layers
from sketchlayers.compress._table import fraction
from sketchlayers.compress.report import Inspection, LayerInspection, LayerReport, Report
from sketchlayers.compress.survey import (
    Layer,
    Survey,
    multiply_adds,
    stored_bytes,
    stored_tensors,
    survey,
)
from sketchlayers.methods import Method, Rank
from sketchlayers.methods._method import Init
from sketchlayers.methods._rank import rank_text

TOLERANCE = 0.01
"""How far from the rate asked, relatively, the rate of the whole model may be without a note."""
LARGE_ERROR = 0.3
"""Relative error of a fitted layer above which a warning says that training is needed."""

_STAYS_DENSE = "stays dense at this rate"


class Compressed(NamedTuple):
    """The smaller model and what was done; unpacks as ``model, report = compress(...)``."""

    model: nn.Module
    report: Report


def compress(
    model: nn.Module,
    method: str | Method = "sketch",
    *,
    rate: float | Mapping[str, float] | None = None,
    example_inputs: ExampleInputs | None = None,
    layers: str | Iterable[str] | None = None,
    filter_fn: FilterFunction | None = None,
    keep_first: bool = True,
    init: Init = "fit",
    inplace: bool = False,
    seed: int | None = None,
    **options: Any,
) -> Compressed:
    """Replaces layers of a model by smaller ones.

    Layers that cannot be replaced are left alone, each with its reason in the report: shared
    modules, tied parameters, parametrised layers, layers used through their weight, convolutions of
    other dimensions, depthwise ones, layers with a forward of their own, layers that would grow.

    A replacement keeps the layer's device, dtype, memory format, mode, ``requires_grad`` (that of
    the weight for all its factors), all its hooks and the attributes that a user has set on the
    module. Attributes and hooks of the weight tensor itself are lost with it.

    If anything fails the model is as it was, also with ``inplace``.

    Args:
        model: any module. It is not changed, unless ``inplace``.
        method: name of a method, or a config object such as ``methods.Sketch(mixing="channel")``.
        rate: parameters after / before. A number in (0, 1] is the rate of the whole model,
            everything counted; all replaced layers then get about the same rate, by whole ranks.
            A dict {name or glob pattern: rate} gives layers their own rates (nearest whole rank, at
            least 1; a full name goes before a pattern) and leaves all others alone.
        example_inputs: what the model is called with: a tensor, a tuple of arguments or a dict of
            keyword arguments. A copy of the model runs on it once, in eval mode. It makes known the
            order of execution, the multiply-adds, and which layers are never called.
        layers: names or glob patterns of the layers to look at, such as ``"layer4.*"``; None: all.
        filter_fn: ``filter_fn(module, name)`` is called for each layer that can be replaced, with
            the model's own module, and tells whether to replace it.
        keep_first: leave the layer that runs first as it is (the first registered one without
            ``example_inputs``), unless it is named in full in ``rate`` or ``layers``.
        init: "fit" approximates the weights, "random" starts training from scratch.
        inplace: change ``model`` itself. Handles of hooks on replaced layers then stay valid.
        seed: what the layers' seeds are derived from, together with the layers' names, so that a
            layer's numbers do not depend on the other layers; None draws one from PyTorch's default
            generator.
        **options: options of the method; they change those of a config object.

    Returns:
        The smaller model and the `Report`.

    Raises:
        ValueError: the rate cannot be met (the message names the smallest possible one) or is not
            in (0, 1]; a pattern matches nothing; the method is unknown; a weight to fit is not
            finite; the model does not run on ``example_inputs``.
        TypeError: an argument has the wrong type, the method has no such option, or the model
            cannot be copied.

    Warns:
        UserWarning: fitted layers have a relative error above 0.3, so the network needs training.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"compress: model must be an nn.Module (got {type(model).__name__})")
    if init not in get_args(Init):
        raise ValueError(f"compress: init must be 'fit' or 'random' (got {init!r})")
    chosen_method = methods.get(method, **options)
    rate = _checked_rate(rate)
    base_seed = _checked_seed(seed)

    found = survey(model, chosen_method, init=init, example_inputs=example_inputs)
    rates = rate if isinstance(rate, Mapping) else None
    reasons = left_out(
        found, rates=rates, layers=layers, filter_fn=filter_fn, keep_first=keep_first
    )
    ranks, notes = _ranks(found, chosen_method, rate, reasons)
    replacements = _build(found, chosen_method, ranks, init=init, seed=base_seed)
    report = Report(
        method=chosen_method.name,
        options=chosen_method.options(),
        init=init,
        seed=base_seed,
        rate_asked=rate,
        layers=tuple(
            _layer_report(layer, chosen_method, replacements.get(layer.name), reasons)
            for layer in found.layers
        ),
        other_parameters=found.other_parameters,
        other_bytes=found.other_bytes,
        notes=tuple(notes),
    )
    _warn_of_large_errors(report)
    modules = {layer.module: layer.name for layer in found.layers}
    swaps = {
        module: replacements[name].module
        for module, name in modules.items()
        if name in replacements
    }
    return Compressed(replace_layers(model, swaps, inplace=inplace), report)


def fold(model: nn.Module, *, inplace: bool = False) -> nn.Module:
    """Turns every compressed layer into the plain layer with the same outputs.

    Hooks and a user's own attributes carry over as in `compress`; a layer that is registered at
    several places stays shared.

    Args:
        model: any module. It is not changed, unless ``inplace``.
        inplace: change ``model`` itself.

    Returns:
        The model of plain layers.

    Raises:
        ValueError: ``inplace`` and the model itself is a compressed layer.
        TypeError: the model is no module or cannot be copied.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fold: model must be an nn.Module (got {type(model).__name__})")
    compressed = methods.compressed_layers()
    folded = {
        module: module.fold()  # type: ignore[operator]
        for module in model.modules()
        if isinstance(module, compressed)
    }
    return replace_layers(model, folded, inplace=inplace)


def inspect(
    model: nn.Module,
    example_inputs: ExampleInputs | None = None,
    *,
    method: str | Method = "sketch",
    **options: Any,
) -> Inspection:
    """Tells what could be compressed: each layer, its size, its ranks, or why it is left alone.

    Args:
        model: any module, also on the meta device; it is not changed.
        example_inputs: as for `compress`; the report then has multiply-adds.
        method: as for `compress`.
        **options: options of the method.

    Returns:
        The `Inspection`; printed, it is a table.

    Raises:
        ValueError: the method is unknown, or the model does not run on ``example_inputs``.
        TypeError: an argument has the wrong type, or the method has no such option.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"inspect: model must be an nn.Module (got {type(model).__name__})")
    chosen_method = methods.get(method, **options)
    found = survey(model, chosen_method, init="random", example_inputs=example_inputs)
    rows = []
    for layer in found.layers:
        ranks = () if layer.reason else chosen_method.ranks(layer.module)
        rows.append(
            LayerInspection(
                name=layer.name,
                kind=layer.kind,
                shape=layer.shape,
                parameters=layer.parameters,
                bytes=layer.bytes,
                multiply_adds=layer.multiply_adds,
                smallest_rank=ranks[0] if ranks else None,
                largest_rank=ranks[-1] if ranks else None,
                smallest_parameters=(
                    chosen_method.parameters(layer.module, ranks[0]) if ranks else layer.parameters
                ),
                reason=layer.reason,
            )
        )
    return Inspection(
        method=chosen_method.name,
        layers=tuple(rows),
        other_parameters=found.other_parameters,
        other_bytes=found.other_bytes,
    )


def layer_seed(seed: int, name: str) -> int:
    """Seed of one layer, 63 bits, from the model's seed and the layer's name; never changes.

    It is the BLAKE2b hash, 8 bytes least significant first, of the text "seed:name".
    """
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") & (2**63 - 1)


@dataclass(frozen=True)
class _Replacement:
    module: nn.Module
    rank: Rank
    relative_error: float | None


def _checked_rate(rate: float | Mapping[str, float] | None) -> float | dict[str, float]:
    if rate is None:
        raise TypeError("compress: rate must be given, a number or a dict {name or pattern: rate}")
    if isinstance(rate, Mapping):
        if not rate:
            raise ValueError("compress: rate must name a layer or pattern (got an empty dict)")
        return {pattern: _in_range(value, f" for {pattern!r}") for pattern, value in rate.items()}
    return _in_range(rate, "")


def _in_range(rate: object, of: str) -> float:
    if isinstance(rate, bool) or not isinstance(rate, Real):
        raise TypeError(f"compress: rate{of} must be a number (got {type(rate).__name__})")
    value = float(rate)
    if not 0 < value <= 1:
        raise ValueError(f"compress: rate{of} must be in (0, 1] (got rate={value:g})")
    return value


def _checked_seed(seed: int | None) -> int:
    if seed is None:
        return int(torch.randint(2**63 - 1, (), dtype=torch.int64, device="cpu"))
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"compress: seed must be a whole number (got {type(seed).__name__})")
    return seed


def _ranks(
    found: Survey, method: Method, rate: float | dict[str, float], reasons: dict[str, str]
) -> tuple[allocate.Ranks, list[str]]:
    """The rank of each layer to replace, and notes; layers that stay dense join ``reasons``."""
    choices = [
        allocate.Choices(
            name=layer.name,
            dense=layer.parameters,
            ranks=method.ranks(layer.module),
            parameters=lambda rank, module=layer.module: method.parameters(module, rank),  # type: ignore[misc]
        )
        for layer in found.compressible
        if layer.name not in reasons
    ]
    if isinstance(rate, float):
        ranks, notes = _ranks_of_whole(found, choices, rate, reasons)
    else:
        ranks, notes = _ranks_of_layers(choices, rate)
    reasons.update((name, _STAYS_DENSE) for name, rank in ranks.items() if rank is None)
    return {name: rank for name, rank in ranks.items() if rank is not None}, notes


def _ranks_of_whole(
    found: Survey, choices: list[allocate.Choices], rate: float, reasons: Mapping[str, str]
) -> tuple[allocate.Ranks, list[str]]:
    lazy = [layer for layer in found.layers if (layer.reason or "").startswith("lazy")]
    if lazy:
        raise ValueError(
            "compress: a rate of the whole model must know all its parameters; run the model once "
            f"(got {why_not(lazy)})"
        )
    before = found.parameters
    fixed = before - sum(layer.dense for layer in choices)
    smallest = fixed + allocate.smallest(choices)
    if smallest > rate * (1 + TOLERANCE) * before:
        if choices:
            elsewhere = f"{100 * fixed / before:.0f} % of the parameters lie elsewhere"
            why = f"smallest rank in each layer that may be replaced; {elsewhere}"
        else:
            why = f"no layer can be replaced: {why_not(found.layers, reasons) or 'it has none'}"
        least = math.ceil(smallest / before * 1e4) / 1e4
        raise ValueError(
            f"compress: rate must be at least {least:g} for this model ({why}) (got rate={rate:g})"
        )
    ranks = allocate.uniform(choices, round(rate * before) - fixed)
    got = (fixed + allocate.total(choices, ranks)) / before if before else 1.0
    if abs(got - rate) <= TOLERANCE * rate:
        return ranks, []
    note = (
        f"rate {fraction(rate)} was asked, {fraction(got)} is the nearest: ranks are whole "
        f"numbers (layers to compress: {len(choices)})"
    )
    return ranks, [note]


def _ranks_of_layers(
    choices: list[allocate.Choices], rates: Mapping[str, float]
) -> tuple[allocate.Ranks, list[str]]:
    ranks: allocate.Ranks = {}
    notes = []
    for layer in choices:
        pattern = match(layer.name, rates)
        assert pattern is not None  # the others have been left out
        asked = rates[pattern]
        ranks[layer.name] = layer.nearest(asked)
        smallest = layer.parameters(layer.ranks[0]) / layer.dense
        if smallest > asked * (1 + TOLERANCE):
            notes.append(
                f"{layer.name or 'the model'}: rate {fraction(asked)} was asked, "
                f"{fraction(smallest)} is the smallest (rank {rank_text(layer.ranks[0])})"
            )
    return ranks, notes


def _build(
    found: Survey, method: Method, ranks: allocate.Ranks, *, init: Init, seed: int
) -> dict[str, _Replacement]:
    """The replacements by name; the model is not touched."""
    chosen = [
        (layer, rank) for layer in found.layers if (rank := ranks.get(layer.name)) is not None
    ]
    if init == "fit":
        for layer, _ in chosen:
            _check_finite(layer)
    built: dict[str, _Replacement] = {}
    for layer, rank in chosen:
        device = layer.module.get_parameter("weight").device
        with _seeded(layer_seed(seed, f"{layer.name}:init"), device):
            module = method.build(layer.module, rank, init=init, seed=layer_seed(seed, layer.name))
        built[layer.name] = _Replacement(module, rank, getattr(module, "fit_error", None))
    return built


def _check_finite(layer: Layer) -> None:
    weight = layer.module.get_parameter("weight").detach()
    bad = weight.numel() - int(weight.isfinite().sum())
    if bad:
        raise ValueError(
            f"compress: weights to fit must be finite (got {bad} NaN or infinite of "
            f"{weight.numel()} in {layer.name or 'the model'!r})"
        )


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """PyTorch's generators of the CPU and of the device start from ``seed``, and are put back."""
    on_cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_cuda else []):
        torch.default_generator.manual_seed(seed)
        if on_cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def _layer_report(
    layer: Layer, method: Method, new: _Replacement | None, reasons: Mapping[str, str]
) -> LayerReport:
    after = layer.parameters, layer.bytes, layer.multiply_adds
    if new is not None:
        after = (
            sum(parameter.numel() for parameter in new.module.parameters()),
            sum(stored_bytes(tensor) for _, tensor in stored_tensors(new.module)),
            multiply_adds(new.module, layer.calls) if layer.calls else None,
        )
    return LayerReport(
        name=layer.name,
        kind=layer.kind,
        shape=layer.shape,
        method=None if new is None else method.name,
        rank=None if new is None else new.rank,
        parameters_before=layer.parameters,
        parameters_after=after[0],
        bytes_before=layer.bytes,
        bytes_after=after[1],
        multiply_adds_before=layer.multiply_adds,
        multiply_adds_after=after[2],
        relative_error=None if new is None else new.relative_error,
        reason=layer.reason or reasons.get(layer.name),
    )


def _warn_of_large_errors(report: Report) -> None:
    errors = {
        row.name: row.relative_error for row in report.layers if row.relative_error is not None
    }
    large = {name: error for name, error in errors.items() if error > LARGE_ERROR}
    if large:
        worst = max(large, key=large.__getitem__)
        warnings.warn(
            f"compress: {len(large)} of {len(errors)} fitted layers have a relative error above "
            f"{LARGE_ERROR} (worst: {worst or 'the model'}, {large[worst]:.2f}): "
            "the network needs training",
            UserWarning,
            stacklevel=3,
        )
