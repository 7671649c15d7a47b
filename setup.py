"""Builds the compiled extension with CMake; everything else about the package is in pyproject.toml.

Two libraries come out of ``csrc``, both inside the package:

- ``libsketchlayers.so``: the operators. No Python in it, so that C++ programs can link it.
- ``_C``: a thin pybind11 module beside it, which links the first.

Environment variables:

- ``SKETCHLAYERS_NO_EXTENSION=1`` leaves both out, as does a machine without a C++ compiler.
- ``FORCE_CUDA`` (1 demands CUDA, 0 does without), ``CUDA_HOME``, ``TORCH_CUDA_ARCH_LIST``: see
  ``python/sketchlayers/_extension/toolkit.py``.
- ``SKETCHLAYERS_BUILD_DIR``: the folder of object files, in place of one in ``build``.
- ``CXX``, ``CMAKE_ARGS``, ``MAX_JOBS``: as CMake and PyTorch know them.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import setuptools
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
LIBRARY = "sketchlayers.libsketchlayers"
MODULE = "sketchlayers._C"
OLDEST_SETUPTOOLS = 77  # knows the license expression in pyproject.toml
COMMANDS_THAT_COMPILE = {"bdist_wheel", "build", "build_ext", "develop", "dist_info"}
COMMANDS_THAT_COMPILE |= {"editable_wheel", "install"}


def load(name: str):
    """Loads a file of the package without importing the package, which is not built yet."""
    path = ROOT / "python" / "sketchlayers" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if int(setuptools.__version__.split(".")[0]) < OLDEST_SETUPTOOLS:
    raise SystemExit(
        f"sketchlayers needs setuptools {OLDEST_SETUPTOOLS} or newer to build (there is "
        f"{setuptools.__version__}): type `pip install --upgrade setuptools wheel cmake ninja`"
    )

toolkit_finder = load("_extension/toolkit")
version = load("_version")
OLDEST_TORCH = ".".join(map(str, version.OLDEST_TORCH))
SEARCH_PATH = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])

with (ROOT / "pyproject.toml").open("rb") as file:
    DEPENDENCIES = tomllib.load(file)["tool"]["sketchlayers"]["dependencies"]


class BuildWithCMake(build_ext):
    """Builds both libraries in one run of CMake, for the PyTorch of this environment."""

    def build_extensions(self) -> None:
        """Runs CMake and puts what it built where setuptools wants it."""
        import torch

        choice = choose_toolkit(torch)
        print(f"sketchlayers: {describe(torch, choice)}", flush=True)
        folder = build_folder(torch, choice)
        start_again_if_changed(folder, torch, choice)
        run(["cmake", "-S", str(ROOT), "-B", str(folder), *cmake_arguments(torch, choice)])
        jobs = ["--parallel", os.environ["MAX_JOBS"]] if os.environ.get("MAX_JOBS") else []
        run(["cmake", "--build", str(folder), "--target", "sketchlayers", "_C", *jobs])
        built = folder / "python"
        run(["cmake", "--install", str(folder), "--component", "python", "--prefix", str(built)])
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(built / target.name, target)

    def get_ext_filename(self, name: str) -> str:
        """The file of an extension; the library is no Python module and has no ABI suffix."""
        if name.endswith(LIBRARY.rpartition(".")[2]):
            return str(Path(*name.split("."))) + ".so"
        return super().get_ext_filename(name)


def run(command: list[str]) -> None:
    """Runs a command of CMake, which pip may have put beside a Python that is not on PATH."""
    environment = {**os.environ, "PATH": SEARCH_PATH}
    environment.pop("DESTDIR", None)  # is for what setuptools installs, not for the build folder
    if subprocess.run(command, env=environment).returncode:
        raise SystemExit(f"sketchlayers: this command failed: {shlex.join(command)}")


def choose_toolkit(torch):
    """What to compile; raises ``SystemExit`` where what was asked for cannot be."""
    try:
        return toolkit_finder.choose(torch.version.cuda, gpus=toolkit_finder.gpus(torch))
    except (ValueError, toolkit_finder.ToolkitError) as error:
        raise SystemExit(f"sketchlayers: {error}") from None


def start_again_if_changed(folder: Path, torch, choice) -> None:
    """Deletes the object files of another PyTorch, Python, compiler or place of the sources.

    CMake keeps what it has found, and does not look whether it is still there.
    """
    compilers = [os.environ.get("CXX"), str(choice.toolkit and choice.toolkit.home)]
    found = [str(ROOT), sys.executable, torch.__file__, torch.__version__, *compilers]
    found += [os.environ.get("CMAKE_ARGS"), shutil.which("ninja", path=SEARCH_PATH)]
    record, text = folder / "built_with.json", json.dumps(found)
    if folder.exists() and (not record.exists() or record.read_text() != text):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record.write_text(text)


def build_folder(torch, choice) -> Path:
    """Where object files live whoever asks for the build (pip gives a temporary folder).

    One folder for each configuration, so that a second build compiles what changed.
    """
    backend = "cuda" if choice.toolkit else "cpu"
    configuration = f"{sys.implementation.cache_tag}-torch{torch.__version__}-{backend}"
    return Path(os.environ.get("SKETCHLAYERS_BUILD_DIR") or ROOT / "build" / configuration)


def cmake_arguments(torch, choice) -> list[str]:
    """The configuration of the build."""
    arguments = [
        "-GNinja",
        "-DSKETCHLAYERS_PYTHON=ON",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DLIBTORCH_ROOT={Path(torch.__file__).parent}",
        f"-DSKETCHLAYERS_CUDA={'ON' if choice.toolkit else 'OFF'}",
    ]
    if choice.toolkit:
        packages = toolkit_finder.nvidia_package_folders()
        headers = toolkit_finder.extra_include_folders(choice.toolkit, packages)
        runtime = toolkit_finder.cuda_runtime_library(choice.toolkit, packages)
        architectures = toolkit_finder.cmake_architectures(choice.architectures)
        arguments += [
            f"-DCMAKE_CUDA_COMPILER={choice.toolkit.home / 'bin' / 'nvcc'}",
            # What CMake links to try the compiler, where the package index puts it.
            f"-DCMAKE_CUDA_FLAGS_INIT=-L{runtime.parent}",
            f"-DCMAKE_CUDA_ARCHITECTURES={architectures}",
            f"-DSKETCHLAYERS_CUDA_ARCHS={choice.architectures}",
            f"-DSKETCHLAYERS_CUDA_INCLUDE_DIRS={';'.join(map(str, headers))}",
            f"-DCUDA_CUDART={runtime}",
        ]
        if "CXX" in os.environ and "CUDAHOSTCXX" not in os.environ:
            arguments.append(f"-DCMAKE_CUDA_HOST_COMPILER={shlex.split(os.environ['CXX'])[-1]}")
    return arguments + shlex.split(os.environ.get("CMAKE_ARGS", ""))


def describe(torch, choice) -> str:
    """One line that says what is being built."""
    if choice.toolkit is None:
        return f"building for the CPU alone with PyTorch {torch.__version__}: {choice.reason}"
    return f"building for the CPU and {choice.toolkit}, architectures {choice.architectures}"


def why_no_extension() -> str:
    """Why the package is installed without its compiled extension; empty where it is compiled."""
    if os.environ.get("SKETCHLAYERS_NO_EXTENSION", "0") not in ("", "0"):
        return "SKETCHLAYERS_NO_EXTENSION is set"
    compilers = [*shlex.split(os.environ.get("CXX", ""))[:1], "c++", "g++", "clang++"]
    if not any(map(shutil.which, compilers)):
        return "there is no C++ compiler (on Debian and Ubuntu `apt install g++` brings one)"
    return ""


def check_environment() -> None:
    """Raises ``SystemExit`` with what to type where the build cannot succeed."""
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise SystemExit(
            "sketchlayers is compiled against the PyTorch of your environment, which is not "
            "there (or hidden by build isolation): type `pip install torch setuptools wheel "
            "cmake ninja`, then `pip install --no-build-isolation .`"
        ) from None
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        raise SystemExit(
            "sketchlayers needs the header files of this Python to build: install them (on "
            "Debian and Ubuntu `apt install python3-dev`), or set SKETCHLAYERS_NO_EXTENSION=1 "
            "to install without the sketched and hashed layers"
        )
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < version.OLDEST_TORCH:
        raise SystemExit(
            f"sketchlayers needs PyTorch {OLDEST_TORCH} or newer (there is {torch.__version__}): "
            "type `pip install --upgrade torch`"
        )
    missing = [tool for tool in ("cmake", "ninja") if not shutil.which(tool, path=SEARCH_PATH)]
    if missing:
        raise SystemExit(
            f"sketchlayers needs {' and '.join(missing)} to build: type `pip install "
            f"{' '.join(missing)}`"
        )


def compiled_part() -> dict:
    """The arguments of ``setup`` that depend on PyTorch and on the compiler."""
    without = {"install_requires": [f"torch>={OLDEST_TORCH}", *DEPENDENCIES]}
    if COMMANDS_THAT_COMPILE.isdisjoint(sys.argv):
        return without
    if reason := why_no_extension():
        if os.environ.get("FORCE_CUDA") == "1":
            raise SystemExit(f"sketchlayers: FORCE_CUDA=1 cannot be met: {reason}")
        print(
            "sketchlayers: installing without the compiled extension, so without sketched and "
            f"hashed layers: {reason}",
            flush=True,
        )
        return without
    check_environment()
    import torch

    choose_toolkit(torch)  # refuses what cannot be before anything is done

    minor = ".".join(torch.__version__.split(".")[:2])  # the library works with no other
    return {
        "install_requires": [f"torch=={minor}.*", *DEPENDENCIES],
        "ext_modules": [Extension(LIBRARY, []), Extension(MODULE, [])],
        "cmdclass": {"build_ext": BuildWithCMake},
    }


setup(**compiled_part())
