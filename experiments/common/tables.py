"""Tables of rows by name, written by the package's table or in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sketchlayers.reports.table import Table


@dataclass(frozen=True)
class Column:
    """One column: the key in a row, its heading and how a value is written."""

    key: str
    heading: str
    write: Callable[[object], str] = str
    left: bool = False


def format_table(
    rows: Sequence[Mapping[str, object]], columns: Sequence[Column], *, markdown: bool = False
) -> str:
    """Rows below headings and a rule, for a terminal or a page; a missing value is a dash.

    On a terminal the columns up to the first of numbers are flush left, the others flush right.
    """
    cells = [[_cell(row, column) for column in columns] for row in rows]
    if not markdown:
        left = next((i for i, column in enumerate(columns) if not column.left), len(columns))
        table = Table(*(("", column.heading) for column in columns), left=left)
        for texts in cells:
            table.add(*texts)
        return str(table)
    rule = ["---" if column.left else "---:" for column in columns]
    lines = [[column.heading for column in columns], rule, *cells]
    return "\n".join(f"| {' | '.join(texts)} |" for texts in lines)


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
