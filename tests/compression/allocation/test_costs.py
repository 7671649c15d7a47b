"""What layers cost in each unit of a budget."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from sketchlayers import methods
from sketchlayers._runtime.processes import Processes
from sketchlayers.compression.allocation import costs as costs_module
from sketchlayers.compression.allocation.costs import Budget, Costs, Unit
from sketchlayers.compression.survey.layers import Layer, survey
from sketchlayers.surgery.calls import ExampleCall

METHOD = methods.Tucker2()


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, bias=False), nn.Flatten(), nn.Linear(256, 10)
    )


def costs(unit: Unit, model: nn.Module | None = None) -> tuple[Costs, dict[str, Layer]]:
    model = network() if model is None else model
    x = torch.zeros(1, 3, 8, 8)
    found = survey(model, METHOD, examples=[(ExampleCall(x), 1)])
    layers = {layer.name: layer for layer in found.layers}
    return Costs(unit, found, model, ExampleCall(x), Processes("compress", join=False)), layers


def test_parameters_and_multiply_adds() -> None:
    counted, layers = costs("parameters")
    assert counted.whole == 224 + 1152 + 2570
    assert [counted.dense(layer) for layer in layers.values()] == [224, 1152, 2570]
    assert counted.of(layers["1"], METHOD, (4, 5)) == 8 * 4 + 4 * 5 * 9 + 5 * 16
    counted, layers = costs("multiply-adds")
    assert [counted.dense(layer) for layer in layers.values()] == [7776, 18432, 2560]
    assert counted.whole == 7776 + 18432 + 2560
    assert counted.of(layers["1"], METHOD, (4, 5)) == 36 * 8 * 4 + 16 * (4 * 5 * 9 + 5 * 16)


def test_seconds_of_other_ranks_are_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that counts parameters: exact where timed, between the neighbours elsewhere."""
    timed: list[int] = []

    def parameters_of(call: Callable[[], nn.Module]) -> float:
        timed.append(sum(p.numel() for p in call().parameters()))
        return 1e-6 * timed[-1]

    model = nn.Linear(256, 100, bias=False)
    layer = survey(model, methods.SVD(), examples=[(ExampleCall(torch.zeros(1, 256)), 1)]).layers[0]
    monkeypatch.setattr(nn.Module, "__call__", lambda self, x: self)
    monkeypatch.setattr(costs_module, "_seconds", parameters_of)
    times = costs_module._Times(layer, Processes("compress", join=False))
    assert times.dense == pytest.approx(1e-6 * 25_600)
    svd = methods.SVD()
    for rank in (1, 20, 33, 50, 71):
        assert times.of(svd, 356 * rank) == pytest.approx(1e-6 * 356 * rank)
    assert len(timed) == 1 + costs_module._TIMED_RANKS
    assert times.of(svd, 10) == pytest.approx(1e-6 * 356)  # never less than what was timed
    assert times.of(svd, 10**6) == pytest.approx(1e-6 * max(timed[1:]))


def test_seconds_are_measured() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    counted, layers = costs("seconds", model)
    assert counted.whole > 0 and counted.dense(layers["0"]) > 0
    assert counted.of(layers["0"], METHOD, (2, 2)) > 0
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.training and model[0].training


@pytest.mark.parametrize("unit", ["multiply-adds", "seconds"])
def test_inputs_must_be_known(unit: Unit) -> None:
    model = network()
    with pytest.raises(ValueError, match="neither example_inputs nor calibration images"):
        Costs(unit, survey(model, METHOD), model, None, Processes("compress", join=False))


def test_budgets_name_their_argument() -> None:
    units: tuple[Unit, ...] = ("parameters", "multiply-adds", "seconds")
    names = [Budget(unit, 0.5).argument for unit in units]
    assert names == ["rate", "flops_rate", "latency_rate"]
