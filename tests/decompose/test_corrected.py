"""The corrected weight against least squares on explicit patches."""

import math

import pytest
import torch

from sketchlayers.decompose import corrected_weight

from .layers import FLOAT, Layer


def moments(layer, compressed):
    """``E[y x~^T]`` and ``E[x~ x~^T]``."""
    outputs = layer.patches @ layer.weight.flatten(1).mT
    return outputs.mT @ compressed / len(compressed), compressed.mT @ compressed / len(compressed)


@pytest.mark.parametrize("shape", [(5, 4, 3, 2), (5, 12)])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_it_is_the_ridge_regression_of_the_outputs(shape, ridge):
    torch.manual_seed(0)
    layer = Layer(shape)
    inputs = layer.weight[0].numel()
    compressed = layer.patches @ torch.randn(inputs, inputs, **FLOAT)
    cross, second = moments(layer, compressed)
    weight = corrected_weight(layer.weight, cross, second, ridge=ridge)
    assert weight.shape == shape
    extra = (len(compressed) * ridge * second.diagonal().mean()).sqrt() * torch.eye(inputs, **FLOAT)
    matrix = layer.weight.flatten(1)
    expected = torch.linalg.lstsq(
        torch.cat([compressed, extra]),
        torch.cat([layer.patches @ matrix.mT, extra @ matrix.mT]),
        driver="gelsd",
    ).solution.mT
    torch.testing.assert_close(weight.flatten(1), expected, rtol=1e-6, atol=1e-8)


def test_same_inputs_need_no_correction():
    layer = Layer((5, 4, 3, 2))
    cross, second = moments(layer, layer.patches)
    torch.testing.assert_close(corrected_weight(layer.weight, cross, second), layer.weight)


@pytest.mark.parametrize("samples", [3, 10])
@pytest.mark.parametrize("ridge", [0.0, 1e-2])
def test_fewer_patches_than_inputs(samples, ridge):
    """The original outputs are met where there are patches; elsewhere the weight stays."""
    layer = Layer((5, 4, 3, 2), samples)
    compressed = layer.patches * torch.linspace(0.5, 1, 24, **FLOAT)
    cross, second = moments(layer, compressed)
    weight = corrected_weight(layer.weight, cross, second, ridge=ridge)
    target = layer.patches @ layer.weight.flatten(1).mT

    def error(matrix):
        return (compressed @ matrix.flatten(1).mT - target).norm() / target.norm()

    assert error(weight) < (0.6 if ridge else 1e-3) * error(layer.weight)
    basis = torch.linalg.qr(compressed.mT)[0]
    change = (weight - layer.weight).flatten(1)
    assert (change - change @ basis @ basis.mT).norm() < 1e-4 * change.norm()


def test_without_input_the_weight_stays():
    weight = torch.randn(5, 12)
    result = corrected_weight(weight, torch.zeros(5, 12), torch.zeros(12, 12))
    assert torch.equal(result, weight.double())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weight": torch.ones(5)}, RuntimeError, r"weight must have 2 or 3 or 4 or 5 dimensions"),
        ({"weight": torch.full((5, 12), math.nan)}, ValueError, r"weight must be finite"),
        ({"cross_moment": torch.eye(12)}, RuntimeError, r"cross_moment must have shape \(5, 12\)"),
        (
            {"cross_moment": torch.full((5, 12), math.inf)},
            ValueError,
            r"cross_moment must be finite",
        ),
        ({"second_moment": torch.eye(11)}, RuntimeError, r"second_moment must have shape \(12, 12"),
        ({"second_moment": -torch.eye(12)}, ValueError, r"second_moment must be positive semidef"),
        ({"second_moment": torch.randn(12, 12)}, ValueError, r"second_moment must be symmetric"),
        ({"ridge": -1.0}, ValueError, r"ridge must be at least 0 \(got ridge=-1.0\)"),
    ],
)
def test_errors_are_told(changes, error, message):
    arguments = {
        "weight": torch.ones(5, 12),
        "cross_moment": torch.ones(5, 12),
        "second_moment": torch.eye(12),
        **changes,
    }
    with pytest.raises(error, match=f"corrected_weight: .*{message}"):
        corrected_weight(**arguments)


@pytest.mark.parametrize("images", [600, 4000])
def test_many_inputs_of_few_outputs_are_solved_as_by_the_dense_formula(images: int) -> None:
    """From 2048 inputs on it is iterative; fewer images than inputs leave directions unseen."""
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = 2100, 3
    spread = torch.logspace(0, -3, inputs, dtype=torch.float64)
    actual = torch.randn(images, inputs, dtype=torch.float64, generator=generator) * spread + 0.1
    target = torch.randn(images, outputs, dtype=torch.float64, generator=generator)
    weight = torch.randn(outputs, inputs, dtype=torch.float64, generator=generator)
    weight[2] = 0
    target[:, 2] = 0  # this row is right as it is
    moment, cross = actual.T @ actual / images, target.T @ actual / images
    shift = 1e-3 * moment.diagonal().mean() * torch.eye(inputs, dtype=torch.float64)
    expected = torch.linalg.solve(moment + shift, (cross + weight @ shift).T).T
    for scale in (1.0, 1e-60):  # the moment's unit does not matter
        found = corrected_weight(weight, scale * cross, scale * moment)
        assert (found - expected).norm() < 1e-8 * expected.norm()


def test_many_inputs_without_a_ridge_fall_back_to_the_dense_formula() -> None:
    inputs, outputs = 2100, 3
    actual = torch.randn(40, inputs, dtype=torch.float64)
    weight = torch.randn(outputs, inputs, dtype=torch.float64)
    original = torch.randn(40, inputs, dtype=torch.float64)
    moment, cross = actual.T @ actual / 40, weight @ original.T @ actual / 40
    found = corrected_weight(weight, cross, moment, ridge=0.0)
    torch.testing.assert_close(actual @ found.T, original @ weight.T, rtol=1e-4, atol=1e-4)
