"""Compiles the C++ programs that Python tests run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from sketchlayers._extension.installation import LIBRARY

ROOT = Path(__file__).resolve().parents[2]


def link_flags() -> list[str]:
    """Those of a program that uses the library as Python has loaded it."""
    torch_libraries = [
        f"-L{cpp_extension.TORCH_LIB_PATH}",
        f"-Wl,-rpath,{cpp_extension.TORCH_LIB_PATH}",
    ]
    if torch.version.cuda is not None:
        # What our library needs of them is then found as they find it: before it, and by them.
        torch_libraries += ["-lc10_cuda", "-ltorch_cuda"]
    # A program may know the operators, and need CUDA, by name alone.
    return ["-Wl,--no-as-needed", *torch_libraries, str(LIBRARY), f"-Wl,-rpath,{LIBRARY.parent}"]


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
            extra_ldflags=link_flags(),
            build_directory=str(folder / name),
            is_python_module=False,
            is_standalone=True,
        )
        return folder / name / name

    return build
