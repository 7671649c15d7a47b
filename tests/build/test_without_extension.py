"""The package without its compiled extension: left out, damaged, or of another PyTorch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import without_extension  # the script beside this file

import sketchlayers
from sketchlayers import _extension
from sketchlayers._extension import installation

SCRIPT = Path(without_extension.__file__)
METADATA = "Metadata-Version: 2.1\nName: sketchlayers\nVersion: {}\nRequires-Dist: torch{}\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: {}\nTag: {}\n"


@pytest.fixture(scope="module")
def sketched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network of sketched layers, as a file of ours and pickled."""
    folder = tmp_path_factory.mktemp("sketched")
    model, _ = sketchlayers.compress(
        without_extension.network(), "sketch", rate=0.5, init="random", seed=0
    )
    sketchlayers.save(model, folder / "sketched.safetensors")
    torch.save(model, folder / "sketched.pt")
    return folder


def install(folder: Path, *, pure: bool, torch_requirement: str = ">=2.11") -> Path:
    """Copies the package without its extension, with the records that pip would leave.

    Returns:
        The package's folder.
    """
    package = folder / "sketchlayers"
    shutil.copytree(installation.PACKAGE, package, ignore=shutil.ignore_patterns("*.so", "__py*"))
    records = folder / f"sketchlayers-{sketchlayers.__version__}.dist-info"
    records.mkdir()
    (records / "METADATA").write_text(METADATA.format(sketchlayers.__version__, torch_requirement))
    tag = "py3-none-any" if pure else "cp311-cp311-linux_x86_64"
    (records / "WHEEL").write_text(WHEEL.format(str(pure).lower(), tag))
    return package


def run(folder: Path, *arguments: str | Path) -> str:
    """What Python prints with the package in this folder, in a process of its own."""
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=folder,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_package_that_was_built_without(tmp_path: Path, sketched: Path) -> None:
    install(tmp_path, pure=True)
    assert "works without" in run(tmp_path, SCRIPT, sketched)


WITH_A_DAMAGED_LIBRARY = """
import torch, sketchlayers
from sketchlayers.cli import main as cli

layer = torch.nn.Linear(12, 12)
images = [torch.randn(64, 12)]
small, _ = sketchlayers.compress(layer, "svd", rate=0.7, calibration=images)
print(type(small).__name__)
try:
    sketchlayers.SKLinear(12, 12, rate=0.5)
except ImportError as error:
    print(error)
print(cli.main(["doctor"]))
"""


def test_a_library_that_does_not_load_is_not_taken_for_one_left_out(tmp_path: Path) -> None:
    package = install(tmp_path, pure=False)
    (package / "libsketchlayers.so").write_text("no library")
    (package / f"_C.{sys.implementation.cache_tag}-x86_64-linux-gnu.so").write_text("no module")
    compressed, message, *report, status = run(tmp_path, "-c", WITH_A_DAMAGED_LIBRARY).splitlines()
    assert compressed == "LowRankLinear"
    what = "the compiled extension cannot be loaded (OSError: "
    assert message.startswith(f"SKLinear cannot be used: {what}")
    assert "type pip install" in message
    assert report[-2].startswith(f"Wrong: {what}")
    assert status == "1"


def test_a_library_for_another_pytorch_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "required_torch", lambda: "torch==2.10.*")
    monkeypatch.setattr(_extension, "problem", _extension.problem.__wrapped__)  # not the cached one
    message = "SKLinear cannot be used: the compiled extension was built for torch==2\\.10"
    with pytest.raises(ImportError, match=message):
        sketchlayers.SKLinear(4, 4, rate=0.5)
    sketchlayers.LowRankLinear(4, 4, rank=1)
