"""Several sizes from one calibration, and the smallest that is good enough."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sketchlayers
from sketchlayers.compression import SweepError

from .networks import assert_unchanged, network, state_of

IMAGES = [torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)]
HELD_OUT = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(9))
HOW: dict[str, Any] = {"method": "tucker2", "calibration": IMAGES}


class Likeness:
    """One minus the change of the outputs relative to their spread, by images; counts calls."""

    def __init__(self, model: nn.Module, *, scores: bool = True) -> None:
        with torch.no_grad():
            self.outputs = model(HELD_OUT)
        self.spread = (self.outputs - self.outputs.mean(0)).square().sum(1).mean()
        self.scores = scores
        self.calls = 0

    def __call__(self, model: nn.Module) -> Any:
        self.calls += 1
        each = 1 - ((model(HELD_OUT) - self.outputs).square().sum(1) / self.spread).sqrt()
        return each if self.scores else float(each.mean())


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return network()


@pytest.fixture(scope="module")
def sweep(model: nn.Module) -> sketchlayers.Sweep:
    return sketchlayers.sweep(model, (0.7, 0.4), evaluate=Likeness(model), **HOW)


# --------------------------------------------------------------------------------------- sweep


def test_each_is_what_compress_makes(model: nn.Module, sweep: sketchlayers.Sweep) -> None:
    assert list(sweep) == [0.7, 0.4] and len(sweep) == 2
    for rate in sweep:
        alone, report = sketchlayers.compress(model, rate=rate, **HOW)
        assert torch.equal(alone(HELD_OUT), sweep[rate].model(HELD_OUT))
        mine = sweep[rate].report
        assert mine.layers == report.layers and mine.output_change == report.output_change


def test_models_share_no_parameters(model: nn.Module, sweep: sketchlayers.Sweep) -> None:
    networks = [model, *(small for small, _ in sweep.values())]
    storages = [{p.data_ptr() for p in one.parameters()} for one in networks]
    assert len(set.union(*storages)) == sum(map(len, storages))


def test_a_table_a_dict_and_a_picture(sweep: sketchlayers.Sweep, tmp_path: Path) -> None:
    lines = str(sweep).splitlines()
    assert lines[0].split() == ["rate", "change", "of", "standard"]
    assert [line.split()[0] for line in lines[3:6]] == ["original", "0.7", "0.4"]
    assert repr(sweep) == str(sweep)
    told = json.loads(json.dumps(sweep.to_dict()))
    assert [row["rate_asked"] for row in told["rows"]] == [0.7, 0.4]
    assert told["rows"][0]["evaluation"]["drop"] == sweep[0.7].report.evaluation.drop
    pytest.importorskip("matplotlib")
    sweep.plot(tmp_path / "curve.svg")
    assert (tmp_path / "curve.svg").read_text().startswith("<?xml")


def test_a_rate_that_was_not_asked(sweep: sketchlayers.Sweep) -> None:
    with pytest.raises(KeyError, match=r"one of 0\.7, 0\.4"):
        sweep[0.5]


def test_evaluations(model: nn.Module, sweep: sketchlayers.Sweep) -> None:
    likeness = Likeness(model)
    for small, report in sweep.values():
        evaluation = report.evaluation
        with torch.no_grad():
            each = likeness(small)
        assert evaluation.before == 1 and evaluation.after == pytest.approx(float(each.mean()))
        assert evaluation.drop == 1 - evaluation.after
        expected = float((1 - each).std()) / math.sqrt(len(each))
        assert evaluation.standard_error == pytest.approx(expected, rel=1e-4)
        assert "evaluation: 1 before" in str(report)


@pytest.mark.parametrize(("budget", "rate"), [("flops_rate", 0.7), ("latency_rate", 1.0)])
def test_other_budgets(model: nn.Module, budget: Any, rate: float, tmp_path: Path) -> None:
    sweep = sketchlayers.sweep(model, (rate,), budget=budget, **HOW)
    assert sweep[rate].report.budget == budget
    assert budget.replace("_", " ").split()[0] in str(sweep)
    assert sweep.rows[0].evaluation is None
    pytest.importorskip("matplotlib")
    sweep.plot(tmp_path / "curve.png")


def test_without_images(model: nn.Module) -> None:
    moments = sketchlayers.calibrate(model, IMAGES)
    assert len(sketchlayers.sweep(model, [0.6], method="svd", calibration=moments)) == 1
    assert len(sketchlayers.sweep(model, [0.6], method="svd", init="random")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rates": 0.5}, "rates must be numbers"),
        ({"rates": "svd"}, "method=..."),
        ({"rates": {"0": 0.5}}, "rates must be numbers"),
        ({"rates": []}, "rates must be given"),
        ({"rates": [0.5, 1.5]}, "must be in"),
        ({"rates": [0.5], "budget": "flops"}, "budget must be"),
        ({"rates": [0.5], "rate": 0.5}, "no argument 'rate'"),
        ({"rates": [0.5], "inplace": True}, "no argument 'inplace'"),
        ({"rates": [0.5], "evaluate": 3}, "evaluate must be a function"),
        ({"rates": [0.5], "ranks": 3}, "no option 'ranks'"),
        ({"rates": [0.5, 0.001]}, "rate must be at least"),
    ],
)
def test_wrong_arguments(model: nn.Module, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        sketchlayers.sweep(model, **{**HOW, **arguments})


# ------------------------------------------------------------------------------------ evaluate


@pytest.mark.parametrize(
    ("result", "before"),
    [
        (lambda: 0.5, 0.5),
        (lambda: torch.tensor(0.25), 0.25),
        (lambda: np.float32(0.5), 0.5),
        (lambda: torch.tensor([True, False, True, True]), 0.75),
        (lambda: np.array([1, 0]), 0.5),
        (lambda: [1, 0, 0, 0], 0.25),
    ],
)
def test_what_evaluate_may_return(
    model: nn.Module, result: Callable[[], Any], before: float
) -> None:
    _, report = sketchlayers.compress(model, rate=0.6, evaluate=lambda _: result(), **HOW)
    assert report.evaluation.before == before and report.evaluation.drop == 0


def test_evaluate_with_rates_of_layers(model: nn.Module) -> None:
    _, report = sketchlayers.compress(model, rate={"3": 0.5}, evaluate=Likeness(model), **HOW)
    assert report.evaluation.drop > 0 and report.budget_rate is None


@pytest.mark.parametrize(
    "result", [math.nan, math.inf, "much", None, torch.zeros(2, 2), torch.zeros(0), [math.nan]]
)
def test_what_evaluate_may_not_return(model: nn.Module, result: Any) -> None:
    with pytest.raises(SweepError, match="original network") as caught:
        sketchlayers.compress(model, rate=0.6, evaluate=lambda _: result, **HOW)
    assert len(caught.value.sweep) == 0
    assert isinstance(caught.value.__cause__, TypeError | ValueError)


@pytest.mark.parametrize("fails", [lambda: 1 / 0, lambda: math.nan, lambda: torch.zeros(3)])
def test_what_was_done_is_kept_where_evaluate_fails(
    model: nn.Module, fails: Callable[[], Any]
) -> None:
    results = iter([lambda: 1.0, lambda: 0.9, fails])
    with pytest.raises(SweepError, match=r"rate 0\.5") as caught:
        sketchlayers.sweep(model, (0.7, 0.5, 0.4), evaluate=lambda _: next(results)(), **HOW)
    sweep = caught.value.sweep
    assert list(sweep) == [0.7, 0.5]
    assert sweep[0.7].report.evaluation.drop == pytest.approx(0.1)
    assert sweep[0.5].report.evaluation is None
    assert sweep[0.5].model(HELD_OUT).isfinite().all()
    assert "0.5" in str(sweep)


def test_evaluate_leaves_no_trace(model: nn.Module) -> None:
    seen = []

    def evaluate(network: nn.Module) -> float:
        seen.append((network.training, torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        network.train()
        network(HELD_OUT)  # batch norms take note
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        return 1.0

    torch.manual_seed(5)
    model = network().train()
    modules, state = list(model.modules()), state_of(model)
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    small, _ = sketchlayers.compress(model, rate=0.6, evaluate=evaluate, **HOW)
    assert seen == [(False, False, False)] * 2
    assert model.training and small.training
    assert_unchanged(model, modules, state)
    expected, _ = sketchlayers.compress(model, rate=0.6, **HOW)
    assert_unchanged(small, list(small.modules()), state_of(expected))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


# ------------------------------------------------------------------------------------ max_drop


def test_the_smallest_that_loses_little(model: nn.Module) -> None:
    likeness = Likeness(model)
    small, report = sketchlayers.compress(model, evaluate=likeness, max_drop=0.5, **HOW)
    tried = report.candidates
    assert 2 <= len(tried) <= 7 and likeness.calls == 1 + len(tried)
    good = [row for row in tried if row.evaluation.drop <= 0.5]
    (chosen,) = [row for row in tried if row.chosen]
    assert chosen in good and chosen.rate == min(row.rate for row in good) == report.budget_rate
    assert report.evaluation == chosen.evaluation
    failed = [row for row in tried if row.evaluation.drop > 0.5]
    assert failed, "a smaller one was tried"
    assert max(row.rate for row in failed if row.rate < chosen.rate) > 0.9 * chosen.rate
    assert sum(p.numel() for p in small.parameters()) == report.parameters_after
    assert "chosen" in str(report)
    alone, _ = sketchlayers.compress(model, rate=report.rate_asked, **HOW)
    assert torch.equal(alone(HELD_OUT), small(HELD_OUT))


def test_in_place(model: nn.Module) -> None:
    copied = network()
    expected, _ = sketchlayers.compress(model, evaluate=Likeness(model), max_drop=0.2, **HOW)
    changed, _ = sketchlayers.compress(
        copied, evaluate=Likeness(model), max_drop=0.2, inplace=True, **HOW
    )
    assert changed is copied
    assert torch.equal(changed(HELD_OUT), expected(HELD_OUT))


def test_as_small_as_can_be(model: nn.Module) -> None:
    _, report = sketchlayers.compress(model, evaluate=lambda _: 1.0, max_drop=0.0, **HOW)
    with pytest.raises(ValueError, match="at least"):
        sketchlayers.compress(model, rate=0.98 * report.budget_rate, **HOW)


def test_of_another_budget(model: nn.Module) -> None:
    _, report = sketchlayers.compress(
        model, evaluate=Likeness(model), max_drop=0.2, budget="flops_rate", **HOW
    )
    assert report.budget == "flops_rate" and report.candidates[0].budget == "flops_rate"


def test_none_is_good_enough(model: nn.Module) -> None:
    with pytest.raises(SweepError, match=r"max_drop=1e-09 .* as the least") as caught:
        sketchlayers.compress(model, evaluate=Likeness(model), max_drop=1e-9, **HOW)
    rates = list(caught.value.sweep)
    assert 2 <= len(rates) <= 7 and max(rates) > 0.9


def test_a_doubtful_choice_says_so(model: nn.Module) -> None:
    """Two of forty images are lost, and one is won."""
    before, after = torch.ones(40), torch.ones(40)
    before[0] = after[1] = after[2] = 0
    results = iter([before, *[after] * 7])
    _, report = sketchlayers.compress(model, evaluate=lambda _: next(results), max_drop=0.03, **HOW)
    assert any("may be more than max_drop=0.03" in note for note in report.notes)
    assert "within the noise" in str(report) and "~0.0250" in str(report)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_drop": 0.1, "evaluate": None}, "needs evaluate"),
        ({"max_drop": 0.1, "rate": 0.5}, "without rate"),
        ({"max_drop": 0.1, "flops_rate": 0.5}, "without flops_rate"),
        ({"max_drop": 0.1, "rate": {"0": 0.5}}, "without rate"),
        ({"max_drop": -0.1}, "at least 0"),
        ({"max_drop": math.nan}, "at least 0"),
        ({"max_drop": "1 %"}, "must be a number"),
        ({"max_drop": True}, "must be a number"),
        ({"max_drop": 0.1, "calibration": None}, "needs calibration"),
        ({"max_drop": 0.1, "budget": "flops"}, "budget must be"),
        ({"rate": 0.5, "budget": "flops_rate"}, "goes with max_drop"),
        ({}, "or max_drop"),
    ],
)
def test_wrong_searches(model: nn.Module, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        sketchlayers.compress(model, **{"evaluate": lambda _: 1.0, **HOW, **arguments})


def test_images_of_a_search_may_be_a_tensor_of_hits(model: nn.Module) -> None:
    """An accuracy as users write it."""
    with torch.no_grad():
        labels: Tensor = model(HELD_OUT).argmax(1)
    _, report = sketchlayers.compress(
        model, evaluate=lambda m: m(HELD_OUT).argmax(1) == labels, max_drop=0.1, **HOW
    )
    assert report.evaluation.before == 1 and report.evaluation.after >= 0.9
