"""The benchmark of whole networks, on a network small enough for a test."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from torch import nn

import benchmark
from benchmark import SUBJECTS, Subject


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 10),
    )


SMALL = Subject(small, size=8, rate=0.5, batches=(2, 1), mixings=("channel", "spatial"))


@pytest.fixture(autouse=True)
def only_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUBJECTS, "small", SMALL)


def test_networks_are_measured_into_a_table_a_csv_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(tmp_path / "networks.csv"), str(tmp_path / "networks.png")]
    measured = ["--networks=small", "--seconds=0.001", "--device=cpu", "--channels-last"]
    code = benchmark.main([*measured, f"--csv={files[0]}", f"--png={files[1]}"])
    assert code == 0
    printed = capsys.readouterr().out
    assert "channel" in printed and "memory" in printed
    with open(files[0]) as file:
        rows = list(csv.DictReader(file))
    assert [(r["method"], r["format"]) for r in rows[:4]] == [
        ("channel", "nchw"),
        ("channel", "nhwc"),
        ("spatial", "nchw"),
        ("spatial", "nhwc"),
    ]
    assert len(rows) == 16
    for r in rows:
        assert float(r["memory"]) > 0
        assert float(r["speed_low"]) <= float(r["speed"]) <= float(r["speed_high"])
        assert r["torch"] == torch.__version__.split("+")[0] or r["torch"] == torch.__version__
        assert r["hardware"]
    assert Path(files[1]).stat().st_size > 0


def test_the_plan_measures_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "measure", lambda *_: pytest.fail("measured"))
    assert benchmark.main(["--plan", "--device", "cpu", "--networks", "small", "ninn"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "small at rate 0.5, channel and spatial mixing, 8x8, forward, batch 2"
    assert len(lines) == 4 + 2 + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds", "0"], "--seconds: must be positive (got 0.0)"),
        (["--png", "nowhere/at/all.png"], "--png: its folder must exist"),
        (["--threads", "0"], "--threads: must be at least 1 (got 0)"),
    ],
)
def test_bad_arguments_are_told_before_any_work(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(benchmark, "measure", lambda *_: pytest.fail("measured"))
    assert benchmark.main(["--device", "cpu", *arguments]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
