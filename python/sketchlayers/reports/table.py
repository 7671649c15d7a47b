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

    The first ``left`` columns are aligned to the left, the others, of numbers, to the right. Rows
    that are printed as they come, by `header` and `line`, need ``widths``.
    """

    def __init__(
        self, *headers: str | tuple[str, str], left: int, widths: Sequence[int] = ()
    ) -> None:
        """Each header is one line, or two; equal neighbours above are written once, over all.

        Args:
            headers: a text, or (line above, line below).
            left: columns that are aligned to the left.
            widths: the least width of each column; the width of what is in it where not given.
        """
        pairs = [("", header) if isinstance(header, str) else header for header in headers]
        self._above = [above for above, _ in pairs]
        self._below = [below for _, below in pairs]
        self._left = left
        self._least = list(widths) or [0] * len(pairs)
        self._rows: list[list[str] | object] = []

    def add(self, *cells: str) -> None:
        """Adds a row."""
        self._rows.append(list(cells))

    def rule(self) -> None:
        """Adds a line across."""
        self._rows.append(_RULE)

    def __str__(self) -> str:
        widths = self._widths()
        rule = "-" * (sum(widths) + len(_GAP) * (len(widths) - 1))
        rows = [self._line(row, widths) if isinstance(row, list) else rule for row in self._rows]
        return "\n".join([self.header(), rule, *rows])

    def header(self) -> str:
        """Returns the headers, in one or two lines."""
        widths = self._widths()
        lines = [self._headline(widths)] if any(self._above) else []
        return "\n".join([*lines, self._line(self._below, widths)])

    def line(self, *cells: str) -> str:
        """Returns one row, which is not added to the table."""
        return self._line(cells, self._widths())

    def _line(self, cells: Sequence[str], widths: Sequence[int]) -> str:
        padded = [
            cell.ljust(width) if column < self._left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return _GAP.join(padded).rstrip()

    def _widths(self) -> list[int]:
        rows = [row for row in self._rows if isinstance(row, list)]
        columns = zip(self._below, *rows, strict=True)
        longest = (max(map(len, column)) for column in columns)
        return list(map(max, longest, self._least))

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

    def mark(self, text: str | None) -> str:
        """Returns the mark for a text; the same text has the same mark, and none is ""."""
        if not text:
            return ""
        self._counts[text] = self._counts.get(text, 0) + 1
        return f"({self._numbers.setdefault(text, len(self._numbers) + 1)})"

    def lines(self, title: str = "") -> list[str]:
        """Returns one line for each text, after one with the title; nothing where there is none."""
        texts = [
            wrapped(f"({number}) {text}{self._times(text)}")
            for text, number in self._numbers.items()
        ]
        return [title, *texts] if title and texts else texts

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


def layer_name(name: str) -> str:
    """Writes the qualified name of a layer, which a model that is a layer itself does not have."""
    return name or "(the model)"


def error_text(error: float | None) -> str:
    """Writes three decimals; "" for None."""
    if error is None:
        return ""
    return "<0.001" if 0 < error < 0.001 else f"{error:.3f}"


def percent(share: float) -> str:
    """Writes one decimal; what is not zero does not become it: "<0.1 %"."""
    return "<0.1 %" if 0 < share < 5e-4 else f"{100 * share:.1f} %"


def megabytes(count: float) -> str:
    """Writes three significant digits: "0.0593 MB", "46.8 MB", "1,234 MB"."""
    return f"{count / 1e6:,.0f} MB" if count >= 1e8 else f"{count / 1e6:.3g} MB"
