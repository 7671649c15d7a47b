"""What stays as it is, by reason, with its share of all parameters: the largest first."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sketchlayers.reports.export import ratio
from sketchlayers.reports.rows import OtherParameter
from sketchlayers.reports.table import joined, layer_name, percent, wrapped

_WORTH_A_LINE, _MOST_LINES = 0.01, 5
"""The share from which on a parameter outside of the layers is named, and how many are."""


@dataclass(frozen=True)
class Kept:
    """Layers that stay as they are for the same reason.

    Attributes:
        reason: why.
        names: of the layers, the largest first.
        parameters: of all of them.
        share: of all parameters of the model.
    """

    reason: str
    names: tuple[str, ...]
    parameters: int
    share: float


def kept_layers(layers: Iterable[tuple[str, str | None, int]], total: int) -> tuple[Kept, ...]:
    """Groups layers by their reasons.

    Args:
        layers: name, reason (None: it does not stay) and number of parameters of each.
        total: number of parameters of the model.
    """
    by_reason: dict[str, list[tuple[int, str]]] = {}
    for name, reason, count in layers:
        if reason:
            by_reason.setdefault(reason, []).append((count, name))
    kept = []
    for reason, own in by_reason.items():
        own.sort(key=lambda one: -one[0])
        count = sum(count for count, _ in own)
        kept.append(Kept(reason, tuple(name for _, name in own), count, ratio(count, total)))
    return tuple(sorted(kept, key=lambda one: -one.parameters))


def marks_of(kept: Iterable[Kept]) -> dict[str, str]:
    """Returns the mark of each reason: "(1)" for the one with the most parameters."""
    return {one.reason: f"({number})" for number, one in enumerate(kept, start=1)}


def kept_lines(kept: tuple[Kept, ...]) -> list[str]:
    """Returns a line for each reason, after a title; nothing where nothing stays."""
    if not kept:
        return []
    lines = [
        wrapped(f"({number}) {percent(one.share):>6}  {one.reason}{_several(one)}")
        for number, one in enumerate(kept, start=1)
    ]
    return ["not replaced, with the share of all parameters:", *lines]


def large_others(others: Iterable[OtherParameter], total: int) -> list[OtherParameter]:
    """Returns the parameters outside of the layers that are worth naming, the largest first."""
    large = [one for one in others if one.parameters >= _WORTH_A_LINE * total > 0]
    return sorted(large, key=lambda one: -one.parameters)[:_MOST_LINES]


def other_lines(others: tuple[OtherParameter, ...], total: int) -> list[str]:
    """Returns a line for each large parameter outside of the layers, and one for all others."""
    large = large_others(others, total)
    if not large:
        return []
    rest = sum(one.parameters for one in others) - sum(one.parameters for one in large)
    texts = [(f"{one.name} ({one.kind}, {joined(one.shape)})", one.parameters) for one in large]
    if count := len(others) - len(large):
        texts.append((f"{count} more", rest))
    lines = [wrapped(f"    {percent(ratio(n, total)):>6}  {text}") for text, n in texts]
    return ["parameters in no layer that can be replaced:", *lines]


def _several(kept: Kept) -> str:
    if len(kept.names) == 1:
        return ""
    return f" ({len(kept.names)} layers, the largest: {layer_name(kept.names[0])})"
