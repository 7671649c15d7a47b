"""Bar charts as SVG inside of HTML: text and grid have the page's colours, light or dark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 960, 190
_LEFT, _TOP, _BOTTOM = 64, 12, 22
_TICKS = 4
_WIDEST = 48.0


@dataclass(frozen=True)
class Bar:
    """One bar: a pale one, and a narrower one of a colour before it.

    Attributes:
        title: shown at the mouse.
        height: of the coloured bar.
        colour: of CSS.
        behind: height of the pale bar; None for none.
    """

    title: str
    height: float
    colour: str
    behind: float | None = None


def bar_chart(label: str, bars: Sequence[Bar], axis: Callable[[float], str]) -> str:
    """Draws bars side by side over an axis that begins at 0.

    Args:
        label: what the chart shows, for readers who cannot see it.
        bars: from left to right.
        axis: writes a value of the axis.
    """
    most = max((max(bar.height, bar.behind or 0.0) for bar in bars), default=0.0)
    step = _step(most)
    top = step * max(1, math.ceil(most / step))
    bottom = _HEIGHT - _BOTTOM

    def at(value: float) -> float:
        return bottom - value / top * (bottom - _TOP)

    parts = []
    for number in range(round(top / step) + 1):
        y = at(number * step)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>'
        )
        text = escape(axis(number * step))
        parts.append(_text(text, _LEFT - 8, y + 4, "end"))
    slot = min(_WIDEST, (_WIDTH - _LEFT) / max(1, len(bars)))
    for number, bar in enumerate(bars):
        left = _LEFT + number * slot
        parts.append(f"<g><title>{escape(bar.title)}</title>")
        for value, width, colour in (
            (bar.behind, 0.84, "var(--pale)"),
            (bar.height, 0.56, bar.colour),
        ):
            if value:
                x = left + slot * (1 - width) / 2
                parts.append(
                    f'<rect x="{x:.2f}" y="{at(value):.2f}" width="{slot * width:.2f}" '
                    f'height="{bottom - at(value):.2f}" fill="{colour}"/>'
                )
        parts.append("</g>")
    parts.append(_text("layers in order of registration", _LEFT, _HEIGHT - 4, "start"))
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def _text(text: str, x: float, y: float, anchor: str) -> str:
    place = f'x="{x}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text {place} font-size="12" fill="var(--soft)">{text}</text>'


def _step(most: float) -> float:
    """The distance of lines of a grid: 1, 2 or 5 times a power of ten."""
    if not most > 0:
        return 1.0
    rough = most / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= rough)
