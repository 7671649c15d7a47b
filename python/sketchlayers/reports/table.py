"""Aligned text tables; running text is wrapped for a terminal of 120 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from itertools import groupby
from operator import itemgetter

WIDTH = 120
_GAP = "  "
_RULE = object()


class Table:
    """Rows of text cells under one or two lines of headers; no cell is shortened.

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
        """Adds a row."""
        self._rows.append(list(cells))

    def rule(self) -> None:
        """Adds a line across."""
        self._rows.append(_RULE)

    def __str__(self) -> str:
        rows = [row for row in self._rows if isinstance(row, list)]
        columns = zip(self._below, *rows, strict=True)
        widths = [max(len(cell) for cell in column) for column in columns]
        lines = [self._line(self._below, widths)]
        if any(self._above):
            lines.insert(0, self._headline(widths))
        rule = "-" * (sum(widths) + len(_GAP) * (len(widths) - 1))
        lines.append(rule)
        for row in self._rows:
            lines.append(self._line(row, widths) if isinstance(row, list) else rule)
        return "\n".join(lines)

    def _line(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        padded = [
            cell.ljust(width) if column < self._left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return _GAP.join(padded).rstrip()

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
        """Returns the mark for a text; the same text has the same mark."""
        self._counts[text] = self._counts.get(text, 0) + 1
        return f"({self._numbers.setdefault(text, len(self._numbers) + 1)})"

    def lines(self) -> list[str]:
        """Returns one line for each text."""
        return [
            wrapped(f"({number}) {text}{self._times(text)}")
            for text, number in self._numbers.items()
        ]

    def _times(self, text: str) -> str:
        return f" ({self._counts[text]} layers)" if self._counts[text] > 1 else ""


def wrapped(text: str) -> str:
    """Wraps the text to lines of the table's width."""
    return textwrap.fill(
        text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def quantity(value: int | None, unit: str = "") -> str:
    """Writes three significant digits and a decimal prefix: "1.23 M", "45.6 kB"; "-" for None."""
    if value is None:
        return "-"
    scaled, prefixes = float(value), iter(("", "k", "M", "G", "T", "P", "E"))
    prefix = next(prefixes)
    while scaled >= 999.5 and prefix != "E":
        scaled, prefix = scaled / 1000, next(prefixes)
    digits = f"{scaled:.3g}" if prefix else str(value)
    return f"{digits} {prefix}{unit}".rstrip()


def fraction(value: float) -> str:
    """Writes four significant digits."""
    return f"{value:.4g}"


def joined(numbers: Iterable[int]) -> str:
    """Writes a shape: "64x3x7x7"; "-" for none."""
    return "x".join(map(str, numbers)) or "-"
