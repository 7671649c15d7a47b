"""Measurements in files."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sketchlayers._runtime.files import written_whole


def write_csv(path: Path, rows: Sequence[Any], form: str, **common: object) -> None:
    """Writes dataclasses, a row each, with what all of them have in common.

    Args:
        path: of the file; it is written as a whole, or not at all.
        rows: at least one.
        form: how numbers that are not whole are written, such as ``".4g"``.
        common: more columns.
    """
    lines = [{**asdict(row), **common} for row in rows]
    with written_whole(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        for line in lines:
            writer.writerow(
                {k: format(v, form) if isinstance(v, float) else v for k, v in line.items()}
            )
