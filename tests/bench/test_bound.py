"""Least operations and bytes of layers, on numbers counted by hand."""

from __future__ import annotations

import pytest
import torch

from sketchlayers.bench.bound import Peaks, Work, dense_work, measure_peaks, sketch_work
from sketchlayers.bench.cases import Case
from sketchlayers.nn import SKConv2d, SKLinear

CONV = Case("", 96, 192, kernel=5, size=16, padding=2)
FC = Case("", 1024, 512)


def test_the_bound_is_the_larger_of_both_times() -> None:
    peaks = Peaks(flops=100.0, bandwidth=10.0)
    assert Work(flops=1000.0, bytes=50.0).seconds(peaks) == 10.0
    assert Work(flops=100.0, bytes=50.0).seconds(peaks) == 5.0


def test_work_of_dense_layers() -> None:
    work = dense_work(CONV, 2, "forward", 4)
    assert work.flops == 2 * (2 * 16 * 16) * (25 * 96 * 192)
    assert work.bytes == 4 * (2 * 256 * 96 + 2 * 256 * 192 + 25 * 96 * 192)
    assert dense_work(CONV, 2, "training", 4).flops == 3 * work.flops


def test_channel_mixing_needs_two_products() -> None:
    layer = SKConv2d(96, 192, 5, padding=2, rank=6, mixing="channel")
    work = sketch_work(CONV, 2, layer, "forward")
    assert work.flops == 2 * (2 * 256) * 6 * 26 * (96 + 192)
    factors, signs = 6 * 25 * (96 + 192), 6 * (256 + 128) / 8  # rows of whole 128 bits
    assert work.bytes == 4 * (2 * 256 * (96 + 192) + factors) + signs


@pytest.mark.parametrize("blocks", [1, 8])
@pytest.mark.parametrize("mixing", ["spatial", "channel"])
def test_operations_are_those_of_the_planner(mixing: str, blocks: int) -> None:
    layer = SKConv2d(96, 192, 5, padding=2, rate=0.1, mixing=mixing, blocks=blocks).eval()
    with torch.no_grad():
        plan = layer.plan((2, 96, 16, 16))
    work = sketch_work(CONV, 2, layer, "forward")
    least = min(plan.factored_multiply_adds, plan.dense_multiply_adds)
    assert work.flops == pytest.approx(2 * least)


def test_fully_connected_layers_have_one_pixel() -> None:
    layer = SKLinear(1024, 512, rate=0.1)
    work = sketch_work(FC, 16, layer, "forward")
    assert work.flops == 2 * 16 * layer.rank * 2 * (1024 + 512)
    trained = sketch_work(FC, 16, layer, "training")
    assert trained.flops == 2.5 * work.flops


def test_with_a_stride_the_second_product_runs_on_fewer_pixels() -> None:
    case = Case("", 128, 256, kernel=3, size=28, padding=1, stride=2)
    assert (case.output_size, case.name) == (14, "3x3 128->256 @28 /2")
    expected = 5 * (196 * (9 * 128 + 9 * 256 + 256) + 784 * 128)
    layer = SKConv2d(128, 256, 3, padding=1, stride=2, rank=5, mixing="channel")
    assert sketch_work(case, 1, layer, "forward").flops == 2 * expected


def test_peaks_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sketchlayers.bench.bound._GEMM_SIZE", {"cpu": 64})
    monkeypatch.setattr("sketchlayers.bench.bound._CONVOLUTION_BATCH", {"cpu": 1})
    monkeypatch.setattr("sketchlayers.bench.bound._COPY_BYTES", {"cpu": 1 << 16})
    peaks = measure_peaks(torch.device("cpu"), torch.float32, seconds=0.001)
    assert peaks.flops > 0
    assert peaks.bandwidth > 0
    assert "GFLOP/s" in str(peaks)
