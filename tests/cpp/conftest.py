"""Compiles the C++ programs that Python tests run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch.utils import cpp_extension

from sketchlayers._extension import LIBRARY

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds a program from one source, linked to the library that Python has loaded."""
    folder = tmp_path_factory.mktemp("programs")

    def build(source: str) -> Path:
        name = Path(source).stem
        (folder / name).mkdir()
        cpp_extension.load(
            name,
            [str(ROOT / source)],
            extra_cflags=["-O1"],
            extra_include_paths=[str(ROOT / "csrc")],
            # A program may know the operators by name alone.
            extra_ldflags=["-Wl,--no-as-needed", str(LIBRARY), f"-Wl,-rpath,{LIBRARY.parent}"],
            build_directory=str(folder / name),
            is_python_module=False,
            is_standalone=True,
        )
        return folder / name / name

    return build
