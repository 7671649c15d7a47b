"""A wheel for machines without a C++ compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = "from setuptools import build_meta; print(build_meta.build_wheel({!r}))"


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"SKETCHLAYERS_NO_EXTENSION": "1"}, "SKETCHLAYERS_NO_EXTENSION is set"),
        ({"PATH": "", "CXX": ""}, "there is no C++ compiler"),
    ],
)
def test_a_wheel_of_python_alone(environment: dict[str, str], reason: str, tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    sources.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    shutil.copytree(
        ROOT / "python", sources / "python", ignore=shutil.ignore_patterns("*.so", "*.egg-info")
    )
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(str(tmp_path))],
        cwd=sources,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "installing without the compiled extension" in done.stdout and reason in done.stdout
    [wheel] = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        needed = files.read(metadata).decode()
    assert "sketchlayers/py.typed" in names
    assert not any(name.endswith(".so") for name in names)
    assert "Requires-Dist: torch>=2.11\n" in needed
