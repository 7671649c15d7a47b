"""The planner's constants: drawn layers, the fit, the file of a machine."""

import os
import random
import subprocess
import sys

import pytest
import torch

from sketchlayers import _extension
from sketchlayers._extension import plan_costs
from sketchlayers.bench import tune
from sketchlayers.bench.cases import build_dense, build_sketch

_C = _extension.load()


@pytest.mark.parametrize("kind", tune.KINDS)
def test_layers_are_drawn_within_bounds_and_can_be_built(kind):
    generator = random.Random(3)
    shapes = [tune.draw(generator, kind) for _ in range(40)]
    assert len(set(shapes)) > 30
    for shape in shapes:
        assert shape.kind == kind and 0.02 <= shape.rate <= 0.3
        assert 1e6 <= shape.multiply_adds <= 1.5e9 and shape.elements <= 2e7
    smallest = min(shapes, key=lambda shape: shape.multiply_adds)
    data = torch.randn(smallest.case.input_shape(smallest.batch))
    output = build_sketch(smallest.case, smallest.rate, smallest.mixing, "auto", 8)(data)
    assert output.shape == build_dense(smallest.case)(data).shape
    assert data.numel() + output.numel() == smallest.elements


def test_the_fit_finds_the_constants_and_none_below_zero():
    generator = random.Random(0)
    rows = [[1.0, *(10 ** generator.uniform(3, 8) for _ in range(3))] for _ in range(30)]
    true = (1e-5, 2e-12, 0.0, 3e-10)
    seconds = [sum(c * a for c, a in zip(true, row, strict=True)) for row in rows]
    assert tune.fit(rows, seconds) == pytest.approx(true, rel=1e-6, abs=1e-18)
    # What falls with an amount gets no constant for it.
    assert min(tune.fit(rows, [1 / row[1] for row in rows])) >= 0


@pytest.fixture
def samples():
    return tune.sample(72, 7, torch.device("cpu"), torch.float32, 1e-3)


def test_samples_become_constants_that_the_planner_reads(samples):
    text = tune.constants(samples, "cpu", "float32")
    # Kinds and formats: dense convolutions are one kind, and linear layers have one format.
    assert len(text.splitlines()) == 5 + 4 + 7 + len(tune.WORKS)
    try:
        _C.load_plan_costs(text)
        assert 0 < tune.good_choices(tune.choices(samples, "cpu", "float32", False)) <= 1
    finally:
        _C.reset_plan_costs()
    assert "layers" in tune.judgement(samples, "cpu", "float32")
    with pytest.raises(ValueError, match="at least 5 layers of a kind and memory format"):
        tune.constants(samples[:4], "cpu", "float32")


SECONDS = """
from sketchlayers import _extension
plan = _extension.load().plan(batch=1, in_channels=8, out_channels=8, sketch_rank=1, is_linear=True)
print(plan.factored_seconds)
"""


@pytest.mark.parametrize("text", ["cpu float32 factored linear 5 0 0 0\n", "nonsense\n"])
def test_the_file_of_this_machine_is_read_at_import(tmp_path, monkeypatch, text):
    monkeypatch.setenv("SKETCHLAYERS_CACHE", str(tmp_path))
    file = plan_costs.file_of(torch.device("cpu"))
    assert file is not None and file.parent == tmp_path
    file.write_text(text)
    finished = subprocess.run(
        [sys.executable, "-c", SECONDS], env=os.environ, capture_output=True, text=True, check=True
    )
    if text == "nonsense\n":
        assert "bench --tune" in finished.stderr and float(finished.stdout) < 1
    else:
        assert float(finished.stdout) == 5


def test_an_empty_cache_variable_means_no_files(monkeypatch):
    monkeypatch.setenv("SKETCHLAYERS_CACHE", "")
    assert plan_costs.file_of(torch.device("cpu")) is None
    with pytest.raises(ValueError, match="SKETCHLAYERS_CACHE"):
        tune.tune(torch.device("cpu"), [torch.float32], "this machine")
