"""Aligned plain-text tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One column: the key in a row, its heading and how a value is written."""

    key: str
    heading: str
    write: Callable[[object], str] = str
    left: bool = False


def format_table(rows: Sequence[Mapping[str, object]], columns: Sequence[Column]) -> str:
    """Rows below headings and a rule; numbers flush right; a missing value is a dash."""
    headings = [column.heading for column in columns]
    cells = [[_cell(row, column) for column in columns] for row in rows]
    widths = [max(map(len, texts)) for texts in zip(headings, *cells, strict=True)]

    def line(texts: Sequence[str]) -> str:
        padded = [
            text.ljust(width) if column.left else text.rjust(width)
            for text, width, column in zip(texts, widths, columns, strict=True)
        ]
        return "  ".join(padded).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(headings), rule, *map(line, cells)])


def markdown_table(rows: Sequence[Mapping[str, object]], columns: Sequence[Column]) -> str:
    """The same as a table in Markdown."""

    def line(texts: Sequence[str]) -> str:
        return "| " + " | ".join(texts) + " |"

    rule = line(["---" if column.left else "---:" for column in columns])
    cells = [line([_cell(row, column) for column in columns]) for row in rows]
    return "\n".join([line([column.heading for column in columns]), rule, *cells])


def whole(value: object) -> str:
    """A number without decimals, thousands separated: ``12,345``."""
    return f"{float(str(value)):,.0f}"


def decimals(digits: int) -> Callable[[object], str]:
    """Writes numbers with this many decimals."""
    return lambda value: f"{float(str(value)):.{digits}f}"


def speed_columns(digits: int) -> tuple[Column, ...]:
    """Times of the dense side and of a contender, and their ratio with its quartiles.

    Args:
        digits: of the milliseconds.
    """
    return (
        Column("dense_ms", "dense ms", decimals(digits)),
        Column("ms", "ms", decimals(digits)),
        Column("speed", "speed", decimals(2)),
        Column("speed_low", "low", decimals(2)),
        Column("speed_high", "high", decimals(2)),
    )


def _cell(row: Mapping[str, object], column: Column) -> str:
    value = row.get(column.key)
    return "-" if value is None else column.write(value)
