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
from typing import Any

ALL_ARCHITECTURES = ((8, 0), (9, 0), (10, 0))
"""Compute capabilities of a build that is to run anywhere: of wheels, and where there is no GPU."""

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
    """What will be compiled: with CUDA when there is a toolkit, and why.

    Attributes:
        toolkit: The toolkit to compile the CUDA sources with; None to leave them out.
        reason: Why, for messages.
        architectures: What to compile them for, such as ``"8.0;9.0+PTX"``.
    """

    toolkit: Toolkit | None
    reason: str
    architectures: str = ""


def choose(
    torch_cuda: str | None,
    environ: Mapping[str, str] | None = None,
    *,
    gpus: Iterable[tuple[int, int]],
) -> Choice:
    """Decides whether to compile the CUDA sources, with which toolkit and for which GPUs.

    A machine without a GPU gets the CPU's part alone, which compiles in a fraction of the time.

    Args:
        torch_cuda: ``torch.version.cuda`` of the PyTorch to build for.
        environ: Environment variables; ``os.environ`` when not given. ``FORCE_CUDA`` is ``1`` to
            demand CUDA and ``0`` to do without. ``TORCH_CUDA_ARCH_LIST`` lists compute
            capabilities, or is ``all``, and demands CUDA where a toolkit is found; when not given,
            those of the machine's GPUs are taken, and all where there is none.
        gpus: Compute capabilities of the machine's GPUs.

    Raises:
        ToolkitError: ``FORCE_CUDA=1`` and CUDA cannot be compiled for, or
            ``TORCH_CUDA_ARCH_LIST`` is something else than numbers.
        ValueError: ``FORCE_CUDA`` is something else than 0 or 1.
    """
    environ = os.environ if environ is None else environ
    forced = environ.get("FORCE_CUDA", "")
    if forced not in ("", "0", "1"):
        raise ValueError(f"FORCE_CUDA must be 0 or 1 (got {forced!r})")
    if forced == "0":
        return Choice(None, "FORCE_CUDA=0")
    capabilities = sorted(set(gpus))
    listed = environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if not (capabilities or forced or listed) and torch_cuda is not None:
        return Choice(None, "this machine has no GPU (FORCE_CUDA=1 compiles the CUDA kernels too)")
    choice = _choose_toolkit(torch_cuda, environ)
    if choice.toolkit is None:
        if forced:
            raise ToolkitError(f"FORCE_CUDA=1 cannot be met: {choice.reason}")
        return choice
    if not listed and capabilities:
        listed = architectures_for(capabilities, choice.toolkit)
        if not listed:
            return Choice(None, f"{choice.toolkit} compiles for no GPU of this machine")
    if listed.lower() in ("", "all"):
        listed = all_architectures(choice.toolkit)
    cmake_architectures(listed)  # raises for what is no list
    return Choice(choice.toolkit, choice.reason, listed)


def gpus(torch: Any) -> list[tuple[int, int]]:
    """The compute capabilities of the GPUs that a PyTorch can use."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]


def architectures_for(gpus: Iterable[tuple[int, int]], toolkit: Toolkit) -> str:
    """What to compile for some GPUs, in the form of ``TORCH_CUDA_ARCH_LIST``.

    GPUs that are newer than the toolkit get PTX of the newest that it knows, which the driver
    compiles; GPUs that it no longer compiles for get nothing.
    """
    known = known_architectures(toolkit)
    if not known:  # a compiler that does not tell
        return ";".join(f"{major}.{minor}" for major, minor in gpus)
    listed = {f"{gpu[0]}.{gpu[1]}": None for gpu in gpus if gpu in known}
    if any(gpu > max(known) for gpu in gpus):
        listed[f"{max(known)[0]}.{max(known)[1]}+PTX"] = None
    return ";".join(listed)


def known_architectures(toolkit: Toolkit) -> set[tuple[int, int]]:
    """The compute capabilities that a toolkit compiles for; empty where it does not tell."""
    output = _run([str(toolkit.home / "bin" / "nvcc"), "--list-gpu-arch"]) or ""
    return {(int(n[:-1]), int(n[-1])) for n in re.findall(r"compute_(\d+)\b", output)}


def all_architectures(toolkit: Toolkit) -> str:
    """The architectures of a build for any machine: those that the toolkit knows, and PTX."""
    known = known_architectures(toolkit) or ALL_ARCHITECTURES
    return ";".join(f"{gpu[0]}.{gpu[1]}" for gpu in ALL_ARCHITECTURES if gpu in known) + "+PTX"


def cmake_architectures(listed: str) -> str:
    """The same architectures as CMake writes them: ``"8.0;9.0+PTX"`` gives ``"80-real;90"``.

    Args:
        listed: In the form of ``TORCH_CUDA_ARCH_LIST``, with numbers.

    Raises:
        ToolkitError: There is something else in the list.
    """
    result = []
    for architecture in re.split(r"[;,\s]+", listed.strip()):
        match = re.fullmatch(r"(\d+)\.(\d+[a-z]?)(\+PTX)?", architecture)
        if match is None:
            raise ToolkitError(
                "TORCH_CUDA_ARCH_LIST must list compute capabilities, such as '8.0;9.0+PTX', or "
                f"be 'all' (got {listed!r})"
            )
        result.append(match.group(1) + match.group(2) + ("" if match.group(3) else "-real"))
    return ";".join(result)


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
