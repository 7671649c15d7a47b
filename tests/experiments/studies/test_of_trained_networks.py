"""Studies of trained networks, on the smallest one of its family."""

from __future__ import annotations

from pathlib import Path

import pytest

from networks import CifarResNet
from study import main

from ..trained_networks import on_digits, read, write_weights

pytestmark = pytest.mark.usefixtures("resnet8")


def test_int8_of_every_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torchao")
    assert main(["int8", *on_digits(tmp_path, "--rates=0.5", "--methods=svd")]) == 0
    rows = read(tmp_path / "results.csv")
    assert [row["form"] for row in rows] == ["dense", "factored", "factored, 8 bits", "folded"]
    dense, factored, _, folded = rows
    assert int(factored["bytes"]) < 0.7 * int(dense["bytes"])
    assert folded["bytes"] == dense["bytes"]
    for row in rows:
        assert int(row["int8_bytes"]) < 0.45 * int(row["bytes"])
        gained = float(row["int8_accuracy"]) - float(row["accuracy"])
        assert float(row["difference"]) == pytest.approx(gained, abs=1e-3)
    printed = capsys.readouterr().out
    assert f"svd 0.5 folded: {float(folded['int8_accuracy']):.1f} %" in printed


def test_cost_is_measured_by_stages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--network=resnet8", "--size=16", "--images=32", f"--csv={tmp_path / 'cost.csv'}"]
    assert main(["compress_cost", *command]) == 0
    (row,) = read(tmp_path / "cost.csv")
    stages = sum(float(row[f"seconds_{stage}"]) for stage in ("calibration", "ranks", "fit"))
    assert 0 < stages <= float(row["seconds"])
    assert 0 < float(row["gib_before"]) <= float(row["gib_peak"])
    assert "gib peak" in capsys.readouterr().out


def test_starts_of_cp_are_compared(tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "weights.pt", CifarResNet(8))
    options = ["--network=resnet8", f"--weights={weights}", "--data=digits", "--few=1"]
    options += ["--starts=2", "--sweeps=5", "--calibration-images=16", "--threads=1"]
    assert main(["cp_starts", *options, f"--csv={tmp_path / 'results.csv'}"]) == 0
    rows = read(tmp_path / "results.csv")
    assert [row["layer"] for row in rows][:2] == ["layer1.0.conv1", "layer1.0.conv2"]
    for row in rows:
        assert 0 < float(row["many"]) < 1 and float(row["few"]) < float(row["frobenius"])


def test_ways_to_few_bytes_become_rows_of_one_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["few_bits", *on_digits(tmp_path, "--rates=0.5", "--bits=4", "--bytes-rates=0.3")]
    assert main([*command, f"--png={tmp_path / 'plot.png'}"]) == 0
    rows = {row["way"]: row for row in read(tmp_path / "results.csv")}
    assert list(rows) == ["dense", "bits", "rank", "in turn", "together"]
    size = {way: int(row["bytes"]) for way, row in rows.items()}
    assert size["in turn"] < size["rank"] < size["dense"] and size["bits"] < 0.5 * size["dense"]
    assert size["together"] == pytest.approx(0.3 * size["dense"], rel=0.15)
    assert (tmp_path / "plot.png").stat().st_size > 0

    # Rows are replaced by those of the same way and size; others stay.
    alone = ["--bits", "--rates", "--bytes-rates=0.3", "--fold-batch-norms"]
    assert main([*command, *alone]) == 0
    again = read(tmp_path / "results.csv")
    assert [row["network"] for row in again] == ["resnet8"] * 5 + ["resnet8 folded"] * 2
    capsys.readouterr()
    shown = ["few_bits", f"--csv={tmp_path / 'results.csv'}", "--show", "--markdown"]
    assert main(shown) == 0
    assert "| resnet8 | in turn | 0.5 |" in capsys.readouterr().out
