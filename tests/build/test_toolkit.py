"""Which CUDA toolkit is found, preferred and refused, with toolkits made of files."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from sketchlayers._extension import toolkit as finder
from sketchlayers._extension.toolkit import Toolkit, ToolkitError

HOPPER = [(9, 0)]


def make_toolkit(home: Path, version: str, architectures: str = "") -> Path:
    """A folder that looks like a toolkit: an nvcc that answers like the real one."""
    nvcc = home / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(
        "#!/bin/sh\n"
        f'[ "$1" = --version ] && echo "Cuda compilation tools, release {version}, V{version}.48"\n'
        f'[ "$1" = --dryrun ] && echo "#$ TOP={home}/bin/.." >&2\n'
        f'[ "$1" = --list-gpu-arch ] && printf "{architectures}"\n'
        "exit 0\n"
    )
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)
    return home


def make_wrapper(folder: Path, nvcc: Path) -> Path:
    """A script called nvcc in another folder, as distributions install it."""
    folder.mkdir(parents=True)
    wrapper = folder / "nvcc"
    wrapper.write_text(f'#!/bin/sh\nexec {nvcc} "$@"\n')
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    return folder


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Nothing is found but what a test puts there."""
    monkeypatch.setattr(finder, "system_toolkits", lambda prefix: [])
    monkeypatch.setattr(finder, "nvidia_package_folders", list)
    return monkeypatch


def test_cpu_pytorch_needs_no_toolkit() -> None:
    choice = finder.choose(None, {}, gpus=HOPPER)
    assert choice.toolkit is None
    assert "without CUDA" in choice.reason


