"""What tests of the command line share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sketchlayers.cli.main import main


def files(folder: Path) -> dict[str, bytes]:
    """Names and contents of the files in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def without(contents: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The dict without some items."""
    return {name: value for name, value in contents.items() if name not in keys}


def assert_refused(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
    *,
    told: int = 0,
) -> None:
    """One line on stderr, after others that tell what goes on; exit code 2; files as they were."""
    before = files(folder)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1 + told
    line = err.splitlines()[-1]
    assert line.startswith(f"sketchlayers {arguments[0]}: ") and message in line
    assert files(folder) == before
