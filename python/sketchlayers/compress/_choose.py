"""Which layers a call of ``compress`` is about: names, glob patterns and filters."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from sketchlayers.compress.survey import Layer, Survey

FIRST_KEPT = "the first layer is kept (keep_first=False takes it too)"
NOT_CHOSEN = "not among the chosen layers"

FilterFunction = Callable[[nn.Module, str], bool]


def left_out(
    found: Survey,
    *,
    rates: Mapping[str, float] | None,
    layers: str | Iterable[str] | None,
    filter_fn: FilterFunction | None,
    keep_first: bool,
) -> dict[str, str]:
    """Compressible layers that the caller does not mean, by name, each with the reason.

    A layer is meant if a pattern of ``rates`` and one of ``layers`` match its name and
    ``filter_fn(module, name)`` is true, where given. The first layer is kept with ``keep_first``,
    unless it is named in full or is the whole model.

    Raises:
        ValueError: a pattern matches no layer, or none that can be compressed.
    """
    patterns = [layers] if isinstance(layers, str) else list(layers or ())
    for pattern in (*(rates or ()), *patterns):
        _check_pattern(pattern, found)
    reasons: dict[str, str] = {}
    for layer in found.compressible:
        named = layer.name in patterns or layer.name in (rates or ()) or layer.name == ""
        if (
            (rates is not None and match(layer.name, rates) is None)
            or (layers is not None and match(layer.name, patterns) is None)
            or (filter_fn is not None and not filter_fn(layer.module, layer.name))
        ):
            reasons[layer.name] = NOT_CHOSEN
        elif keep_first and layer.name == found.first and not named:
            reasons[layer.name] = FIRST_KEPT
    return reasons


def match(name: str, patterns: Iterable[str]) -> str | None:
    """The pattern that speaks of this layer: its full name, else the first glob that matches."""
    patterns = list(patterns)
    if name in patterns:
        return name
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)


def _check_pattern(pattern: str, found: Survey) -> None:
    matched = [layer for layer in found.layers if match(layer.name, [pattern])]
    if pattern == "" and any(layer.name == "" for layer in found.layers):
        matched = [layer for layer in found.layers if layer.name == ""]
    if not matched:
        hint = _suggestion(pattern, [layer.name for layer in found.layers])
        raise ValueError(f"compress: a pattern must match a layer (got {pattern!r}{hint})")
    if all(layer.reason is not None for layer in matched):
        raise ValueError(
            "compress: a pattern must match a layer that can be compressed "
            f"(got {pattern!r}; {why_not(matched)})"
        )


def why_not(layers: Sequence[Layer], reasons: Mapping[str, str] | None = None) -> str:
    """The reasons of the first few layers: "conv1: depthwise convolution; and 3 more"."""
    listed = [
        f"{layer.name or 'the model'}: {(reasons or {}).get(layer.name) or layer.reason}"
        for layer in layers
    ]
    more = [f"and {len(listed) - 3} more"] if len(listed) > 3 else []
    return "; ".join(listed[:3] + more)


def _suggestion(pattern: str, names: Sequence[str]) -> str:
    if any(name.startswith(f"{pattern}.") for name in names):
        return f"; the layers inside are matched by {pattern + '.*'!r}"
    close = difflib.get_close_matches(pattern, names, n=3)
    if close:
        return f"; close names: {', '.join(map(repr, close))}"
    return f"; the layers are {', '.join(map(repr, names[:5]))}{', ...' if len(names) > 5 else ''}"
