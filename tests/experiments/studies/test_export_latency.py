"""The benchmark of exported networks, on a network small enough for a test."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from torch import nn

from studies import export_latency
from study import main


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    def network() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 24, 3, padding=1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(24, 10),
        )

    monkeypatch.setitem(export_latency.NETWORKS, "small", network)


def test_onnx_runtime_is_measured_into_a_table_and_a_csv(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    file = tmp_path / "latency.csv"
    options = ["--networks=small", "--size=12", "--runtimes=onnx", "--seconds=0.01"]
    options += ["--methods", "svd", "sketch"]
    assert main(["export_latency", *options, "--rate=0.6", f"--csv={file}"]) == 0
    assert "speed" in capsys.readouterr().out
    with open(file, newline="") as rows:
        table = list(csv.DictReader(rows))
    assert [row["method"] for row in table] == ["svd", "sketch"]
    for row in table:
        assert 0.2 < float(row["multiply_adds"]) <= 0.65
        assert float(row["speed_low"]) <= float(row["speed"]) <= float(row["speed_high"])
        assert float(row["ms"]) > 0 and int(row["rounds"]) >= 7


def test_wrong_arguments_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export_latency", "--threads=0"]) == 2
    assert "--threads" in capsys.readouterr().err
