"""Which layers a call of ``compress`` is about: names, glob patterns and filters."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from sketchlayers.compression.survey.layers import Layer, Survey
from sketchlayers.compression.survey.reasons import Reason

FilterFunction = Callable[[nn.Module, str], bool]


def left_out(
    found: Survey,
    *,
    rates: Mapping[str, float] | None,
    layers: str | Iterable[str] | None,
    exclude: str | Iterable[str] | None = None,
    filter_fn: FilterFunction | None,
    keep_first: bool,
) -> dict[str, Reason]:
    """Finds the compressible layers that the caller does not mean, by name with the reason.

    A layer is meant if a pattern of ``rates`` and one of ``layers`` match its name, none of
    ``exclude`` does, and ``filter_fn(module, name)`` is true, where given. The first layer is kept
    with ``keep_first``, unless it is named in full or is the whole model.

    Raises:
        ValueError: a pattern matches no layer, or, but for ``exclude``, none that can be
            compressed.
    """
    patterns = patterns_of("compress", layers)
    excluded = patterns_of("compress", exclude, argument="exclude")
    for pattern in (*patterns_of("compress", rates), *patterns):
        _check_pattern(pattern, found)
    for pattern in excluded:
        _matched(pattern, found)
    reasons: dict[str, Reason] = {}
    for layer in found.compressible:
        if match(layer.name, excluded) is not None:
            reasons[layer.name] = Reason.EXCLUDED
            continue
        named = layer.name in patterns or layer.name in (rates or ()) or layer.name == ""
        if (
            (rates is not None and match(layer.name, rates) is None)
            or (layers is not None and match(layer.name, patterns) is None)
            or (filter_fn is not None and not filter_fn(layer.module, layer.name))
        ):
            reasons[layer.name] = Reason.NOT_CHOSEN
        elif keep_first and layer.name == found.first and not named:
            reasons[layer.name] = Reason.FIRST_KEPT
    return reasons


def patterns_of(
    owner: str, layers: str | Iterable[str] | None, *, argument: str = "layers"
) -> list[str]:
    """Returns the names and patterns that a caller gives as a list, empty for None.

    Args:
        owner: the function that is called.
        layers: what the caller gives.
        argument: what the function calls it.

    Raises:
        TypeError: there is something else among them.
    """
    if layers is None:
        return []
    several = isinstance(layers, Iterable) and not isinstance(layers, str | nn.Module)
    patterns: list[object] = [*layers] if several else [layers]
    for pattern in patterns:
        if not isinstance(pattern, str):
            kind = pattern.__name__ if isinstance(pattern, type) else type(pattern).__name__
            raise TypeError(
                f"{owner}: {argument} must be names or patterns such as 'layer4.*' (got {kind}); "
                "to choose by class give filter_fn=lambda module, name: ..."
            )
    return patterns  # type: ignore[return-value]


def match(name: str, patterns: Iterable[str]) -> str | None:
    """Returns the pattern for this layer: its full name, else the first glob that matches."""
    patterns = list(patterns)
    if name in patterns:
        return name
    return next((pattern for pattern in patterns if fnmatchcase(name, pattern)), None)


def _matched(pattern: str, found: Survey) -> list[Layer]:
    """The layers that a pattern matches, at least one."""
    matched = [layer for layer in found.layers if match(layer.name, [pattern])]
    if pattern == "" and any(layer.name == "" for layer in found.layers):
        matched = [layer for layer in found.layers if layer.name == ""]
    if not matched:
        hint = suggestion(pattern, [layer.name for layer in found.layers])
        raise ValueError(f"compress: a pattern must match a layer (got {pattern!r}{hint})")
    return matched


def _check_pattern(pattern: str, found: Survey) -> None:
    matched = _matched(pattern, found)
    if all(layer.reason is not None for layer in matched):
        raise ValueError(
            "compress: a pattern must match a layer that can be compressed "
            f"(got {pattern!r}; {why_not(matched)})"
        )


def why_not(layers: Sequence[Layer], reasons: Mapping[str, Reason] | None = None) -> str:
    """Returns the reasons of the first few layers: "conv1: depthwise convolution; and 3 more"."""
    listed = [
        f"{layer.name or 'the model'}: {(reasons or {}).get(layer.name) or layer.reason}"
        for layer in layers
    ]
    more = [f"and {len(listed) - 3} more"] if len(listed) > 3 else []
    return "; ".join(listed[:3] + more)


def suggestion(pattern: str, names: Sequence[str]) -> str:
    """Says what a pattern that matches no layer could have been, to follow it in a message.

    Args:
        pattern: it matches none of the names.
        names: of all layers.
    """
    wanted = pattern.rstrip("*").rstrip(".")
    blocks = {name[:end] for name in names for end, letter in enumerate(name) if letter == "."}
    if wanted in blocks:
        return f"; {wanted + '.*'!r} matches the layers inside"
    inner = [name for name in names if fnmatchcase(name, f"*.{pattern}")]
    if inner:
        more = f" and {len(inner) - 1} more" if len(inner) > 1 else ""
        return f"; {'*.' + pattern!r} matches {inner[0]!r}{more}"
    known = {name: name for name in names} | {block: f"{block}.*" for block in sorted(blocks)}
    close = difflib.get_close_matches(wanted, known, n=3)
    if close:
        return f"; close ones: {', '.join(repr(known[name]) for name in close)}"
    return f"; the layers are {', '.join(map(repr, names[:5]))}{', ...' if len(names) > 5 else ''}"
