"""``sketchlayers doctor --device cuda``: what it says of kernels, and where there are none."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from sketchlayers import _extension
from sketchlayers.cli import cuda_kernels
from sketchlayers.cli.cuda_kernels import KernelReport
from sketchlayers.cli.main import main

FAST = KernelReport("channel_conv", "bfloat16", 2.8e-3, 3.1e-2, kernel_ms=0.1, composition_ms=0.4)
SLOW = KernelReport("sk_weight", "float32", 3.6e-7, 8.1e-6, kernel_ms=0.1, composition_ms=0.119)
WRONG = KernelReport("narrow_linear", "float16", 0.5, 3.9e-3, kernel_ms=0.1, composition_ms=0.2)
NAN = KernelReport("narrow_linear", "float32", float("nan"), 8e-6, 0.1, 0.2)
RAISES = KernelReport("sign_matrix", "int32", error="CUDA error: no kernel image")
EXACT = KernelReport("unpack_signs", "float64", 0.0, 0.0, kernel_ms=0.1, composition_ms=1.0)


@pytest.mark.parametrize(
    ("report", "passes"),
    [(FAST, True), (SLOW, True), (EXACT, True), (WRONG, False), (NAN, False), (RAISES, False)],
)
def test_what_passes(report: KernelReport, passes: bool) -> None:
    assert report.passes == passes


def test_rows_have_what_was_measured() -> None:
    for seen in ("channel_conv", "bfloat16", "2.8e-03", "3.1e-02", "pass", "0.100", "4.00"):
        assert seen in cuda_kernels.line(FAST)
    assert "FAIL" in cuda_kernels.line(WRONG)
    assert "error" in cuda_kernels.line(RAISES)
    widths = {len(cuda_kernels.line(report)) for report in (FAST, SLOW, WRONG, NAN, EXACT)}
    assert widths == {len(cuda_kernels.TABLE.header())}


def test_the_summary_names_wrong_and_slow_kernels() -> None:
    text = cuda_kernels.summary([FAST, SLOW, WRONG, RAISES])
    assert "sign_matrix in int32: CUDA error: no kernel image" in text
    assert "2 of 4 pass; failed: narrow_linear in float16, sign_matrix in int32" in text
    assert text.endswith("(less than 1.2 times as fast): sk_weight in float32")
    assert cuda_kernels.summary([FAST]).endswith("as fast): none")


def test_a_kernel_that_raises_is_a_row() -> None:
    def compare() -> None:
        raise RuntimeError("CUDA error: no kernel image\nmore lines")

    kernel = SimpleNamespace(family="sign_matrix", dtype="int32", compare=compare)
    assert cuda_kernels._report(kernel) == RAISES


@pytest.mark.parametrize(("reports", "status"), [([FAST, SLOW], 0), ([FAST, WRONG], 1)])
def test_the_whole_report(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    reports: list[KernelReport],
    status: int,
) -> None:
    build = SimpleNamespace(build_info=lambda: {"cuda": "13.0", "cuda_archs": "9.0"})
    monkeypatch.setattr(_extension, "load", lambda: build)
    monkeypatch.setattr(cuda_kernels, "why_not", lambda device: None)
    monkeypatch.setattr(cuda_kernels, "measure", lambda device: iter(reports))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Example")
    assert main(["doctor", "--device", "cuda:1"]) == status
    lines = capsys.readouterr().out.split("\n")
    assert lines[0].startswith("NVIDIA Example, PyTorch ")
    assert lines[0].endswith("kernels of CUDA 13.0 for 9.0")
    assert lines[2:] == [
        cuda_kernels.TABLE.header(),
        *map(cuda_kernels.line, reports),
        "",
        *cuda_kernels.summary(reports).split("\n"),
        "",
    ]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--device", "cuda"]) == 1
    output = capsys.readouterr().out
    assert output.startswith("The CUDA kernels cannot be checked: ")
    assert output.count("\n") == 1


@pytest.mark.parametrize(
    ("device", "available", "cuda", "reason"),
    [
        ("cuda", True, None, "was built for the CPU alone"),
        ("cuda", False, "13.0", "PyTorch can use no GPU of this machine"),
        ("cuda:3", True, "13.0", "there is no cuda:3 (PyTorch can use 2)"),
        ("cuda:1", True, "13.0", None),
    ],
)
def test_why_kernels_cannot_be_checked(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    available: bool,
    cuda: str | None,
    reason: str | None,
) -> None:
    build = SimpleNamespace(build_info=lambda: {"cuda": cuda})
    monkeypatch.setattr(_extension, "load", lambda: build)
    monkeypatch.setattr(_extension, "problem", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = cuda_kernels.why_not(device)
    assert (found is None) == (reason is None)
    assert reason is None or reason in (found or "")


def test_other_devices_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--device", "cpu"])
    assert "must be cuda or cuda:0, cuda:1, ... (got cpu)" in capsys.readouterr().err


@pytest.mark.parametrize("value", ["check", "on", "off", ""])
def test_the_mode_of_the_kernels(value: str) -> None:
    assert _mode(value) == (value or "check")


def test_a_wrong_mode_is_an_error_that_the_doctor_knows() -> None:
    expected = (
        "SKETCHLAYERS_CUDA_KERNELS must be check, on or off (got 'yes'): set it to one of them, or "
        "unset it to have kernels checked at their first use"
    )
    assert _mode("yes") == expected
    code = "from sketchlayers.cli.doctor import diagnose, examine; print(diagnose(examine()).what)"
    assert _python(code, "yes") == expected


def _mode(value: str) -> str:
    return _python(
        "from sketchlayers import _extension\n"
        "try: print(_extension.load().cuda_kernel_mode())\n"
        "except ValueError as error: print(error)",
        value,
    )


def _python(code: str, value: str) -> str:
    environment = {**os.environ, "SKETCHLAYERS_CUDA_KERNELS": value}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    return result.stdout.strip()
