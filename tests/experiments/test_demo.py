from __future__ import annotations

import csv
import json
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import demo
from speed import measure_speeds
from tables import Column, decimals, format_table, whole


def test_table_is_aligned() -> None:
    columns = (
        Column("name", "network", left=True),
        Column("count", "parameters", whole),
        Column("accuracy", "%", decimals(1)),
    )
    rows = [
        {"name": "dense", "count": 969802, "accuracy": 99.15},
        {"name": "a much longer name", "count": 1000, "accuracy": None},
    ]
    assert format_table(rows, columns).splitlines() == [
        "network             parameters     %",
        "------------------  ----------  ----",
        "dense                  969,802  99.2",
        "a much longer name       1,000     -",
    ]


def test_measuring_speed_leaves_networks_alone() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images, labels = torch.randn(8, 3, 24, 24), torch.zeros(8, dtype=torch.long)
    speeds = measure_speeds({"network": network}, images, labels, rounds=3)
    assert speeds["network"].inference > 0
    assert speeds["network"].training > 0
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


def test_demo_measures_every_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = replace(demo.DIGITS, width=0.1, epochs=1, tuning_epochs=1, subset=100, test_subset=50)
    monkeypatch.setattr(demo, "DIGITS", small)
    assert demo.main(["--out", str(tmp_path), "--rate", "0.5"]) == 0
    printed = capsys.readouterr().out
    with open(tmp_path / "results.csv") as file:
        rows = list(csv.DictReader(file))
    names = ["dense", "sketched", "sketched in a sign frame"]
    names += ["dense, then compressed", "dense, then compressed and tuned"]
    assert [row["network"] for row in rows] == names
    assert [float(row["rate"]) for row in rows] == pytest.approx([1, *[0.5] * 4], rel=0.03)
    for row in rows:
        assert f"{int(row['parameters']):,}" in printed
        assert int(row["stored_bytes"]) >= 4 * int(row["parameters"])
        assert 0 <= float(row["accuracy"]) <= 100
        assert float(row["inference"]) > float(row["training"]) > 0
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "summary.json").read_text())["seed"] == 0
    assert f"Table, plot and summary are in {tmp_path}" in printed
    (command,) = [line for line in printed.splitlines() if "train.py --help" in line]
    done = subprocess.run(
        shlex.split(command.split("     ")[0]), capture_output=True, text=True, check=True
    )
    assert "--rate" in done.stdout


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
    [("--rate", "0.0001", "rate"), ("--rate", "1.5", "rate"), ("--epochs", "0", "epochs")],
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
