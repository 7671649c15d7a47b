"""What the package and its repository say about themselves."""

from __future__ import annotations

import importlib.metadata
import os
import re
import tomllib
from pathlib import Path

import torch
import yaml

import sketchlayers
from sketchlayers import _extension
from sketchlayers._extension.installation import LIBRARY

ROOT = Path(__file__).resolve().parents[2]
BUILD = _extension.load().build_info()
with (ROOT / "pyproject.toml").open("rb") as file:
    PYPROJECT = tomllib.load(file)
EXTRAS: dict[str, list[str]] = PYPROJECT["project"]["optional-dependencies"]


def test_one_version_everywhere() -> None:
    assert importlib.metadata.version("sketchlayers") == sketchlayers.__version__
    assert BUILD["version"] == sketchlayers.__version__


def test_minor_version_of_pytorch_is_pinned() -> None:
    requirements = importlib.metadata.requires("sketchlayers") or []
    needed = [line for line in requirements if "extra ==" not in line]
    others = PYPROJECT["tool"]["sketchlayers"]["dependencies"]
    built_for = re.match(r"\d+\.\d+", BUILD["torch"])
    assert built_for is not None
    assert needed == [f"torch=={built_for.group()}.*", *others]
    assert torch.__version__.startswith(built_for.group() + ".")


def test_console_script() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="sketchlayers")
    assert script.value == "sketchlayers.cli.main:main"


def test_extras_that_are_named_exist() -> None:
    """In messages, docstrings and pages: those for users are there, and no other is named."""
    assert {"cli", "plot", "docs", "dev"} <= EXTRAS.keys()
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("experiments/*")]
    for path in [*pages, *(ROOT / "python").rglob("*.py")]:
        if path.suffix in (".md", ".py"):
            for extras in re.findall(r"(?:sketchlayers|\"\.)\[([\w,-]+)\]", path.read_text()):
                assert set(extras.split(",")) <= EXTRAS.keys(), f"{path} names [{extras}]"


def test_a_package_has_the_same_bound_in_every_extra() -> None:
    """The Makefile joins the lists of several extras, so that none may refer to another one."""
    bounds: dict[str, str] = {}
    for requirement in (line for extra in EXTRAS.values() for line in extra):
        name = re.match(r"[\w.-]+", requirement)
        assert name is not None and name.group() != "sketchlayers"
        assert bounds.setdefault(name.group(), requirement) == requirement


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_citation() -> None:
    """What the Citation File Format 1.2.0 requires, of this version and with both papers."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"] and citation["title"] == PYPROJECT["project"]["name"]
    assert citation["version"] == sketchlayers.__version__
    assert citation["license"] == PYPROJECT["project"]["license"]
    assert all("name" in author or "family-names" in author for author in citation["authors"])
    for paper in citation["references"]:
        assert {"type", "title", "authors"} <= paper.keys()
    assert [paper["year"] for paper in citation["references"]] == [2018, 2025]


def test_changelog_begins_with_this_version() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert next(name for name in headings if name != "Unreleased") == sketchlayers.__version__


def test_workflow_runs_continuous_integration() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"] and os.access(ROOT / ".ci" / "run", os.X_OK)
    assert job["timeout-minutes"] > 45, "what .ci/run may take on two cores"


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
