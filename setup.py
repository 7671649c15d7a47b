"""Builds the compiled part; everything else about the package is in pyproject.toml.

Two libraries come out of ``csrc``, both inside the package:

- ``libsketchlayers.so``: the operators. No Python in it, so that C++ programs can link it.
- ``_C``: a thin pybind11 module beside it, which links the first.

Environment variables: ``FORCE_CUDA`` (1 demands CUDA, 0 does without), ``CUDA_HOME``,
``TORCH_CUDA_ARCH_LIST``, ``MAX_JOBS``. ``python/sketchlayers/_toolkit.py`` tells how the toolkit
is found.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
import tomllib
from pathlib import Path

import setuptools
from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
LIBRARY = "sketchlayers.libsketchlayers"
MODULE = "sketchlayers._C"
OLDEST_SETUPTOOLS = 77  # knows the license expression in pyproject.toml
COMMANDS_THAT_COMPILE = {"bdist_wheel", "build", "build_ext", "develop", "dist_info"}
COMMANDS_THAT_COMPILE |= {"editable_wheel", "install"}


def load(name: str):
    """Loads a file of the package without importing the package, which is not built yet."""
    path = ROOT / "python" / "sketchlayers" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if int(setuptools.__version__.split(".")[0]) < OLDEST_SETUPTOOLS:
    raise SystemExit(
        f"sketchlayers needs setuptools {OLDEST_SETUPTOOLS} or newer to build (there is "
        f"{setuptools.__version__}): type `pip install --upgrade setuptools wheel ninja`"
    )

toolkit_finder = load("_toolkit")
version = load("_version")
VERSION = version.__version__


with (ROOT / "pyproject.toml").open("rb") as file:
    DEPENDENCIES = tomllib.load(file)["tool"]["sketchlayers"]["dependencies"]


def sources(*patterns: str) -> list[str]:
    return sorted(
        str(path.relative_to(ROOT))
        for pattern in patterns
        for path in (ROOT / "csrc").glob(pattern)
        if "python" not in path.parts
    )


def string_macro(text: str) -> str:
    return f'"{text}"'


def extensions(torch, cpp_extension, choice) -> list[Extension]:
    """The two libraries, with CUDA when a toolkit was chosen."""
    cuda = choice.toolkit is not None
    device = "cuda" if cuda else "cpu"
    include_dirs = [str(ROOT / "csrc"), *cpp_extension.include_paths(device)]
    libraries = ["c10", "torch", "torch_cpu"]
    library_files = []
    macros = [
        ("SKETCHLAYERS_VERSION", string_macro(VERSION)),
        ("SKETCHLAYERS_TORCH_VERSION", string_macro(torch.__version__)),
    ]
    if cuda:
        packages = toolkit_finder.nvidia_package_folders()
        extra = toolkit_finder.extra_include_folders(choice.toolkit, packages)
        include_dirs += [str(folder) for folder in extra]
        libraries += ["c10_cuda", "torch_cuda"]
        library_files = [str(toolkit_finder.cuda_runtime_library(choice.toolkit, packages))]
        macros += [
            ("SKETCHLAYERS_WITH_CUDA", None),
            ("SKETCHLAYERS_CUDA_VERSION", string_macro(choice.toolkit.version)),
            ("SKETCHLAYERS_CUDA_ARCHS", string_macro(os.environ["TORCH_CUDA_ARCH_LIST"])),
        ]

    flags = {"cxx": ["-O3", "-g0", "-fopenmp"], "nvcc": ["-O3", "-Xcompiler", "-fopenmp"]}
    # The torch folder is beside this package's in an installation; in an editable one its
    # libraries are found because Python has already loaded them.
    run_path = "-Wl,-rpath,$ORIGIN:$ORIGIN/../torch/lib"
    common = {
        "include_dirs": include_dirs,
        "library_dirs": [cpp_extension.TORCH_LIB_PATH],
        "define_macros": macros,
        "depends": sources("**/*.h", "**/*.cuh"),
        "language": "c++",
    }
    return [
        Extension(
            LIBRARY,
            sources("**/*.cpp", *(["**/*.cu"] if cuda else [])),
            libraries=libraries,
            extra_compile_args=flags,
            # Nothing may be left undefined, so no call of Python's can slip in.
            extra_link_args=[
                *library_files,
                "-fopenmp",
                "-Wl,--no-undefined",
                "-Wl,-soname,libsketchlayers.so",
                run_path,
            ],
            **common,
        ),
        Extension(
            MODULE,
            ["csrc/python/bindings.cpp"],
            libraries=libraries,
            extra_compile_args={"cxx": [*flags["cxx"], "-fvisibility=hidden"]},
            extra_link_args=["-fopenmp", run_path],
            **common,
        ),
    ]


def build_command(torch, cpp_extension, choice):
    """The build command for this PyTorch and this choice of toolkit."""

    class BuildLibraries(cpp_extension.BuildExtension):
        """Builds the operators first, then the Python module that links them."""

        def finalize_options(self) -> None:
            super().finalize_options()
            # Object files live here whoever asks for the build (pip gives a temporary folder),
            # one folder for each configuration, so that a second build compiles what changed.
            backend = "cuda" if choice.toolkit else "cpu"
            configuration = f"{sys.implementation.cache_tag}-torch{torch.__version__}-{backend}"
            self.build_temp = str(ROOT / "build" / "objects" / configuration)

        def build_extensions(self) -> None:
            print(f"sketchlayers: {describe(torch, choice)}", flush=True)
            super().build_extensions()

        def build_extension(self, extension: Extension) -> None:
            if extension.name == MODULE:
                extension.extra_link_args.append(self.get_ext_fullpath(LIBRARY))
            objects = self.build_temp
            self.build_temp = str(Path(objects) / extension.name)
            super().build_extension(extension)
            self.build_temp = objects

        def get_ext_filename(self, name: str) -> str:
            if name.endswith(LIBRARY.rpartition(".")[2]):  # not a Python module: no ABI suffix
                return str(Path(*name.split("."))) + ".so"
            return super().get_ext_filename(name)

    return BuildLibraries


def describe(torch, choice) -> str:
    """One line that says what is being built."""
    if choice.toolkit is None:
        return f"building for CPU only with PyTorch {torch.__version__}: {choice.reason}"
    architectures = os.environ["TORCH_CUDA_ARCH_LIST"]
    return f"building for CPU and {choice.toolkit}, architectures {architectures}"


def torch_requirement(torch) -> str:
    """The minor version of PyTorch that this build works with, and no other."""
    major, minor = torch.__version__.split(".")[:2]
    return f"torch=={major}.{minor}.*"


def compiled_part() -> dict:
    """The arguments of ``setup`` that depend on PyTorch."""
    try:
        import torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        if COMMANDS_THAT_COMPILE.isdisjoint(sys.argv):
            return {"install_requires": ["torch", *DEPENDENCIES]}
        raise SystemExit(
            "sketchlayers is compiled against the PyTorch of your environment, which is not "
            "there (or hidden by build isolation): type `pip install torch setuptools wheel "
            "ninja`, then `pip install --no-build-isolation .`"
        ) from None

    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        raise SystemExit(
            "sketchlayers needs the header files of this Python to build: install them (on "
            "Debian and Ubuntu `apt install python3-dev`)"
        )
    # Where pip puts ninja; not on PATH when the environment was not activated.
    os.environ["PATH"] += os.pathsep + sysconfig.get_path("scripts")

    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < version.OLDEST_TORCH:
        oldest = ".".join(map(str, version.OLDEST_TORCH))
        raise SystemExit(
            f"sketchlayers needs PyTorch {oldest} or newer (there is {torch.__version__}): type "
            "`pip install --upgrade torch`"
        )
    choice = toolkit_finder.choose(torch.version.cuda)
    if choice.toolkit is not None:
        os.environ["CUDA_HOME"] = str(choice.toolkit.home)
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", toolkit_finder.DEFAULT_ARCHITECTURES)
    from torch.utils import cpp_extension  # reads CUDA_HOME when imported

    return {
        "install_requires": [torch_requirement(torch), *DEPENDENCIES],
        "ext_modules": extensions(torch, cpp_extension, choice),
        "cmdclass": {"build_ext": build_command(torch, cpp_extension, choice)},
    }


setup(**compiled_part())
