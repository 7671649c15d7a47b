"""The table of methods and what a method's config promises about its layers."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

import sketchlayers
from sketchlayers import methods
from sketchlayers.methods import _method

LAYERS = [
    nn.Conv2d(12, 20, 3),
    nn.Conv2d(12, 20, (1, 4), bias=False),
    nn.Conv2d(12, 24, 3, groups=3),
    nn.Linear(30, 44),
    nn.Linear(64, 7, bias=False),
]


@pytest.fixture
def own_method() -> Iterator[type[methods.Method]]:
    """A method of a user's own: drops the rows of the weight above the rank."""

    class Rows(nn.Module):
        fit_error: float | None = None

        def __init__(self, weight: torch.Tensor, rows: int) -> None:
            super().__init__()
            self.rows = nn.Parameter(weight[:rows].clone())
            self.total = len(weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.pad(x @ self.rows.T, (0, self.total - len(self.rows)))

        def multiply_adds(self, input_shape: tuple[int, ...]) -> int:
            return input_shape[0] * self.rows.numel()

        def fold(self) -> nn.Linear:
            layer = nn.Linear(self.rows.shape[1], self.total, bias=False)
            nn.init.zeros_(layer.weight)
            layer.weight.data[: len(self.rows)] = self.rows.data
            return layer

    @methods.register("rows")
    @dataclass(frozen=True, kw_only=True)
    class RowsMethod(methods.Method):
        layers: ClassVar[tuple[type[nn.Module], ...]] = (Rows,)

        def refusal(self, layer: nn.Module) -> str | None:
            return None if isinstance(layer, nn.Linear) else "no linear layer"

        def ranks(self, layer: nn.Module) -> range:
            return range(1, layer.out_features)

        def parameters(self, layer: nn.Module, rank: int) -> int:
            return rank * layer.in_features

        def multiply_adds(self, layer: nn.Module, rank: int, input_shape: Any) -> int:
            return input_shape[0] * self.parameters(layer, rank)

        def build(self, layer: nn.Module, rank: int, **_: Any) -> nn.Module:
            return Rows(layer.weight.detach(), rank)

    yield RowsMethod
    del _method._methods["rows"]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize("num_sketches", [1, 2])
def test_sizes_are_those_of_the_layers_built(layer: nn.Module, num_sketches: int) -> None:
    sketch = methods.Sketch(num_sketches=num_sketches)
    dense = sum(p.numel() for p in layer.parameters())
    assert sketch.refusal(layer) is None
    *_, largest = sketch.ranks(layer)
    for rank in {1, largest}:
        built = sketch.build(layer, rank, init="random", seed=5)
        count = sum(p.numel() for p in built.parameters())
        assert count == sketch.parameters(layer, rank) < dense
        assert built.seed == 5 and isinstance(built, sketch.layers)
    assert sketch.parameters(layer, largest + 1) >= dense


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_no_ranks_where_nothing_shrinks() -> None:
    sketch = methods.Sketch()
    assert not sketch.ranks(nn.Linear(3, 1))
    assert not sketch.ranks(nn.Linear(0, 4))
    assert not sketch.ranks(nn.Conv2d(8, 8, 3, groups=4))


@pytest.mark.parametrize("training", [False, True])
def test_multiply_adds_are_those_of_the_layer_built(training: bool) -> None:
    sketch = methods.Sketch()
    shapes = [(2, 12, 9, 9)] * 3 + [(5, 30), (2, 3, 64)]
    for layer, shape in zip(LAYERS, shapes, strict=True):
        built = sketch.build(layer.train(training), 1, init="random", seed=0)
        with torch.no_grad():
            assert sketch.multiply_adds(layer, 1, shape) == built.multiply_adds(shape)


@pytest.mark.parametrize("weighted", [False, True])
def test_curve_of_the_sketch(weighted: bool) -> None:
    layer = nn.Linear(90, 80)
    root = torch.randn(90, 90, dtype=torch.float64) * torch.linspace(0.1, 3, 90)
    moment = root.T @ root / 90 if weighted else None
    sketch = methods.Sketch()
    curve = sketch.curve(layer, second_moment=moment)
    for candidate in curve:
        assert candidate.parameters == sketch.parameters(layer, candidate.rank)
        built = sketch.build(layer, candidate.rank, init="fit", seed=1, second_moment=moment)
        assert candidate.squared_error == pytest.approx(built.fit_error**2, rel=0.2)
    assert {sketch.ranks(layer)[0], sketch.ranks(layer)[-1]} <= {one.rank for one in curve}
    sizes, errors = [one.parameters for one in curve], [one.squared_error for one in curve]
    assert sizes == sorted(set(sizes)) and errors == sorted(errors, reverse=True)


def test_build_passes_all_options() -> None:
    sketch = methods.Sketch(
        num_sketches=2,
        mixing="channel",
        scale="normalized",
        blocks=5,
        signs="hadamard",
        frame="signs",
    )
    layer = sketch.build(nn.Conv2d(12, 20, 3), 1, init="fit", seed=9)
    assert (layer.blocks, layer.signs) == (4, "hadamard")  # 5 divides neither 12 nor 20 alike
    assert (layer.num_sketches, layer.mixing, layer.scale) == (2, "channel", 0.5)
    assert (layer.frame, layer.seed) == ("signs", 9)
    linear = sketch.build(nn.Linear(12, 20), 1, init="fit", seed=9)
    assert (linear.num_sketches, linear.frame) == (2, "signs")
    assert (linear.blocks, linear.signs) == (4, "hadamard")
    assert sketch.build(nn.Conv2d(3, 8, 3), 1, init="random", seed=9).blocks == 1
    moment = torch.diag(torch.arange(1.0, 13.0))
    plain = methods.Sketch()
    dense = nn.Linear(12, 20)
    weighted = plain.build(dense, 2, init="fit", seed=9, second_moment=moment)
    assert not torch.equal(weighted.s2, plain.build(dense, 2, init="fit", seed=9).s2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_sketches": 0}, ValueError, "num_sketches must be at least 1"),
        ({"num_sketches": 1.0}, TypeError, "num_sketches must be an int"),
        ({"mixing": "time"}, ValueError, "mixing must be one of 'spatial', 'channel'"),
        ({"scale": "unit"}, ValueError, "scale must be one of"),
        ({"scale": 0.0}, ValueError, "Sketch: scale must be finite and above 0"),
        ({"scale": float("nan")}, ValueError, "Sketch: scale must be finite and above 0"),
        ({"scale": [1.0]}, TypeError, r"Sketch: scale must be .* a number \(got scale=\[1.0\]"),
        ({"scale": True}, TypeError, "Sketch: scale must be .* a number"),
        ({"blocks": 0}, ValueError, "Sketch: blocks must be at least 1"),
        ({"signs": "random"}, ValueError, "signs must be one of 'rademacher', 'hadamard'"),
        ({"frame": True}, ValueError, "frame must be one of None, 'signs'"),
    ],
)
def test_wrong_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        methods.Sketch(**options)


