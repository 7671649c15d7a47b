"""Vertical and horizontal filters: the published optimum, and what data change."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sketchlayers.decompose import vertical_horizontal

from .layers import FLOAT, Layer, minimum

SHAPE = (9, 5, 3, 2)


def product(vertical: Tensor, horizontal: Tensor) -> Tensor:
    return torch.einsum("rsi,trj->tsij", vertical, horizontal)


@pytest.mark.parametrize("rank", [1, 4, 10])
def test_without_data_it_is_the_optimum_of_the_paper(rank: int) -> None:
    weight = Layer(SHAPE).weight
    found = vertical_horizontal(weight, rank)
    assert found.vertical.shape == (rank, 5, 3) and found.horizontal.shape == (9, rank, 2)
    matrix = weight.permute(1, 2, 3, 0).reshape(15, 18)
    values = torch.linalg.svdvals(matrix)
    best = (values[rank:].square().sum() / values.square().sum()).sqrt()
    assert found.relative_error == pytest.approx(float(best), rel=1e-9)
    # The root of every singular value on either side.
    torch.testing.assert_close(found.vertical.norm(dim=(1, 2)), values[:rank].sqrt())
    torch.testing.assert_close(found.horizontal.norm(dim=(0, 2)), values[:rank].sqrt())


@pytest.mark.parametrize("rank", [2, 6])
@pytest.mark.parametrize("sensitivity", ["diagonal", "full"])
def test_with_data(rank: int, sensitivity: str) -> None:
    """The error is that of the outputs, below the published form's, and near an optimum."""
    layer = Layer(SHAPE, sensitivity=sensitivity)
    norm = {"second_moment": layer.second_moment, "sensitivity": layer.sensitivity}
    found = vertical_horizontal(layer.weight, rank, **norm)
    weight = product(found.vertical, found.horizontal)
    assert layer.output_change(weight) == pytest.approx(found.relative_error, rel=1e-9)
    blind = vertical_horizontal(layer.weight, rank)
    ours, theirs = (
        layer.weighted_change(product(one.vertical, one.horizontal)) for one in (found, blind)
    )
    assert ours < theirs

    target = layer.patches @ layer.weight.flatten(1).T @ layer.root

    def error(horizontal: Tensor) -> Tensor:
        outputs = layer.patches @ product(found.vertical, horizontal).flatten(1).T @ layer.root
        return (outputs - target).square().sum() / target.square().sum()

    _, best = minimum(error, [found.horizontal], steps=300)
    assert ours**2 == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("data", [False, True])
def test_full_rank_is_the_weight(data: bool) -> None:
    layer = Layer(SHAPE)
    moment = layer.second_moment if data else None
    found = vertical_horizontal(layer.weight, 15, second_moment=moment)
    torch.testing.assert_close(product(found.vertical, found.horizontal), layer.weight)


def test_fewer_patches_than_inputs_and_zeros() -> None:
    layer = Layer(SHAPE, samples=10)
    found = vertical_horizontal(layer.weight, 4, second_moment=layer.second_moment)
    assert product(found.vertical, found.horizontal).isfinite().all()
    assert found.relative_error < vertical_horizontal(layer.weight, 4).relative_error
    zeros = vertical_horizontal(torch.zeros(SHAPE, **FLOAT), 2)
    assert not product(zeros.vertical, zeros.horizontal).any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rank": 0}, ValueError, "rank must be"),
        ({"rank": 16}, ValueError, "rank must be"),
        ({"weight": torch.ones(9, 8)}, RuntimeError, "weight must"),
        ({"weight": torch.full(SHAPE, torch.nan)}, ValueError, "finite"),
        ({"second_moment": torch.eye(29)}, RuntimeError, "second_moment must"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], message: str) -> None:
    given = {"weight": Layer(SHAPE).weight, "rank": 3} | change
    with pytest.raises(error, match=message):
        vertical_horizontal(given.pop("weight"), given.pop("rank"), **given)
