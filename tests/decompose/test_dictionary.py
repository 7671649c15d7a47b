"""Coefficients in a dictionary against a dense least-squares solver."""

from __future__ import annotations

import pytest
import torch

from sketchlayers.decompose import dictionary_least_squares

from .layers import FLOAT, Layer


@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("norm", [False, True])
def test_nearest_of_all_coefficients(columns: int, norm: bool) -> None:
    layer = Layer((9, 4, 3, 2))
    dictionary = torch.randn(columns, 7, 24, **FLOAT)
    moment = layer.second_moment if norm else None
    found = dictionary_least_squares(layer.weight, dictionary, second_moment=moment)
    patches = layer.patches if norm else torch.eye(24, **FLOAT)
    target = patches @ layer.weight.flatten(1).T
    per_column = 9 // columns
    squares = 0.0
    for column, atoms in enumerate(dictionary):
        rows = slice(column * per_column, (column + 1) * per_column)
        expected = torch.linalg.lstsq(patches @ atoms.T, target[:, rows]).solution.T
        torch.testing.assert_close(found.coefficients[column], expected)
        squares += float((patches @ (expected @ atoms).T - target[:, rows]).square().sum())
    error = (squares / float(target.square().sum())) ** 0.5
    assert found.relative_error == pytest.approx(error, rel=1e-6)


def test_dependent_atoms_and_singular_moments() -> None:
    layer = Layer((9, 4, 3, 2), samples=10)
    atoms = torch.randn(1, 5, 24, **FLOAT)
    twice = torch.cat([atoms, atoms], 1)
    once = dictionary_least_squares(layer.weight, atoms, second_moment=layer.second_moment)
    found = dictionary_least_squares(layer.weight, twice, second_moment=layer.second_moment)
    assert found.coefficients.isfinite().all()
    assert found.relative_error == pytest.approx(once.relative_error, rel=1e-6)


def test_a_full_dictionary_is_exact() -> None:
    layer = Layer((9, 4, 3, 2))
    found = dictionary_least_squares(layer.weight, torch.randn(1, 24, 24, **FLOAT))
    assert found.relative_error < 1e-10


def test_bad_input() -> None:
    weight = torch.ones(9, 4)
    with pytest.raises(RuntimeError, match="dictionary must have shape"):
        dictionary_least_squares(weight, torch.ones(1, 2, 5))
    with pytest.raises(RuntimeError, match="columns must divide the rows"):
        dictionary_least_squares(weight, torch.ones(2, 2, 4))
    with pytest.raises(ValueError, match="dictionary must be finite"):
        dictionary_least_squares(weight, torch.full((1, 2, 4), torch.inf))