def test_numbers_of_other_classes_become_plain_ones() -> None:
    sketch = methods.Sketch(num_sketches=np.int64(2), scale=Fraction(1, 4))
    assert json.loads(json.dumps(sketch.options())) == sketch.options()
    assert (sketch.num_sketches, sketch.scale) == (2, 0.25)


def test_scale_argument() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=methods.scale_argument)
    for text, scale in [("paper", "paper"), ("normalized", "normalized"), ("0.25", 0.25)]:
        assert parser.parse_args(["--scale", text]).scale == scale
    with pytest.raises(argparse.ArgumentTypeError, match=r"or a number \(got 'big'\)"):
        methods.scale_argument("big")


def test_get() -> None:
    assert methods.get("sketch") == methods.Sketch()
    assert methods.get(methods.Sketch) == methods.Sketch()
    changed = methods.get(methods.Sketch(mixing="channel"), num_sketches=3)
    assert changed == methods.Sketch(mixing="channel", num_sketches=3)
    assert "sketch" in methods.names()
    with pytest.raises(ValueError, match=r"must be one of .*'sketch', .* \(got 'sketsch'\)"):
        methods.get("sketsch")


def test_names_are_taken_once() -> None:
    with pytest.raises(ValueError, match="must be new"):
        methods.register("sketch")(methods.Sketch)


def test_a_new_method_works_everywhere(own_method: type[methods.Method]) -> None:
    model = nn.Sequential(nn.Linear(20, 20, bias=False), nn.Linear(20, 20, bias=False))
    assert {"cp", "rows", "sketch", "svd", "tucker2"} <= set(methods.names())
    assert sketchlayers.inspect(model, method="rows").layers[1].largest_rank == 19
    x = torch.randn(3, 20)
    small, report = sketchlayers.compress(model, own_method(), rate=0.75, example_inputs=x)
    assert report.method == "rows" and report.layers[1].rank == 10
    assert report.layers[1].multiply_adds_after == 3 * 10 * 20
    torch.testing.assert_close(small(x)[:, :10], model(x)[:, :10])
    folded = sketchlayers.fold(small)
    assert type(folded[1]) is nn.Linear
    torch.testing.assert_close(folded(x), small(x))
    # What one method has made is not the business of another.
    rows = sketchlayers.inspect(small).layers
    assert rows[1].reason == "already compressed (Rows); fold(model) makes it plain"
