"""The script of ``make gpu``, with programs in the place of Python and of the sanitizer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "gpu" / "run.sh"
STEPS = ["build", "kernels", "tests", "figures"]

PYTHON = """#!/bin/sh
case "$*" in
  *get_device_name*) echo "NVIDIA Example" ;;
  *doctor*) echo "a kernel is wrong"; exit 3 ;;
  *) echo "called with: $*" ;;
esac
"""
SANITIZER = """#!/bin/sh
echo "called with: $*"
"""


def run(
    folder: Path, python: str, *, path: str = os.environ["PATH"]
) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHON": python, "GPU_RUNS": str(folder / "runs"), "PATH": path}
    return subprocess.run(["bash", SCRIPT], capture_output=True, text=True, env=environment)


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_sentence(tmp_path: Path) -> None:
    result = run(tmp_path, sys.executable)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("make gpu: there must be a GPU that PyTorch can use")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_step_that_fails_does_not_stop_the_next(tmp_path: Path) -> None:
    python = program(tmp_path / "python", PYTHON)
    program(tmp_path / "compute-sanitizer", SANITIZER)
    result = run(tmp_path, str(python), path=f"{tmp_path}:{os.environ['PATH']}")
    assert result.returncode == 1
    lines = (tmp_path / "runs" / "summary.txt").read_text().splitlines()
    assert lines[0] == "NVIDIA Example"
    statuses = {line.split()[0]: line.split()[3] for line in lines[1:]}
    assert statuses == {**dict.fromkeys([*STEPS, "memcheck", "racecheck"], "0"), "kernels": "3"}
    assert (tmp_path / "runs" / "kernels.txt").read_text() == "a kernel is wrong\n"
    tests = (tmp_path / "runs" / "tests.txt").read_text()
    assert "-m pytest -m gpu" in tests
    assert "tests/gpu/test_cuda_kernels.py" in tests
    assert "--tool racecheck" in (tmp_path / "runs" / "racecheck.txt").read_text()


def test_without_the_sanitizer_its_steps_are_skipped(tmp_path: Path) -> None:
    python = program(tmp_path / "python", PYTHON.replace("exit 3", "exit 0"))
    program(tmp_path / "compute-sanitizer", "#!/bin/sh\nexit 1\n")
    result = run(tmp_path, str(python), path=f"{tmp_path}:{os.environ['PATH']}")
    assert result.returncode == 0
    names = [line.split()[0] for line in result.stdout.splitlines()[1:]]
    assert names == [*STEPS, "memcheck"]
    assert "skipped" in result.stdout


def test_the_limits_leave_time_in_nine_minutes() -> None:
    """The limits of all steps, of both tools and of the trial whether these run."""
    words = [line.split() for line in SCRIPT.read_text().splitlines()]
    limits = [int(line[2]) for line in words if line[:1] == ["step"]]
    tools = [int(line[2]) for line in words if line[:2] == ["step", '"$1"']]
    trial = [int(line[2]) for line in words if line[:2] == ["if", "timeout"]]
    assert sum(limits) + sum(tools) + sum(trial) <= 9 * 60