def test_order_of_preference(bare_machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    explicit = make_toolkit(tmp_path / "explicit", "13.1")
    on_path = make_toolkit(tmp_path / "path", "13.0")
    system = make_toolkit(tmp_path / "system", "13.2")
    package = make_toolkit(tmp_path / "package", "13.3")
    bare_machine.setattr(finder, "nvidia_package_folders", lambda: [package])

    def chosen(environ: dict[str, str]) -> tuple[Path, str]:
        toolkit = finder.choose("13.2", environ, gpus=HOPPER).toolkit
        assert toolkit is not None
        return toolkit.home, toolkit.version

    assert chosen({}) == (package, "13.3")
    bare_machine.setattr(finder, "system_toolkits", lambda prefix: [system])
    assert chosen({}) == (system, "13.2")
    path = {"PATH": str(on_path / "bin") + ":/bin"}
    assert chosen(path) == (on_path, "13.0")
    assert chosen({**path, "CUDA_HOME": str(explicit)}) == (explicit, "13.1")


def test_wrapper_script_is_followed(bare_machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = make_toolkit(tmp_path / "cuda", "13.0")
    folder = make_wrapper(tmp_path / "usr" / "bin", home / "bin" / "nvcc")
    assert finder.toolkit_home(str(folder / "nvcc")) == home
    toolkit = finder.choose("13.2", {"PATH": f"{folder}:/bin"}, gpus=HOPPER).toolkit
    assert toolkit == Toolkit(home, "13.0", "nvcc on PATH")


def test_other_major_version_is_passed_over(
    bare_machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = make_toolkit(tmp_path / "old", "12.4")
    bare_machine.setattr(finder, "system_toolkits", lambda prefix: [old])
    choice = finder.choose("13.2", {}, gpus=HOPPER)
    assert choice.toolkit is None
    assert "PyTorch needs CUDA 13.2" in choice.reason
    assert "12.4" in choice.reason

    fitting = make_toolkit(tmp_path / "fitting", "13.2")
    bare_machine.setattr(finder, "nvidia_package_folders", lambda: [fitting])
    toolkit = finder.choose("13.2", {}, gpus=HOPPER).toolkit
    assert toolkit is not None and toolkit.home == fitting


def test_force_cuda(bare_machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = make_toolkit(tmp_path / "cuda", "13.0")
    found = {"CUDA_HOME": str(home)}
    assert finder.choose("13.2", {**found, "FORCE_CUDA": "0"}, gpus=HOPPER).toolkit is None
    assert finder.choose("13.2", {**found, "FORCE_CUDA": "1"}, gpus=HOPPER).toolkit is not None
    with pytest.raises(ToolkitError, match=r"FORCE_CUDA=1 .* without CUDA"):
        finder.choose(None, {**found, "FORCE_CUDA": "1"}, gpus=HOPPER)
    with pytest.raises(ToolkitError, match=r'no nvcc .* pip install "cuda-toolkit\[nvcc,cccl\]'):
        finder.choose("13.2", {"FORCE_CUDA": "1"}, gpus=HOPPER)
    with pytest.raises(ValueError, match=r"FORCE_CUDA must be 0 or 1 \(got 'yes'\)"):
        finder.choose("13.2", {"FORCE_CUDA": "yes"}, gpus=HOPPER)


def test_without_a_gpu_cuda_must_be_asked_for(
    bare_machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = {"CUDA_HOME": str(make_toolkit(tmp_path / "cuda", "13.0"))}
    choice = finder.choose("13.2", found, gpus=[])
    assert choice.toolkit is None
    assert choice.reason.startswith("this machine has no GPU (FORCE_CUDA=1 ")
    listed = {**found, "TORCH_CUDA_ARCH_LIST": "8.0"}
    assert finder.choose("13.2", listed, gpus=[]).toolkit is not None
    assert finder.choose("13.2", {**found, "FORCE_CUDA": "1"}, gpus=[]).toolkit is not None


def test_architectures(bare_machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    new = {"CUDA_HOME": str(make_toolkit(tmp_path / "new", "12.8"))}
    known = "".join(f"compute_{number}\\\\n" for number in (50, 80, 90))
    old = {"CUDA_HOME": str(make_toolkit(tmp_path / "old", "12.6", known))}

    def architectures(environ: dict[str, str], gpus: list[tuple[int, int]], more: str = "") -> str:
        listed = {"TORCH_CUDA_ARCH_LIST": more} if more else {}
        environ = {**environ, **listed, "FORCE_CUDA": "1"}
        return finder.choose("12.9", environ, gpus=gpus).architectures

    assert architectures(new, [(9, 0), (8, 6), (9, 0)]) == "8.6;9.0"
    assert architectures(new, []) == architectures(new, HOPPER, "all") == "8.0;9.0;10.0+PTX"
    assert architectures(old, []) == "8.0;9.0+PTX"
    assert architectures(new, HOPPER, "8.0 9.0a") == "8.0 9.0a"
    with pytest.raises(ToolkitError, match=r"TORCH_CUDA_ARCH_LIST must list .* \(got 'Hopper'\)"):
        architectures(new, HOPPER, "Hopper")


def test_gpus_that_the_toolkit_does_not_know(
    bare_machine: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listed = "".join(f"compute_{number}\\\\n" for number in (75, 80, 90, 100))
    found = {"CUDA_HOME": str(make_toolkit(tmp_path / "cuda", "13.0", listed))}

    def architectures(*gpus: tuple[int, int]) -> str:
        return finder.choose("13.2", found, gpus=gpus).architectures

    assert architectures((8, 0), (10, 0)) == "8.0;10.0"
    assert architectures((8, 0), (6, 1)) == "8.0"
    assert architectures((12, 0)) == "10.0+PTX"
    choice = finder.choose("13.2", found, gpus=[(6, 1)])
    assert choice.toolkit is None and "compiles for no GPU of this machine" in choice.reason


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("9.0", "90-real"),
        ("8.0;9.0+PTX", "80-real;90"),
        ("8.6 10.0a,12.0", "86-real;100a-real;120-real"),
    ],
)
def test_architectures_as_cmake_writes_them(listed: str, expected: str) -> None:
    assert finder.cmake_architectures(listed) == expected


def test_empty_cuda_home_is_named(bare_machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    choice = finder.choose("13.2", {"CUDA_HOME": str(tmp_path)}, gpus=HOPPER)
    assert choice.toolkit is None
    assert f"no nvcc in CUDA_HOME={tmp_path}" in choice.reason


def test_newest_system_toolkit_comes_first(tmp_path: Path) -> None:
    for name in ("cuda-9.2", "cuda-13.0", "cuda-12.8"):
        make_toolkit(tmp_path / name, "1.0")
    (tmp_path / "cuda-14.0").mkdir()  # without a compiler
    assert [folder.name for folder in finder.system_toolkits(tmp_path)] == [
        "cuda-13.0",
        "cuda-12.8",
        "cuda-9.2",
    ]


def test_missing_headers_come_from_the_packages(tmp_path: Path) -> None:
    toolkit = Toolkit(tmp_path / "cuda", "13.0", "system")
    package = tmp_path / "nvidia" / "cu13"
    other = tmp_path / "nvidia" / "cudnn"
    for folder in (toolkit.home, package, other):
        (folder / "include").mkdir(parents=True)
    for header in finder.MATH_LIBRARY_HEADERS:
        (package / "include" / header).touch()
    assert finder.extra_include_folders(toolkit, [package, other]) == [package / "include"]

    for header in finder.MATH_LIBRARY_HEADERS:
        (toolkit.home / "include" / header).touch()
    assert finder.extra_include_folders(toolkit, [package, other]) == []


def test_runtime_library_without_a_development_link(tmp_path: Path) -> None:
    toolkit = Toolkit(tmp_path / "cuda", "13.0", "package index")
    package = tmp_path / "cu13"
    with pytest.raises(ToolkitError, match=r"libcudart\.so\.13 must be in"):
        finder.cuda_runtime_library(toolkit, [package])
    (package / "lib").mkdir(parents=True)
    library = package / "lib" / "libcudart.so.13"
    library.touch()
    assert finder.cuda_runtime_library(toolkit, [package]) == library

    (toolkit.home / "lib64").mkdir(parents=True)
    own = toolkit.home / "lib64" / "libcudart.so"
    own.touch()
    assert finder.cuda_runtime_library(toolkit, [package]) == own
