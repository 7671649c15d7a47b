"""Aligned text tables for a terminal of 120 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter

WIDTH = 120
_SMALLEST_NAME = 16
_GAP = "  "
_RULE = object()


class Table:
    """Rows of text cells under one or two lines of headers; the first column gives way if needed.

    The first ``left`` columns are aligned to the left, the others, of numbers, to the right.
    """

    def __init__(self, *headers: tuple[str, str], left: int) -> None:
        """Each header is (line above, line below); an empty line above in all columns is left out.

        Equal neighbours in the line above are written once, over all their columns.
        """
        self._above = [above for above, _ in headers]
        self._below = [below for _, below in headers]
        self._left = left
        self._rows: list[list[str] | object] = []

    def add(self, *cells: str) -> None:
        """One more row."""
        self._rows.append(list(cells))

    def rule(self) -> None:
        """A line across."""
        self._rows.append(_RULE)

    def __str__(self) -> str:
        rows = [row for row in self._rows if isinstance(row, list)]
        columns = zip(self._below, *rows, strict=True)
        widths = [max(len(cell) for cell in column) for column in columns]
        others = sum(widths[1:]) + len(_GAP) * (len(widths) - 1)
        widths[0] = min(widths[0], max(_SMALLEST_NAME, WIDTH - others))
        lines = [self._line(self._below, widths)]
        if any(self._above):
            lines.insert(0, self._headline(widths))
        rule = "-" * (sum(widths) + len(_GAP) * (len(widths) - 1))
        lines.append(rule)
        for row in self._rows:
            lines.append(self._line(row, widths) if isinstance(row, list) else rule)
        return "\n".join(lines)

    def _line(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        first = shorten(cells[0], widths[0]).ljust(widths[0])
        others = [
            cell.ljust(width) if column < self._left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells[1:], widths[1:], strict=True), start=1)
        ]
        return _GAP.join([first, *others]).rstrip()

    def _headline(self, widths: Sequence[int]) -> str:
        parts = []
        for text, columns in groupby(zip(self._above, widths, strict=True), key=itemgetter(0)):
            spans = [width for _, width in columns]
            parts.append(text.center(sum(spans) + len(_GAP) * (len(spans) - 1)))
        return _GAP.join(parts).rstrip()


class Footnotes:
    """Numbers texts in the order they come: "(1)" in a cell, the text below the table."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._counts: dict[str, int] = {}

    def mark(self, text: str) -> str:
        """The mark for a text; the same text has the same mark."""
        self._counts[text] = self._counts.get(text, 0) + 1
        return f"({self._numbers.setdefault(text, len(self._numbers) + 1)})"

    def lines(self) -> list[str]:
        """One line for each text."""
        return [
            wrapped(f"({number}) {text}{self._times(text)}")
            for text, number in self._numbers.items()
        ]

    def _times(self, text: str) -> str:
        return f" ({self._counts[text]} layers)" if self._counts[text] > 1 else ""


def shorten(text: str, width: int) -> str:
    """The text; if it is longer than ``width``, dots replace its middle (ends tell most)."""
    if len(text) <= width:
        return text
    tail = (width - 2) * 2 // 3
    return text[: width - 2 - tail] + ".." + text[-tail:]


def wrapped(text: str) -> str:
    """The text in lines of the table's width."""
    return textwrap.fill(
        text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def quantity(value: int | None, unit: str = "") -> str:
    """Three significant digits with a decimal prefix: "1.23 M", "45.6 kB"; "-" for None."""
    if value is None:
        return "-"
    scaled, prefixes = float(value), iter(("", "k", "M", "G", "T", "P", "E"))
    prefix = next(prefixes)
    while scaled >= 999.5 and prefix != "E":
        scaled, prefix = scaled / 1000, next(prefixes)
    digits = f"{scaled:.3g}" if prefix else str(value)
    return f"{digits} {prefix}{unit}".rstrip()


def fraction(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def joined(numbers: Iterable[int]) -> str:
    """A shape: "64x3x7x7"; "-" for none."""
    return "x".join(map(str, numbers)) or "-"
