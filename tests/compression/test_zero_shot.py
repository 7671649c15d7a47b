"""Whole networks compressed with calibration images, and what can go wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sketchlayers
from sketchlayers import Calibration
from sketchlayers.methods import CP

from .networks import Small, images, state_of

pytestmark = pytest.mark.filterwarnings("ignore:compress.*training:UserWarning")


class Trained(nn.Module):
    """Layers whose weights and inputs are far from random, as after training; (N, 3, 12, 12)."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.body = nn.Sequential(
            nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        )
        self.deep = nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.point = nn.Conv2d(24, 32, 1)
        self.head = nn.Linear(32, 10)
        with torch.no_grad():
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d | nn.Linear):
                    matrix = layer.weight.flatten(1)
                    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
                    decay = 0.9 ** torch.arange(len(s))
                    layer.weight.copy_(((u * s.max() * decay) @ v).reshape(layer.weight.shape))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.first(x).relu())
        x = self.point(self.deep(x).relu()).relu()
        return self.head(x.mean((2, 3)))


def batches(count: int = 4) -> list[Tensor]:
    mixing = torch.randn(3, 3)
    return [torch.einsum("ij,njhw->nihw", mixing, images(24)) for _ in range(count)]


def change(net: nn.Module, small: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((net.eval()(x) - small.eval()(x)).norm() / net(x).norm())


@pytest.fixture
def quick_cp(monkeypatch: pytest.MonkeyPatch) -> None:
    """CP of few sweeps, also within ``auto``: to its end it takes longer than all else here."""
    for option, value in (("starts", 1), ("max_sweeps", 20)):
        monkeypatch.setitem(CP.__init__.__kwdefaults__, option, value)


@pytest.mark.parametrize("method", ["tucker2", "svd", "cp", "auto"])
def test_one_call(method: str, quick_cp: None) -> None:
    net, data = Trained(), batches()
    state = state_of(net)
    small, report = sketchlayers.compress(net, method, rate=0.5, calibration=data, seed=0)
    assert abs(report.rate - 0.5) < 0.01
    assert sum(p.numel() for p in small.parameters()) == report.parameters_after
    assert report.multiply_adds_before and report.multiply_adds_after
    assert report.output_change == pytest.approx(change(net, small, torch.cat(data)), rel=1e-3)
    plain, _ = sketchlayers.compress(net, method, rate=0.5, seed=0)
    x = torch.cat(batches())
    assert change(net, small, x) < change(net, plain, x)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert {"calibration", "sensitivity", "ranks", "fit"} <= report.seconds.keys()
    small(x).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_auto_is_as_near_as_each_of_its_methods() -> None:
    net, data = Trained(), batches()
    expected = {}
    for method in ("svd", "cp", "tucker2", "auto"):
        _, report = sketchlayers.compress(
            net, method, rate=0.4, calibration=data, seed=0, sequential=False
        )
        expected[method] = report.output_change
        if method == "auto":
            assert {row.method for row in report.replaced} <= {"svd", "cp", "tucker2"}
    assert expected["auto"] <= 1.1 * min(expected.values())


def test_sequential_and_sensitivity_can_be_switched() -> None:
    net, data = Trained(), batches()
    reports = {}
    for sequential in (False, True):
        for sensitivity in (False, "fit", "allocation", True):
            _, report = sketchlayers.compress(
                net,
                "tucker2",
                rate=0.4,
                calibration=data,
                seed=0,
                sequential=sequential,
                sensitivity=sensitivity,
            )
            reports[sequential, sensitivity] = report.output_change
            assert ("sensitivity" in report.seconds) == bool(sensitivity)
    assert len(set(reports.values())) == len(reports)  # each of them does something
    assert reports[True, True] < reports[False, False]


def test_uniform_and_patterns() -> None:
    net, data = Trained(), batches(2)
    _, report = sketchlayers.compress(
        net, "tucker2", rate=0.5, calibration=data, allocation="uniform", seed=0
    )
    rates = [row.rate for row in report.replaced if row.parameters_before > 1000]
    assert max(rates) - min(rates) < 0.15
    _, report = sketchlayers.compress(net, "tucker2", rate={"deep": 0.3}, calibration=data, seed=0)
    assert [row.name for row in report.replaced] == ["deep"]
    assert report.replaced[0].rate == pytest.approx(0.3, abs=0.02)


def test_budgets_of_multiply_adds_and_seconds() -> None:
    net, data = Trained(), batches(2)
    _, report = sketchlayers.compress(net, "tucker2", flops_rate=0.6, calibration=data, seed=0)
    assert report.budget == "flops_rate"
    assert report.multiply_adds_after <= 0.601 * report.multiply_adds_before
    assert report.multiply_adds_after > 0.55 * report.multiply_adds_before
    x = torch.zeros(1, 3, 12, 12)
    _, report = sketchlayers.compress(
        net, "svd", flops_rate=0.6, example_inputs=x, seed=0, allocation="uniform"
    )
    assert report.multiply_adds_after <= 0.65 * report.multiply_adds_before
    with pytest.raises(ValueError, match="neither example_inputs nor calibration"):
        sketchlayers.compress(net, "svd", flops_rate=0.6)
    state = state_of(net.train())
    # Times of such a small network are all overhead; that it runs and keeps its word is enough.
    _, report = sketchlayers.compress(net, "tucker2", latency_rate=1.0, calibration=data, seed=0)
    assert report.budget == "latency_rate" and net.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_a_calibration_file_serves_again(tmp_path: Path) -> None:
    net, data = Trained(), batches()
    calibration = sketchlayers.calibrate(net, data, patches_per_input=100)  # as `compress` does
    calibration.save(tmp_path / "moments.safetensors")
    again = Calibration.load(tmp_path / "moments.safetensors")
    results = [
        sketchlayers.compress(
            net, "tucker2", rate=0.5, calibration=given, seed=0, sequential=False, sensitivity=False
        )[0]
        for given in (data,)
    ]
    results += [
        sketchlayers.compress(net, "tucker2", rate=0.5, calibration=given, seed=0)[0]
        for given in (calibration, again)
    ]
    x = data[0]
    for small in results[1:]:
        torch.testing.assert_close(small.eval()(x), results[0].eval()(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"sequential needs images.*file of moments"):
        sketchlayers.compress(net, "svd", rate=0.5, calibration=again, sequential=True)
    with pytest.raises(ValueError, match="body"):
        sketchlayers.compress(Small(), "svd", rate=0.5, calibration=again)


def test_loaders_of_all_kinds() -> None:
    net, data = Trained(), batches(2)
    labels = torch.zeros(24)
    loaders: list[Any] = [
        [(x, labels) for x in data],
        [{"x": x} for x in data],
        (x for x in data),
        torch.utils.data.DataLoader(torch.cat(data), batch_size=24),
    ]
    outputs = []
    for loader in loaders:
        small, _ = sketchlayers.compress(net, "svd", rate=0.5, calibration=loader, seed=0)
        outputs.append(small.eval()(data[0]))
    for other in outputs[1:]:
        torch.testing.assert_close(other, outputs[0])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"calibration": []}, ValueError, "must yield batches"),
        ({"calibration": 3}, TypeError, "a Calibration or an iterable"),
        ({"calibration": ["text"]}, TypeError, "batch must be a tensor"),
        ({"rate": 0.01}, ValueError, "rate must be at least 0."),
        ({"allocation": "best"}, ValueError, "allocation must be None, 'uniform' or 'error'"),
        ({"sensitivity": "all"}, ValueError, "sensitivity must be"),
        ({"flops_rate": 0.5}, ValueError, "one of rate, flops_rate, latency_rate and bytes_rate"),
        ({"init": "random"}, ValueError, "init must be 'fit' with calibration"),
        ({"refine": 3}, TypeError, "refine must be a bool or a Refinement"),
    ],
)
def test_bad_input_leaves_the_model_as_it_was(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    net = Trained().train()
    state, modules = state_of(net), list(net.modules())
    given: dict[str, Any] = {"rate": 0.5, "calibration": batches(1), "inplace": True} | arguments
    with pytest.raises(error, match=message):
        sketchlayers.compress(net, "tucker2", **given)
    assert list(net.modules()) == modules and net.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_a_failure_in_the_loader_or_the_model_leaves_it_as_it_was() -> None:
    class Fails(list):
        def __iter__(self) -> Any:
            yield images(4)
            raise OSError("the disk is gone")

    net = Trained().train()
    state = state_of(net)
    with pytest.raises(OSError, match="the disk is gone"):
        sketchlayers.compress(net, "svd", rate=0.5, calibration=Fails(), inplace=True)
    x = images(4)
    x[0] = torch.inf
    with pytest.raises(ValueError, match=r"'first'|'body\.0'"):
        sketchlayers.compress(net, "svd", rate=0.5, calibration=[x], inplace=True)
    assert net.training and not any(m._forward_pre_hooks for m in net.modules())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


def test_few_images_and_unreached_layers_are_told() -> None:
    class Sometimes(Trained):
        def __init__(self) -> None:
            super().__init__()
            self.never = nn.Linear(30, 30)

    net = Sometimes()
    small, report = sketchlayers.compress(net, "tucker2", rate=0.6, calibration=[images(1)], seed=0)
    rows = {row.name: row for row in report.layers}
    assert "never called" in rows["never"].reason or "not called" in rows["never"].reason
    (advice,) = [note for note in report.notes if note.startswith("use at least ")]
    assert " images (got 1): " in advice and " patches for its " in advice
    assert small(images(2)).isfinite().all()


def test_inplace_gives_the_same() -> None:
    net, data = Trained(), batches(2)
    first, _ = sketchlayers.compress(net, "tucker2", rate=0.5, calibration=data, seed=0)
    same, _ = sketchlayers.compress(
        net, "tucker2", rate=0.5, calibration=data, seed=0, inplace=True
    )
    assert same is net
    torch.testing.assert_close(same.eval()(data[0]), first.eval()(data[0]))


def test_a_small_memory_budget_takes_fewer_images() -> None:
    net, data = Trained(), batches(3)
    _, report = sketchlayers.compress(
        net, "svd", rate=0.5, calibration=data, seed=0, memory_budget=600_000
    )
    assert any("took part in the sequential fit" in note for note in report.notes), report.notes


def test_the_default_method_goes_with_the_data() -> None:
    net = nn.Sequential(nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 10))
    x = torch.randn(64, 12)
    reports = [
        sketchlayers.compress(net, rate=0.6, calibration=given, seed=0, keep_first=False)[1]
        for given in (None, [x])
    ]
    assert [report.method for report in reports] == ["sketch", "auto"]
