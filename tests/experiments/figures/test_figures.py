"""The scripts of the paper's figures: points and their sizes, runs that go on, results."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import experiment
import figure2
import figure3
import places2
from common.runs import RunError, RunFolder
from experiment import Job, build, run
from figures import figure as figures
from figures import points
from figures.contenders import CONTENDERS
from figures.results import comparison, draw
from image_data import DataSet
from training import Epoch, Outcome, Recipe

from ..standard_downloads import write_image_folders

ROOT = Path(__file__).parents[3]
FAST = ["--data", "digits", "--subset", "120", "--test-subset", "60", "--size", "8"]
FAST += ["--width", "0.1", "--epochs", "2"]
NOMINAL = {
    "figure2": [0.971, 0.957, 0.528, 0.493, 0.459, 0.150, 0.115],
    "figure3": [0.985, 0.978, 0.757, 0.739, 0.721, 0.562, 0.544, 0.261],
}


def parsed(figure: figures.Figure, *arguments: str) -> Any:
    return figures.parser(figure, "").parse_args(["--root", "x", *arguments])


@pytest.mark.parametrize(
    "figure",
    [figure2.FIGURE, pytest.param(figure3.FIGURE, marks=pytest.mark.slow)],
    ids=lambda one: one.name,
)
def test_rates_are_those_of_the_paper(figure: figures.Figure) -> None:
    """Weights alone exactly; everything counted within .005, for every method and point."""
    args = parsed(figure)
    for point in figures.points_of(figure, args):
        spec = figures.network_spec(figure, args, point)
        dense = figures.dense_network(spec, 10)
        nominal = figure.nominal_rate(dense, point.point)
        if point.point is None:
            assert nominal == 1
            continue
        expected = NOMINAL[figure.name][figure.points.index(point.point)]
        assert nominal == pytest.approx(expected, abs=6e-4)
        assert abs(build(spec, 10).rate - nominal) < 0.005, point


def test_places2_is_compressed_to_a_fifth() -> None:
    args = parsed(places2.FIGURE)
    points = figures.points_of(places2.FIGURE, args)
    assert [point.method for point in points[:2]] == ["dense", "sketch"]
    spec = figures.network_spec(places2.FIGURE, args, points[1])
    built = build(spec, 365)
    assert built.dense_parameters == 6_354_957
    assert built.rate == pytest.approx(0.2, abs=0.005)


@pytest.mark.slow  # GoogLeNet
def test_places2_reads_the_standard_layout(tmp_path: Path) -> None:
    """Folders of classes with photographs of any size; decoded anew in every epoch."""
    write_image_folders(tmp_path / "places", classes=3, images=4)
    options = ["--root", str(tmp_path / "places"), "--size", "64", "--epochs", "1", "--stream"]
    options += ["--workers", "0", "--batch-size", "6", "--methods", "sketch"]
    assert places2.main([*options, "--out", str(tmp_path / "out")]) == 0
    rows = rows_of(tmp_path / "out")
    assert [row["method"] for row in rows] == ["dense", "sketch"]
    assert float(rows[1]["rate"]) == pytest.approx(0.2, abs=0.01)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "results.csv") as file:
        return list(csv.DictReader(file))


def test_learning_rates_are_the_figures_the_contenders_or_what_is_asked_for() -> None:
    point = figures.Point("sketch", None, 0)

    def lr(figure: figures.Figure, *options: str) -> float:
        return figures.training_recipe(figures.parser(figure, "").parse_args(options), point).lr

    assert lr(figure2.FIGURE) == CONTENDERS["sketch"].lr == 0.1
    assert lr(figure3.FIGURE) == 0.05
    assert lr(figure3.FIGURE, "--lr", "0.2") == 0.2


def test_a_figure_from_plan_to_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    options = [*FAST, "--methods", "sketch", "lowrank1", "--points", "CONV_8"]
    options += ["--seeds", "0", "1", "--out", str(out)]
    assert figure2.main([*options, "--plan"]) == 0
    planned = capsys.readouterr()
    assert "6 points, 6 to train" in planned.out
    assert planned.err.count("timing a few steps") == 3
    assert not out.exists()

    assert figure2.main(options) == 0
    text = capsys.readouterr().out
    assert "compressed up to" in text and f"results.csv and figure2.png are in {out}" in text
    rows = rows_of(out)
    assert len(rows) == 6
    assert {row["method"] for row in rows} == {"dense", "sketch", "lowrank1"}
    for row in rows:
        assert row["status"] in ("finished", "chance")
        assert 0 < float(row["error"]) <= 100
        assert row["lr"] == f"{CONTENDERS[row['method']].lr:.6g}"
    assert (out / "figure2.png").stat().st_size > 1000

    # What is there is not done again, and the plot comes from the file alone.
    monkeypatch.setattr(points, "run", None)
    assert figure2.main(options) == 0
    assert figure2.main([*options, "--plan"]) == 0
    planned = capsys.readouterr()
    assert "6 points, 0 to train" in planned.out
    assert not planned.err
    copied = tmp_path / "copied.csv"
    shutil.copy(out / "results.csv", copied)
    assert figure2.main(["--plot", str(copied), "--png", str(tmp_path / "again.png")]) == 0
    assert (tmp_path / "again.png").exists()
    capsys.readouterr()
    assert figure2.main(["--show", str(copied), "--markdown"]) == 0
    assert "| CONV_8 | 0." in capsys.readouterr().out


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between points and inside of them; the results are those of a run that never stopped."""
    options = [*FAST, "--methods", "sketch", "--points", "CONV_8", "--out"]
    assert figure2.main([*options, str(tmp_path / "whole")]) == 0
    epochs = []

    def stop_after_three(self: Any, epoch: int) -> None:
        epochs.append(epoch)
        if len(epochs) == 4:
            raise KeyboardInterrupt
        original(self, epoch)

    original = figures.Trainer._run_epoch
    monkeypatch.setattr(figures.Trainer, "_run_epoch", stop_after_three)
    assert figure2.main([*options, str(tmp_path / "parts")]) == 130
    monkeypatch.undo()
    assert len(rows_of(tmp_path / "parts")) == 1
    assert figure2.main([*options, str(tmp_path / "parts")]) == 0
    errors = [[row["error"] for row in rows_of(tmp_path / name)] for name in ("whole", "parts")]
    assert errors[0] == errors[1]


