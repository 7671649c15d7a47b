"""The study of long trainings: rows that are there are not trained again."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from studies import from_scratch
from study import main


def test_every_method_becomes_a_row_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = [
        "--data=digits",
        "--subset=120",
        "--test-subset=60",
        "--width=0.1",
        "--epochs=1",
        "--rate=0.3",
    ]
    where = [f"--csv={tmp_path / 'results.csv'}", f"--out={tmp_path}", "--seconds=0.01"]
    command = ["from_scratch", *fast, *where, "--warmup=0.5", "--contenders", "sketch-blocks"]
    assert main(command) == 0
    with open(tmp_path / "results.csv") as file:
        dense, blocks = csv.DictReader(file)
    assert (dense["contender"], blocks["contender"]) == ("dense", "sketch-blocks")
    assert int(blocks["parameters"]) < 0.5 * int(dense["parameters"])
    for row in (dense, blocks):
        assert row["status"] in ("finished", "chance") and 0 <= float(row["test_accuracy"]) <= 100
        assert float(row["seconds_an_epoch"]) > 0 and float(row["milliseconds"]) > 0

    monkeypatch.setattr(from_scratch, "run", lambda *_, **__: pytest.fail("trained again"))
    assert main(command) == 0
    capsys.readouterr()
    assert main(["from_scratch", where[0], "--show", "--markdown"]) == 0
    assert "| sketch with eight blocks, channel | True | 0 |" in capsys.readouterr().out


def test_a_run_that_diverges_is_recorded(tmp_path: Path) -> None:
    fast = ["--data=digits", "--subset=120", "--test-subset=60", "--width=0.1", "--epochs=2"]
    where = [f"--csv={tmp_path / 'results.csv'}", f"--out={tmp_path}", "--seconds=0.01"]
    options = ["--contenders", "dense", "--lr=1e30", "--schedule=cosine", "--warmup=0"]
    assert main(["from_scratch", *fast, *where, *options, "--no-batch-norm"]) == 0
    with open(tmp_path / "results.csv") as file:
        (row,) = csv.DictReader(file)
    assert (row["status"], row["test_accuracy"], row["batch_norm"]) == ("diverged", "", "False")
