"""Finds the CUDA toolkit and decides what to compile.

This file needs the standard library alone and imports nothing of the package: ``setup.py`` loads
it by its path before anything is installed, and ``sketchlayers doctor`` uses it to say what a
rebuild would do.

Where a toolkit is looked for, best first:

1. ``CUDA_HOME`` (or ``CUDA_PATH``). When set, nothing else is considered.
2. The ``nvcc`` on ``PATH``. It is asked where it lives, because it may be a wrapper script.
3. ``/usr/local/cuda``, then ``/usr/local/cuda-*``, the newest first.
4. The toolkit of the package index (``pip install "cuda-toolkit[nvcc,cccl]"``), which puts nvcc
   in ``site-packages/nvidia/cu<major>``.

The first whose CUDA major version is PyTorch's is taken: another major version cannot be linked
with PyTorch's libraries, another minor version can.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

DEFAULT_ARCHITECTURES = "8.0;9.0+PTX"
"""Architectures compiled for when TORCH_CUDA_ARCH_LIST does not say."""

MATH_LIBRARY_HEADERS = ("cublas_v2.h", "cublasLt.h", "cusparse.h", "cusolverDn.h")
"""Headers that PyTorch's own CUDA headers include and that a small toolkit may lack."""


class ToolkitError(RuntimeError):
    """CUDA was demanded and cannot be compiled for."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit.

    Attributes:
        home: The folder that has ``bin/nvcc``.
        version: Its CUDA version, such as ``"13.0"``.
        origin: Where it was found, for messages.
    """

    home: Path
    version: str
    origin: str

    @property
    def major(self) -> str:
        """The CUDA major version, such as ``"13"``."""
        return self.version.split(".")[0]

    def __str__(self) -> str:
        return f"CUDA {self.version} at {self.home} ({self.origin})"


@dataclass(frozen=True)
class Choice:
    """What will be compiled: with CUDA when there is a toolkit, and why."""

    toolkit: Toolkit | None
    reason: str


def choose(torch_cuda: str | None, environ: Mapping[str, str] | None = None) -> Choice:
    """Decides whether to compile the CUDA sources, and with which toolkit.

    Args:
        torch_cuda: ``torch.version.cuda`` of the PyTorch to build for.
        environ: Environment variables; ``os.environ`` when not given. ``FORCE_CUDA`` is ``1`` to
            demand CUDA and ``0`` to do without.

    Raises:
        ToolkitError: ``FORCE_CUDA=1`` and CUDA cannot be compiled for.
        ValueError: ``FORCE_CUDA`` is something else than 0 or 1.
    """
    environ = os.environ if environ is None else environ
    forced = environ.get("FORCE_CUDA", "")
    if forced not in ("", "0", "1"):
        raise ValueError(f"FORCE_CUDA must be 0 or 1 (got {forced!r})")
    if forced == "0":
        return Choice(None, "FORCE_CUDA=0")
    choice = _choose_toolkit(torch_cuda, environ)
    if forced == "1" and choice.toolkit is None:
        raise ToolkitError(f"FORCE_CUDA=1 cannot be met: {choice.reason}")
    return choice


def _choose_toolkit(torch_cuda: str | None, environ: Mapping[str, str]) -> Choice:
    if torch_cuda is None:
        return Choice(None, "this PyTorch was built without CUDA")
    found = list(find_toolkits(environ))
    for toolkit in found:
        if toolkit.major == torch_cuda.split(".")[0]:
            return Choice(toolkit, f"PyTorch is built for CUDA {torch_cuda}")
    if found:
        listed = ", ".join(str(toolkit) for toolkit in found)
        return Choice(None, f"PyTorch needs CUDA {torch_cuda} and there is only {listed}")
    if home := _cuda_home(environ):
        return Choice(None, f"there is no nvcc in CUDA_HOME={home}")
    return Choice(None, f"no nvcc was found; {install_hint(torch_cuda)} brings one")


def toolkit_requirement(torch_cuda: str) -> str:
    """The packages with the compiler and headers that PyTorch's CUDA version needs."""
    return f"cuda-toolkit[nvcc,cccl]=={torch_cuda}.*"


def install_hint(torch_cuda: str) -> str:
    """The command that brings a toolkit from the package index."""
    return f'pip install "{toolkit_requirement(torch_cuda)}"'


