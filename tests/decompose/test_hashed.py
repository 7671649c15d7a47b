"""Shared values against a dense least-squares solver."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sketchlayers import ops
from sketchlayers.decompose import hashed_least_squares
from sketchlayers.nn.generated.fresh import cosines

from .layers import FLOAT, Layer

SHAPE, COUNT = (9, 4, 3, 2), 40


def hashed(values: Tensor) -> Tensor:
    return ops.hashed_weight(values, torch.tensor(2), 9, 24)[None]


def fresh(values: Tensor) -> Tensor:
    basis = torch.kron(cosines(3), cosines(2))
    tables = {"first": [0, 10, 10, 20, 20, 25], "buckets": [10, 10, 10, 5, 5, 15]}
    return ops.fresh_weight(values, torch.tensor(2), basis, 9, 24, **tables)[None]


@pytest.mark.parametrize("form", [hashed, fresh])
@pytest.mark.parametrize("norm", ["none", "moment", "diagonal", "full"])
def test_nearest_of_all_values(form, norm: str) -> None:
    layer = Layer(SHAPE, sensitivity="diagonal" if norm == "diagonal" else "full")
    moment = None if norm == "none" else layer.second_moment
    sensitivity = layer.sensitivity if norm in ("diagonal", "full") else None
    found = hashed_least_squares(
        form, COUNT, [(layer.weight, moment, sensitivity)], max_iterations=1000, tolerance=1e-12
    )
    matrix = torch.stack([form(unit)[0] for unit in torch.eye(COUNT, **FLOAT)], -1)  # (T, n, K)
    patches = torch.eye(24, **FLOAT) if moment is None else layer.patches
    root = torch.eye(9, **FLOAT) if sensitivity is None else layer.root
    design = torch.einsum("pn,tnk,to->pok", patches, matrix, root).flatten(0, 1)
    target = (patches @ layer.weight.flatten(1).T @ root).flatten()
    expected = torch.linalg.lstsq(design, target[:, None], driver="gelsd").solution[:, 0]
    residual, best = ((design @ v - target).norm() for v in (found.values, expected))
    assert residual <= best * (1 + 1e-9)
    change = patches @ (matrix @ found.values - layer.weight.flatten(1)).T
    error = change.norm() / (patches @ layer.weight.flatten(1).T).norm()
    assert found.relative_error == pytest.approx(float(error), rel=1e-9)


def test_never_above_the_means() -> None:
    layer = Layer(SHAPE)
    means = hashed_least_squares(hashed, COUNT, [(layer.weight, None, None)])
    for iterations in (1, 2, 5, 20):
        found = hashed_least_squares(
            hashed, COUNT, [(layer.weight, layer.second_moment, None)], max_iterations=iterations
        )
        before = layer.output_change(hashed(means.values)[0].reshape(SHAPE))
        assert found.relative_error <= before


def test_values_without_entries_and_without_effect() -> None:
    layer = Layer(SHAPE)
    unused = hashed_least_squares(
        lambda values: hashed(values[:COUNT]), COUNT + 3, [(layer.weight, None, None)]
    )
    assert not unused.values[COUNT:].any()
    nothing = torch.zeros(24, 24)
    found = hashed_least_squares(hashed, COUNT, [(layer.weight, nothing, None)])
    assert found.values.isfinite().all()
    zero = hashed_least_squares(hashed, COUNT, [(torch.zeros(SHAPE), layer.second_moment, None)])
    assert not zero.values.any() and zero.relative_error == 0


def test_several_groups_share_values() -> None:
    layers = [Layer((3, 4, 3, 2), seed=seed) for seed in range(3)]
    targets = [(layer.weight, layer.second_moment, None) for layer in layers]

    def form(values: Tensor) -> Tensor:
        return hashed(values)[0].unflatten(0, (3, 3))

    found = hashed_least_squares(form, COUNT, targets, max_iterations=500)
    squares = sizes = 0.0
    for layer, matrix in zip(layers, form(found.values), strict=True):
        own = layer.weight.flatten(1)
        squares += float((layer.patches @ (matrix - own).T).square().mean(0).sum())
        sizes += float((layer.patches @ own.T).square().mean(0).sum())
    assert found.relative_error == pytest.approx((squares / sizes) ** 0.5, rel=1e-9)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"count": 0}, ValueError, "count must be"),
        ({"max_iterations": 0}, ValueError, "max_iterations must be"),
        ({"tolerance": -1.0}, ValueError, "tolerance must"),
        ({"form": lambda values: hashed(values)[:, 1:]}, RuntimeError, "form must give"),
        ({"targets": [(torch.full(SHAPE, torch.nan), None, None)]}, ValueError, "finite"),
        ({"targets": [(torch.ones(SHAPE), torch.eye(5), None)]}, RuntimeError, "second_moment"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    targets = [(torch.ones(SHAPE), None, None)]
    given = {"form": hashed, "count": COUNT, "targets": targets} | change
    with pytest.raises(error, match=message):
        hashed_least_squares(**given)
