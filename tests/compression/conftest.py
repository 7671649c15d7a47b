"""What several files of this folder take from one job of two processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from .torchrun import in_two_processes


@pytest.fixture(scope="session")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what every worker of `gloo_job` wrote, each in a folder of its name."""
    out = tmp_path_factory.mktemp("processes")
    in_two_processes(Path(__file__).with_name("gloo_job.py"), out)
    return out
