"""What the doctor says about installations that are broken in every way it knows."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import sketchlayers
from sketchlayers import _extension
from sketchlayers._extension import installation, toolkit
from sketchlayers.cli import doctor
from sketchlayers.cli.doctor import Facts, Gpu

BUILD = {
    "version": sketchlayers.__version__,
    "torch": "2.15.0+cu132",
    "cuda": "13.0",
    "cuda_archs": "8.0;9.0+PTX",
    "compiler": "gcc 12.2.0",
    "openmp": True,
}
HEALTHY = Facts(
    torch="2.15.1+cu132",
    torch_cuda="13.2",
    required_torch="torch==2.15.*",
    build=BUILD,
    gpus=(Gpu("NVIDIA A100", (8, 0)),),
    toolkit=toolkit.Choice(toolkit.Toolkit(Path("/cuda"), "13.0", "system"), ""),
)
CPU_BUILD = {**BUILD, "cuda": None, "cuda_archs": ""}
NO_TOOLKIT = toolkit.Choice(None, "no nvcc was found")


def test_healthy_installation() -> None:
    assert doctor.diagnose(HEALTHY) is None
    report = doctor.render(HEALTHY, None)
    assert report.endswith("All is well.")
    for seen in ("2.15.1+cu132", "gcc 12.2.0", "8.0;9.0+PTX", "NVIDIA A100 (8.0)"):
        assert seen in report


def test_cpu_build_without_gpu_is_healthy() -> None:
    assert doctor.diagnose(dataclasses.replace(HEALTHY, build=CPU_BUILD, gpus=())) is None


def test_an_installation_without_the_extension_is_sound_and_says_so() -> None:
    facts = dataclasses.replace(
        HEALTHY, build=None, pure=True, missing=("libsketchlayers.so", "_C"), required_torch=None
    )
    assert doctor.diagnose(facts) is None
    report = doctor.render(facts, None)
    assert "All is well, but sketchlayers was built without its compiled extension" in report
    assert "with a C++ compiler" in report
    assert "PyTorch must be" in doctor.diagnose(dataclasses.replace(facts, torch="2.9.1")).what


@pytest.mark.parametrize(
    ("changes", "what", "remedy"),
    [
        (
            {"torch": None, "torch_error": "ModuleNotFoundError: No module named 'torch'"},
            "PyTorch cannot be imported (ModuleNotFoundError: No module named 'torch')",
            "pip install torch",
        ),
        ({"torch": "2.9.1"}, "must be 2.11 or newer (got 2.9.1)", "pip install --upgrade torch"),
        ({"missing": ("_C",), "build": None}, "not there, or was built for another Python", "pip"),
        (
            {"torch": "2.14.0", "build": None, "load_error": "undefined symbol"},
            "built for torch==2.15.*, not for the PyTorch 2.14.0",
            "--no-build-isolation",
        ),
        (
            {"build": None, "load_error": "ImportError: libgomp.so.1"},
            "cannot be loaded (ImportError: libgomp.so.1)",
            "--no-build-isolation",
        ),
        (
            {"torch": "2.14.0", "required_torch": None},
            "built for PyTorch 2.15.0+cu132",
            "--no-build-isolation",
        ),
        ({"build": {**BUILD, "version": "0.0.9"}}, "is of version 0.0.9", "--no-build-isolation"),
        (
            {"build": CPU_BUILD},
            "has a GPU (NVIDIA A100) and this build is for CPU only",
            "pip install --no-build-isolation",
        ),
        (
            {"build": CPU_BUILD, "toolkit": NO_TOOLKIT},
            "CPU only",
            'pip install "cuda-toolkit[nvcc,cccl]==13.2.*", then',
        ),
        (
            {"gpus": (Gpu("NVIDIA V100", (7, 0)),)},
            "NVIDIA V100 has compute capability 7.0",
            'TORCH_CUDA_ARCH_LIST="7.0"',
        ),
    ],
)
def test_first_thing_that_is_wrong(changes: dict[str, object], what: str, remedy: str) -> None:
    facts = dataclasses.replace(HEALTHY, **changes)  # type: ignore[arg-type]
    problem = doctor.diagnose(facts)
    assert problem is not None
    assert what in problem.what
    assert remedy in problem.remedy
    assert problem.what in doctor.render(facts, problem)


@pytest.mark.parametrize(
    ("architectures", "capability", "covered"),
    [
        ("8.0;9.0+PTX", (8, 0), True),
        ("8.0;9.0+PTX", (8, 9), True),  # machine code of the same major version
        ("8.0;9.0+PTX", (12, 0), True),  # PTX
        ("8.0;9.0+PTX", (7, 5), False),
        ("8.6 9.0", (8, 0), False),
        ("8.0;9.0", (10, 0), False),
        ("9.0a", (9, 0), True),
        ("9.0a+PTX", (10, 0), False),
        ("Hopper", (9, 0), True),
    ],
)
def test_architectures_that_run(
    architectures: str, capability: tuple[int, int], covered: bool
) -> None:
    assert doctor.covers(architectures, capability) == covered


def test_missing_files(tmp_path: Path) -> None:
    missing_files = installation.missing_files
    assert missing_files(tmp_path) == ("libsketchlayers.so", "_C")
    (tmp_path / "libsketchlayers.so").touch()
    (tmp_path / "_C.cpython-27-x86_64-linux-gnu.so").touch()
    assert missing_files(tmp_path) == ("_C",)
    (tmp_path / f"_C.{sys.implementation.cache_tag}-x86_64-linux-gnu.so").touch()
    assert missing_files(tmp_path) == ()


def test_works_without_pytorch(tmp_path: Path) -> None:
    (tmp_path / "sketchlayers").symlink_to(Path(sketchlayers.__file__).parent)
    result = subprocess.run(
        [sys.executable, "-S", "-m", "sketchlayers"],  # -S: without site-packages
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert result.returncode == 1, result.stderr
    assert "Wrong: PyTorch cannot be imported" in result.stdout
    assert "Type:  pip install torch" in result.stdout


def test_a_library_for_another_pytorch_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(installation, "required_torch", lambda: "torch==2.10.*")
    monkeypatch.setattr(_extension, "load", fail)
    problem = doctor.diagnose(doctor.examine())
    assert problem is not None
    assert "built for torch==2.10.*" in problem.what


def test_this_installation_is_healthy() -> None:
    problem = doctor.diagnose(doctor.examine())
    assert problem is None, problem