def find_toolkits(environ: Mapping[str, str]) -> Iterator[Toolkit]:
    """All toolkits of this machine, the preferred one first (see the module's description)."""
    for home, origin in _candidate_homes(environ):
        version = nvcc_version(home / "bin" / "nvcc")
        if version is not None:
            yield Toolkit(home, version, origin)


def _cuda_home(environ: Mapping[str, str]) -> str | None:
    return environ.get("CUDA_HOME") or environ.get("CUDA_PATH")


def _candidate_homes(environ: Mapping[str, str]) -> Iterator[tuple[Path, str]]:
    if home := _cuda_home(environ):
        yield Path(home), "CUDA_HOME"
        return
    nvcc = shutil.which("nvcc", path=environ.get("PATH", ""))
    if nvcc and (home_of_nvcc := toolkit_home(nvcc)):
        yield home_of_nvcc, "nvcc on PATH"
    for folder in system_toolkits(Path("/usr/local")):
        yield folder, "system"
    for folder in nvidia_package_folders():
        if (folder / "bin" / "nvcc").exists():
            yield folder, "package index"


def system_toolkits(prefix: Path) -> list[Path]:
    """``prefix/cuda`` and ``prefix/cuda-*``, the newest version first."""

    def version(folder: Path) -> tuple[int, ...]:
        return tuple(int(number) for number in re.findall(r"\d+", folder.name))

    folders = [prefix / "cuda", *sorted(prefix.glob("cuda-*"), key=version, reverse=True)]
    return [folder for folder in folders if (folder / "bin" / "nvcc").exists()]


def nvidia_package_folders() -> list[Path]:
    """Folders that NVIDIA's Python packages share, such as ``site-packages/nvidia/cu13``."""
    spec = importlib.util.find_spec("nvidia")
    locations = (spec.submodule_search_locations if spec else None) or []
    return sorted(
        folder for location in locations for folder in Path(location).iterdir() if folder.is_dir()
    )


def _run(command: list[str]) -> str | None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout + result.stderr if result.returncode == 0 else None


def toolkit_home(nvcc: str) -> Path | None:
    """The toolkit that a compiler belongs to, by asking it; its own place may mislead.

    A distribution may install ``nvcc`` as a script that calls the compiler of another folder.
    """
    output = _run([nvcc, "--dryrun", "--cuda", "any.cu"])
    if output is None:
        return None
    top = re.search(r"^#\$ TOP=(.+)$", output, re.MULTILINE)
    home = Path(top.group(1).strip()) if top else Path(nvcc).resolve().parent.parent
    return home.resolve()


def nvcc_version(nvcc: Path) -> str | None:
    """The CUDA version of a compiler, such as ``"13.0"``, or None when it does not run."""
    output = _run([str(nvcc), "--version"])
    release = re.search(r"release (\d+\.\d+)", output) if output else None
    return release.group(1) if release else None


def extra_include_folders(toolkit: Toolkit, packages: Iterable[Path]) -> list[Path]:
    """Folders with the headers of CUDA's mathematics libraries that the toolkit lacks.

    PyTorch's wheels depend on those libraries' packages, which have the headers.
    """
    own = toolkit.home / "include"
    missing = [header for header in MATH_LIBRARY_HEADERS if not (own / header).exists()]
    folders = [folder / "include" for folder in packages]
    return [folder for folder in folders if any((folder / header).exists() for header in missing)]


def cuda_runtime_library(toolkit: Toolkit, packages: Iterable[Path]) -> Path:
    """The shared CUDA runtime to link with.

    Its full path, because the packages have no ``libcudart.so`` that ``-lcudart`` would find.

    Raises:
        ToolkitError: There is none.
    """
    folders = [toolkit.home / "lib64", toolkit.home / "lib", *(p / "lib" for p in packages)]
    for folder in folders:
        for name in ("libcudart.so", f"libcudart.so.{toolkit.major}"):
            if (folder / name).exists():
                return folder / name
    raise ToolkitError(
        f"libcudart.so.{toolkit.major} must be in the toolkit or in NVIDIA's Python packages "
        f"(looked in {', '.join(str(folder) for folder in folders)})"
    )
