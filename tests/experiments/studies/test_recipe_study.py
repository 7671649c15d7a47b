"""The study behind the recipes: its trials can be built, run once, and are shown by question."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from experiment import build
from figures import points
from studies import recipe_study
from studies.recipe_study import QUESTIONS, Trial, described, trials_of
from study import main

FAST = ["--data", "digits", "--subset", "120", "--held-out", "60", "--width", "0.1"]
FAST += ["--epochs", "1"]


def test_every_trial_can_be_built() -> None:
    args = recipe_study.parser().parse_args(["--width", "0.5"])
    trials = trials_of(list(QUESTIONS))
    sizes = {}
    for trial in trials:
        spec, recipe = described(trial, args, seed=3)
        assert (spec.seed, recipe.seed, recipe.test_every) == (3, 3, recipe.epochs)
        assert "lr" in trial.recipe, trial.name
        if trial.contender != "dense":
            sizes.setdefault((trial.contender, str(spec.options)), build(spec, 10).rate)
    assert all(rate == pytest.approx(0.135, abs=0.01) for rate in sizes.values())


def test_a_question_from_plan_to_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    question = {"two": [Trial("dense", {"lr": 0.1}), Trial("sketch", {"lr": 0.1})]}
    monkeypatch.setattr(recipe_study, "QUESTIONS", question)
    options = [*FAST, "--questions", "two", "--seeds", "0", "1", "--out", str(tmp_path)]
    assert main(["recipe_study", *options, "--plan"]) == 0
    assert "4 runs of 1 epochs" in capsys.readouterr().out
    assert main(["recipe_study", *options]) == 0
    text = capsys.readouterr().out
    assert "sketch lr=0.1" in text and "over seeds" in text
    with open(tmp_path / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["dense lr=0.1"] * 2 + ["sketch lr=0.1"] * 2
    monkeypatch.setattr(points, "run", None)  # what is there is not done again
    assert main(["recipe_study", *options]) == 0
    capsys.readouterr()
    assert main(["recipe_study", "--show", str(tmp_path / "results.csv"), "--markdown"]) == 0
    assert "| dense lr=0.1 |" in capsys.readouterr().out
    other = ["--epochs", "2", "--out", str(tmp_path)]
    assert main(["recipe_study", *options, *other]) == 2
    assert "recipe.epochs=1 then and 2 now" in capsys.readouterr().err
