"""Writing files whole or not at all, and what to say of those that cannot be read."""

from __future__ import annotations

import contextlib
import csv
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

SAFETENSORS = ".safetensors"


def check_safetensors(owner: str, path: Path, otherwise: str) -> None:
    """Makes sure that a file to write is called what it is: a safetensors file.

    Args:
        owner: the function that writes.
        path: of the file.
        otherwise: what to do for a file of another kind.

    Raises:
        ValueError: the name has another ending.
    """
    if path.suffix.lower() != SAFETENSORS:
        raise ValueError(
            f"{owner}: path must end in {SAFETENSORS}, the format of the file (got {str(path)!r}); "
            f"write {path.with_suffix(SAFETENSORS).name!r}{otherwise}"
        )


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path to write to; what is there becomes ``path`` at the end, or vanishes after an error."""
    # At random: the next process in a container has the number of one that was killed.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    temporary.touch(exist_ok=False)
    mode = temporary.stat().st_mode  # as the user wants files to be; some writers do not ask
    try:
        yield temporary
        temporary.chmod(mode)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Replaces a CSV file; the first row's keys are the columns, floats get six digits."""
    with written_whole(path) as whole, whole.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
        writer.writeheader()
        for row in rows:
            values = row.items()
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in values})


def shortened(error: BaseException) -> str:
    """The message of an error as one line that is not too long."""
    text = " ".join(str(error).split()).removeprefix("compress: ")
    return text if len(text) <= 300 else f"{text[:300]}..."
