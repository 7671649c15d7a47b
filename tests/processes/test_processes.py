"""Training, sharding and compressing in two processes; all checks run in one job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from compression.torchrun import in_two_processes

from . import worker


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """How every check ended in each process."""
    out = tmp_path_factory.mktemp("processes")
    in_two_processes(Path(worker.__file__), out)
    return [json.loads((out / f"ends-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("check", worker.CHECKS)
def test_it_holds_in_both(ends: list[dict[str, str]], check: str) -> None:
    for rank, end in enumerate(ends):
        assert end[check] == "passed", f"in process {rank}: {end[check]}"