def test_the_comparison_of_methods() -> None:
    def row(method: str, point: str, rate: float, error: float, status: str = "finished") -> Any:
        return {
            "method": method,
            "point": point,
            "nominal_rate": rate,
            "error": error,
            "status": status,
        }

    rows = [
        row("dense", "", 1.0, 20.0),
        row("dense", "", 1.0, 22.0),
        row("sketch", "CONV_8", 0.115, 24.0),
        row("sketch-paper", "CONV_8", 0.115, 10.0),  # not one of the others
        row("freshnet", "CONV_8", 0.115, 25.0),
        row("freshnet", "CONV_8", 0.115, 90.0, "chance"),
        row("lowrank1", "CONV_8", 0.115, 90.0, "diverged"),
    ]
    _, _, dense, point = comparison(rows).splitlines()
    assert "21.0 ± 1.4" in dense
    for part in ("25.0 (1 failed)", "failed", "+3.0", "-1.0"):
        assert part in point
    assert "10.0" in point


def test_processes_with_the_same_command_share_the_points(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = [*FAST, "--methods", "sketch", "--points", "CONV_8", "--out", str(out)]
    dense = RunFolder(out / "dense" / "seed_0")
    dense.prepare(resume=True)
    with dense.taken():  # as by another process
        assert figure2.main(command) == 0
    assert "left to the processes that train them now: dense seed 0" in capsys.readouterr().out
    assert [row["method"] for row in rows_of(out)] == ["sketch"]
    assert figure2.main(command) == 0
    assert "left to" not in capsys.readouterr().out
    assert [row["method"] for row in rows_of(out)] == ["dense", "sketch"]


def test_sigterm_stops_as_ctrl_c_does(tmp_path: Path) -> None:
    options = [*FAST, "--epochs", "500", "--methods", "sketch", "--points", "CONV_8"]
    process = subprocess.Popen(
        [sys.executable, "experiments/figure2.py", *options, "--out", str(tmp_path / "out")],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    log = tmp_path / "out" / "dense" / "seed_0" / "log.csv"
    for _ in range(6000):
        if log.exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 130, errors
    assert "the same command goes on" in errors and "Traceback" not in errors
    assert log.exists()


def test_one_answer_to_all_is_nothing_learned(few_digits: DataSet) -> None:
    """However many images it is right for: a fifth of SVHN's are of one class."""
    labels = few_digits.test.labels.clone()
    labels[: len(labels) // 2] = 3
    data = replace(few_digits, test=replace(few_digits.test, labels=labels))

    def outcome(accuracy: float) -> Outcome:
        last = Epoch(1, 0.0, 1.0, 50.0, 1.0, accuracy, 1.0, 1.0, 1.0)
        return Outcome("finished", [last])

    share = 100 * float((labels == 3).double().mean())
    assert share > 50
    assert not experiment._learned(outcome(share), data)
    assert experiment._learned(outcome(95.0), data)


def test_a_point_is_done_once_by_whoever_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by a process that has waited for another one, which finished the point meanwhile."""
    options = [*FAST, "--methods", "dense", "--out", str(tmp_path)]
    taken = points.only_here

    @contextmanager
    def finished_meanwhile(*args: Any, **rest: Any) -> Iterator[None]:
        monkeypatch.setattr(points, "only_here", taken)
        assert figure2.main(options) == 0
        monkeypatch.setattr(points, "run", None)
        with taken(*args, **rest):
            yield

    monkeypatch.setattr(points, "only_here", finished_meanwhile)
    assert figure2.main(options) == 0
    assert len(rows_of(tmp_path)) == 1


def test_dictionaries_see_all_classes(few_digits: DataSet) -> None:
    """Folders of images are sorted by class."""
    order = few_digits.train.labels.argsort(stable=True).repeat_interleave(10)
    sorted_data = replace(few_digits, train=few_digits.train.take(order))
    assert len(sorted_data.train) > 1024
    seen = experiment._images_of_all_classes(sorted_data).labels
    assert seen.bincount().tolist() == pytest.approx([102.4] * 10, abs=1)


def test_planned_times_are_of_what_is_left() -> None:
    recipe = Recipe(epochs=6, test_every=4)
    assert figures.Times(10.0, 1.0).left(recipe, done=0) == 62
    assert figures.Times(10.0, 1.0).left(recipe, done=4) == 21


def test_networks_that_learn_nothing_are_failures(tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = [*FAST, "--methods", "sketch", "--points", "CONV_8", "--out", str(out)]
    assert figure2.main([*options, "--lr", "1e9", "--warmup", "0", "--no-batch-norm"]) == 0
    rows = rows_of(out)
    assert [row["status"] for row in rows] == ["diverged", "diverged"]
    assert figure2.main([*options[:-1], str(tmp_path / "two"), "--lr", "1e-9"]) == 0
    assert {row["status"] for row in rows_of(tmp_path / "two")} <= {"chance", "finished"}
    draw([out / "results.csv"], tmp_path / "empty.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--methods", "x"], "--methods: must be all or of dense, sketch"),
        (["--points", "CONV_9"], "--points: must be all or of CONV_2"),
        (["--data", "cifar10"], "cifar10: the folder with the data set must be given"),
        (["--data", "cifar10", "--root", "missing"], "the data folder must exist"),
        (["--clip", "0"], "clip: must be positive"),
        (["--epochs", "0"], "epochs: must be at least 1"),
        (["--plot", "missing.csv"], "must be a results.csv of a figure"),
        (["--show", "missing.csv"], "must be a results.csv of a figure"),
    ],
)
def test_bad_input(
    change: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert figure2.main([*FAST, *change, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "results.csv").exists()


def test_results_of_other_arguments_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*FAST, "--methods", "dense", "--out", str(tmp_path)]
    assert figure2.main(options) == 0
    before = (tmp_path / "results.csv").read_text()
    assert figure2.main([*options, "--lr", "0.2"]) == 2
    assert "recipe.lr=0.05 then and 0.2 now" in capsys.readouterr().err
    summary = tmp_path / "dense" / "seed_0" / "summary.json"
    assert (tmp_path / "results.csv").read_text() == before
    # Of no other seed or method either: the table would have both as if they were alike.
    other = ["--seeds", "1", "--methods", "sketch", "--points", "CONV_8"]
    assert figure2.main([*options, *other, "--epochs", "3"]) == 2
    assert "recipe.epochs=2 then and 3 now" in capsys.readouterr().err
    assert not (tmp_path / "sketch").exists()
    summary.write_text("nothing")
    assert figure2.main(options) == 2
    assert "must be the summary of a run" in capsys.readouterr().err


def small_run(folder: RunFolder, epochs: int, data: Any, *, resume: bool = False) -> dict[str, Any]:
    args = parsed(figure2.FIGURE, "--width", "0.1")
    spec = figures.network_spec(figure2.FIGURE, args, figures.Point("dense", None, 0))
    return run(Job(spec, Recipe(epochs=epochs), folder), data, resume=resume)


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, few_digits: Any) -> None:
    whole, broken = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "broken")
    expected = small_run(whole, 3, few_digits)
    small_run(broken, 3, few_digits)
    broken.checkpoint.write_bytes(b"x" * 100)
    with pytest.warns(UserWarning, match=r"going on from checkpoint_before\.pt"):
        again = small_run(broken, 3, few_digits, resume=True)
    for key in ("test_accuracy", "train_loss"):
        assert again["last_epoch"][key] == expected["last_epoch"][key]
    broken.checkpoint.write_bytes(b"x" * 100)
    broken.previous.unlink()
    with pytest.raises(RunError, match="must be a readable checkpoint"):
        small_run(broken, 3, few_digits, resume=True)


def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunFolder(tmp_path)
    folder.prepare(resume=False)
    folder.save_checkpoint({"arguments": {}, "number": 1})

    def full(state: object, file: Path) -> None:
        file.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RunError, match=r"cannot write .* No space left .* the one before is"):
        folder.save_checkpoint({"arguments": {}, "number": 2})
    monkeypatch.undo()
    state = folder.load_checkpoint({})
    assert state is not None and state["number"] == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt"]


def test_summaries_say_what_a_point_is(tmp_path: Path) -> None:
    options = [*FAST, "--methods", "freshnet", "--points", "CONV_8", "--out", str(tmp_path)]
    assert figure2.main(options) == 0
    summary = json.loads((tmp_path / "freshnet" / "CONV_8" / "seed_0" / "summary.json").read_text())
    figure = summary["part_of"]
    assert figure["point"] == "CONV_8" and figure["label"] == "FreshNets"
    assert set(summary["network"]["rate"]) == set(figure2.FIGURE.layers)
    assert {"command", "versions", "hardware", "seconds"} <= summary.keys()
    row = rows_of(tmp_path)[-1]
    assert row["batch_norm"] == "True" and row["weight_decay"] == "0.0005"
    assert row["epochs_asked"] == "2" and row["clip"] == ""
    assert row["command"].endswith(f"--out {tmp_path}")
