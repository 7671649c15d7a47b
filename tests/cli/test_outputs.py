"""``sketchlayers compress``: several rates, dry runs, and what else it writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sketchlayers
from sketchlayers.cli.main import main

from .command_line import assert_refused, files
from .photos import write_photos

pytest.importorskip("torchvision")

MODULE = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))
"""
MODEL = ["compress", "tiny_network:make", "--input-size", "3x24x24"]
SVD = [*MODEL, "--method", "svd", "--calibration", "photos", "--batch-size", "4"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "tiny_network", raising=False)
    Path("tiny_network.py").write_text(MODULE)
    write_photos(Path("photos"), ["a", "b", "c"], 4, size=(30, 28))
    return tmp_path


def test_several_rates(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SVD, "--val", "photos", "--rates", "0.8", "0.6"]
    assert main([*arguments, "--out", "s.safetensors", "--html", "r.html"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert "evaluation" in lines[1] and [line.split()[0] for line in lines[3:6]] == [
        *("original", "0.8", "0.6")
    ]
    assert {*files(folder)} == {
        *("tiny_network.py", "s-0.8.safetensors", "s-0.6.safetensors", "r-0.8.html", "r-0.6.html")
    }
    opened: dict[str, Any] = {}
    opening = next(line for line in err.splitlines() if line.startswith("open the last one"))
    exec(opening.partition(": ")[2], opened)
    sizes = [sum(p.numel() for p in opened["model"].parameters())]
    assert main([*arguments, "--json", "--budget", "flops_rate"]) == 0  # nothing has to be written
    printed = json.loads(capsys.readouterr().out)
    assert [row["rate_asked"] for row in printed["rows"]] == [0.8, 0.6]
    assert {row["budget"] for row in printed["rows"]} == {"flops_rate"}
    assert sizes[0] < 0.61 * printed["reports"][0]["parameters_before"]
    assert_refused(folder, capsys, [*arguments, "--html", "r.html"], "r-0.8.html exists; --force")


def test_the_smallest_that_loses_little(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SVD, "--max-drop", "100", "--val", "photos", "--out", "s.safetensors"]
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report["candidates"]) > 1 and report["evaluation"]["drop"] <= 1
    assert [one["chosen"] for one in report["candidates"]].count(True) == 1


def test_a_cache(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SVD, "--cache", "cache", "--json", "--out"]
    assert main([*arguments, "one.safetensors", "--rate", "0.8"]) == 0
    capsys.readouterr()
    assert main([*arguments, "two.safetensors", "--rate", "0.7"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert any(note.startswith("taken from the cache: ") for note in notes)
    wrong = [*SVD, "--cache", "one.safetensors", "--rate", "0.7", "--out", "three.safetensors"]
    assert_refused(folder, capsys, wrong, "--cache must be a folder")


def test_dry_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(folder)
    arguments = [*SVD, "--rate", "0.6", "--out", "s.safetensors", "--html", "r.html", "--dry-run"]
    assert main([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["init"] == "random" and report["method"] == "svd"
    assert report["parameters_after"] == pytest.approx(0.6 * report["parameters_before"], rel=0.05)
    assert report["latencies"][0]["images"] == 1
    assert "nothing was fitted or written" in err and "compressing will take about" in err
    one = sketchlayers.inspect(sys.modules["tiny_network"].make(), torch.zeros(1, 3, 24, 24))
    assert report["multiply_adds_before"] == one.multiply_adds
    assert main([*SVD, "--rates", "0.8", "0.6", "--dry-run"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-2:]] == ["0.8", "0.6"]
    assert main([*MODEL, "--rate", "2=0.5", "--method", "tucker2", "--dry-run", "-q"]) == 0
    assert capsys.readouterr().err == ""
    assert main([*MODEL, "--rate", "0.5", "--dry-run", "--json"]) == 0  # images are not needed
    assert json.loads(capsys.readouterr().out)["method"] == "auto"
    assert files(folder) == before


def test_excluded_layers_and_times(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SVD, "--rate", "0.9", "--exclude", "4", "--exclude", "7", "--json", "--force"]
    arguments += ["--out", "s.safetensors"]
    assert main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["reason"] for row in report["layers"]][2:] == ["excluded (exclude=)"] * 2
    assert [one["images"] for one in report["latencies"]] == [1, 4]
    assert main([*arguments, "--no-measure-latency"]) == 0
    assert json.loads(capsys.readouterr().out)["latencies"] == []
    assert_refused(folder, capsys, [*arguments, "--exclude", "8"], "a pattern must match", told=1)


def test_onnx(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    arguments = [*SVD, "--rate", "0.7", "--out", "s.safetensors", "--onnx", "s.onnx"]
    assert main(arguments) == 0
    make = sys.modules["tiny_network"].make
    small = sketchlayers.load("s.safetensors", into=make()).eval()
    session = runtime.InferenceSession("s.onnx")
    for images in (1, 5):
        x = torch.randn(images, 3, 24, 24)
        (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), small(x), rtol=1e-3, atol=1e-4)


def test_onnx_has_the_few_bits_of_the_weights(folder: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    assert main([*SVD, "--rate", "0.7", "--bits", "4", "--onnx", "s.onnx"]) == 0
    kinds = {one.data_type for one in onnx.load("s.onnx").graph.initializer}
    assert onnx.TensorProto.UINT8 in kinds


def test_onnx_needs_packages(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sketchlayers import onnx

    monkeypatch.setattr(onnx, "_PACKAGES", ("no_such_package",))
    message = "--onnx needs no_such_package, which is not installed"
    assert_refused(folder, capsys, [*SVD, "--rate", "0.7", "--onnx", "s.onnx"], message)


def test_wrong_combinations(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", "s.safetensors"]
    for arguments, message in [
        ([*SVD, "--rate", "0.5"], "--out FILE must say where"),
        ([*SVD, "--rate", "0.5", *out, "--html", "s.safetensors"], "must be different files"),
        ([*SVD, "--rate", "0.5", *out, "--html", "nowhere/r.html"], "in a folder that exists"),
        ([*SVD, "--rate", "0.5", *out, "--budget", "rate"], "--budget goes with --rates"),
        ([*SVD, "--max-drop", "1", *out], "--max-drop needs --val DIR"),
        ([*MODEL, "--max-drop", "1", *out, "--method", "svd", "--val", "photos"], "--calibration"),
        ([*SVD, "--max-drop", "1", "--dry-run", "--val", "photos"], "give a --rate"),
        ([*SVD, "--rates", "0.5", "0.5", *out], "--rates must be different"),
        (
            [*SVD, "--rates", "0.5", "0.6", *out, "--finetune", "1", "--train", "photos"],
            "--finetune goes with one size",
        ),
        ([*SVD[:2], "--rate", "0.5", "--onnx", "s.onnx", "--method", "svd"], "--onnx needs"),
    ]:
        assert_refused(folder, capsys, arguments, message)
