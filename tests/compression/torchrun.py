"""Runs a script of these tests in two processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def in_two_processes(worker: Path, out: Path) -> None:
    """Runs the script by ``torchrun``, with a folder for its results as argument."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(worker), str(out)]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr[-3000:]
