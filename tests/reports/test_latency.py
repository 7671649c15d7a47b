"""Measured times of a call, before and after."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch
from compression.networks import Small, assert_unchanged, images, random_init, state_of
from torch import Tensor, nn

import sketchlayers
from sketchlayers.compression import Report


def svd(model: nn.Module, **options: Any) -> Report:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sketchlayers.compress(model, "svd", rate=0.8, **options).report


def timed(report: Report) -> list[int | None]:
    assert all(one.before > 0 and one.after > 0 and one.calls >= 1 for one in report.latencies)
    threads = torch.get_num_threads()
    assert {(one.threads, one.device) for one in report.latencies} <= {(threads, "cpu")}
    return [one.images for one in report.latencies]


def test_one_image_and_the_batch() -> None:
    model = Small()
    model.body.eval()
    modes = [module.training for module in model.modules()]
    modules, state = list(model.modules()), state_of(model)
    data = [images(8), images(4)]
    drawn = torch.get_rng_state(), random.getstate()
    report = svd(model, calibration=data)
    assert timed(report) == [1, 8]
    assert torch.equal(torch.get_rng_state(), drawn[0]) and random.getstate() == drawn[1]
    assert [module.training for module in model.modules()] == modes
    assert_unchanged(model, modules, state)
    lines = [line for line in str(report).splitlines() if line.startswith("milliseconds, ")]
    assert [" ".join(line.split()[:3]) for line in lines] == [
        *("milliseconds, 1 image", "milliseconds, 8 images")
    ]
    assert "latency" in report.seconds

    without = svd(model, calibration=data, measure_latency=False)
    assert without.latencies == () and "milliseconds" not in str(without)
    assert "latency" not in without.seconds


def test_example_inputs_of_every_form() -> None:
    model = Small()
    x = images(6)
    assert timed(random_init(model, 0.6, example_inputs=x).report) == [1, 6]
    assert timed(random_init(model, 0.6, example_inputs=(x,)).report) == [1, 6]
    assert timed(random_init(model, 0.6, example_inputs={"x": x}).report) == [1, 6]
    assert timed(random_init(model, 0.6, example_inputs=x[:1]).report) == [1]
    assert timed(random_init(model, 0.6, example_inputs=lambda m: m(x)).report) == [None]
    assert timed(svd(model, calibration=[images(4)], example_inputs=x)) == [1, 6]
    assert timed(random_init(model, 0.6).report) == []
    moments = sketchlayers.calibrate(model, [images(4)])
    assert timed(svd(model, calibration=moments)) == []


def test_batches_of_every_form() -> None:
    class Named(Small):
        def forward(self, pixel_values: Tensor, scale: float) -> Tensor:
            return super().forward(pixel_values * scale)

    batch = {"pixel_values": images(4), "scale": 2.0, "label": torch.zeros(4)}
    assert timed(svd(Named(), calibration=[batch])) == [1, 4]
    called = svd(Small(), calibration=[(2, images(4))], forward=lambda m, b: m(b[1] * b[0]))
    assert timed(called) == [1, 4]


def test_models_that_do_not_take_one_image() -> None:
    class Pairs(Small):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) % 2:
                raise RuntimeError("images come in pairs")
            return super().forward(x)

    assert timed(svd(Pairs(), calibration=[images(4)])) == [4]


def test_slow_models_are_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from sketchlayers.compression.finishing import latency

    monkeypatch.setattr(latency, "_SECONDS", 0.0)
    report = random_init(Small(), 0.6, example_inputs=images(4)).report
    assert [one.calls for one in report.latencies] == [1, 1]


def test_meta_models_are_not_timed() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    x = torch.zeros(2, 64, device="meta")
    assert timed(random_init(model, 0.7, example_inputs=x).report) == []
