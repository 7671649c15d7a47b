"""What the installed package says about itself."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

import torch

import sketchlayers
from sketchlayers import _extension
from sketchlayers._installation import LIBRARY

ROOT = Path(__file__).resolve().parents[2]
BUILD = _extension.load().build_info()


def test_one_version_everywhere() -> None:
    assert importlib.metadata.version("sketchlayers") == sketchlayers.__version__
    assert BUILD["version"] == sketchlayers.__version__


def test_minor_version_of_pytorch_is_pinned() -> None:
    requirements = importlib.metadata.requires("sketchlayers") or []
    needed = [line for line in requirements if "extra ==" not in line]
    with (ROOT / "pyproject.toml").open("rb") as file:
        others = tomllib.load(file)["tool"]["sketchlayers"]["dependencies"]
    built_for = re.match(r"\d+\.\d+", BUILD["torch"])
    assert built_for is not None
    assert needed == [f"torch=={built_for.group()}.*", *others]
    assert torch.__version__.startswith(built_for.group() + ".")


def test_console_script() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="sketchlayers")
    assert script.value == "sketchlayers.cli:main"


def test_library_has_no_python() -> None:
    """C++ programs link the operators without any Python."""
    content = LIBRARY.read_bytes()
    assert b"libtorch_cpu.so" in content
    for forbidden in (rb"libpython", rb"libtorch_python", rb"\0Py[A-Za-z]+_[A-Z]\w*\0"):
        assert re.search(forbidden, content) is None


def test_no_standard_or_architecture_is_forced() -> None:
    """PyTorch sets both, and another flag would contradict it."""
    for name in ("setup.py", "pyproject.toml", "Makefile"):
        text = (ROOT / name).read_text()
        assert "-std=" not in text
        assert "gencode" not in text
