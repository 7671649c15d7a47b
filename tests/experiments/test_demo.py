from __future__ import annotations

import csv
import json
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import demo
from common.speed import Speed
from sketchlayers import load

TINY = ["--images=100", "--epochs=1", "--width=0.1"]


def test_demo_measures_every_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "DIGITS", replace(demo.DIGITS, test_images=50, timing_seconds=0.01))
    # Exports are tested by their owner, and take most of the time.
    monkeypatch.setattr(demo, "onnx_steps", lambda *_: None)
    assert demo.main([*TINY, "--rates", "0.5", "--sketch-rate=0.4", f"--out={tmp_path}"]) == 0
    printed = capsys.readouterr().out
    with open(tmp_path / "results.csv") as file:
        rows = list(csv.DictReader(file))
    names = ["dense", "rate 0.5", *demo.SKETCHES]
    assert [row["name"] for row in rows] == names
    rates = [float(row["rate"]) for row in rows]
    assert rates == pytest.approx([1, 0.5, 0.4, 0.4, 0.4], rel=0.1)
    for row in rows:
        assert f"{int(row['parameters']):,}" in printed
        assert f"{float(row['accuracy']):.1f} ± {float(row['error']):.1f}" in printed
        gained = float(row["accuracy"]) - float(rows[0]["accuracy"])
        assert float(row["difference"]) == pytest.approx(gained, abs=1e-3)
        assert float(row["pytorch_ms"]) > 0
        saved = tmp_path / f"{demo.file_name(row['name'])}.safetensors"
        assert saved.stat().st_size == int(row["file_bytes"]) >= 4 * int(row["parameters"])
    assert [bool(row["training_ms"]) for row in rows] == [True, False, True, True, True]
    # The files are the networks: the smallest one gives the accuracy in its row.
    small = load(tmp_path / "rate_0.5.safetensors", into=demo.small_vgg(10, 0.1)).eval()
    data = demo.load("digits", size=32, subset=100, test_subset=50)
    with torch.no_grad():
        found = small(data.normalisation(data.test.pixels)).argmax(1)
    share = 100 * float((found == data.test.labels).double().mean())
    assert float(rows[1]["accuracy"]) == pytest.approx(share, abs=2.1)  # an image is 2 points
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "summary.json").read_text())["seed"] == 0
    assert 'sketchlayers.compress(model, "tucker2", rate=0.25, calibration=images)' in printed


def result(name: str, **values: object) -> demo.Result:
    """A network of which nothing but these values is said."""
    dense = demo.Result(
        name,
        nn.Identity(),
        rate=1.0,
        parameters=1000,
        file_bytes=4000,
        accuracy=99.0,
        error=0.5,
        difference=0.0,
        difference_error=0.0,
        seconds=20.0,
        speeds={"pytorch": Speed(2.0, 1.0)},
    )
    return replace(dense, **values)  # type: ignore[arg-type]


def test_words_below_the_table_follow_from_the_numbers() -> None:
    small = {"rate": 0.5, "parameters": 500, "file_bytes": 2000}
    smaller = {"rate": 0.1, "parameters": 100, "file_bytes": 500}
    rows = [
        result("dense"),
        result("rate 0.5", **small, difference=-0.3, speeds={"pytorch": Speed(2.2, 0.9)}),
        result("rate 0.1", **smaller, difference=-0.8, speeds={"pytorch": Speed(0.5, 4.0)}),
    ]
    words = " ".join(demo.compression_table(rows, 355).split())
    assert re.search(r"At rate 0.1 .* 10.0x fewer parameters, .* 8.0x smaller, .* 4.0x as", words)
    assert "Not faster than dense: rate 0.5 in inference with PyTorch (0.9x)" in words
    assert "355 test images" in words

    rows[2] = replace(rows[2], accuracy=40.0, difference=-59.0)
    words = " ".join(demo.compression_table(rows, 355).split())
    assert "At rate 0.5 the network has 2.0x fewer parameters" in words
    assert "rate 0.1: too small" in words


def test_a_long_step_is_not_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with demo.heartbeat("waiting", seconds=0.01):
        while "waiting: 0 s so far" not in capsys.readouterr().out:
            time.sleep(0.01)


def test_demo_without_its_data_gives_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert demo.main(["--data", str(tmp_path / "nowhere"), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: cifar10: the data folder must exist")
    assert error.count("\n") == 1
    assert not out.exists()


@pytest.mark.parametrize(
    ("option", "value", "rule"),
    [
        ("--rates", "0.0001", "--rates"),
        ("--rates", "1.5", "--rates"),
        ("--sketch-rate", "0.0001", "rate"),
        ("--epochs", "0", "epochs"),
        ("--width", "0", "--width"),
    ],
)
def test_bad_arguments_of_the_demo_are_refused_before_any_training(
    option: str, value: str, rule: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert demo.main([option, value, "--out", str(out)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ") and rule in printed.err
    assert not out.exists()
