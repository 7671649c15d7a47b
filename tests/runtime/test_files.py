"""Files are written whole or not at all, whatever else is written or was left there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sketchlayers._runtime.files import written_whole


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "it"
    stale = tmp_path / f".it.{os.getpid()}.tmp"
    stale.write_text("half of")
    with written_whole(path) as temporary:
        temporary.write_text("all")
    assert path.read_text() == "all" and stale.read_text() == "half of"
    assert sorted(tmp_path.iterdir()) == [stale, path]


def test_writers_of_one_process_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "it"
    with written_whole(path) as first, written_whole(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # that which ended last
    assert list(tmp_path.iterdir()) == [path]


def test_after_an_error_the_old_file_is_there_alone(tmp_path: Path) -> None:
    path = tmp_path / "it"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), written_whole(path) as temporary:
        temporary.write_text("new")
        raise OSError("the disk is full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_modes_are_those_that_the_user_wants(mask: int, tmp_path: Path) -> None:
    """Whatever a writer makes of the temporary file."""
    before = os.umask(mask)
    try:
        with written_whole(tmp_path / "it") as temporary:
            temporary.chmod(0o400)
    finally:
        os.umask(before)
    assert (tmp_path / "it").stat().st_mode & 0o777 == 0o666 & ~mask
