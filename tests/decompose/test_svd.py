"""The closed form against a numerical optimum, plain SVD and outputs that are measured."""

import math

import pytest
import torch

from sketchlayers.decompose import svd, svd_errors

from .layers import FLOAT, Layer, minimum

SHAPES = [(7, 4, 2, 3), (9, 6), (12, 3, 1, 2)]  # the last has more outputs than inputs


def product(factors):
    return torch.einsum("tr,r...->t...", factors.left, factors.right)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_second_moment_it_is_the_plain_svd(shape):
    layer = Layer(shape)
    u, s, vh = torch.linalg.svd(layer.weight.flatten(1), full_matrices=False)
    for rank in (1, 3, len(s)):
        factors = svd(layer.weight, rank)
        assert factors.left.shape == (shape[0], rank)
        assert factors.right.shape == (rank, *shape[1:])
        expected = (u[:, :rank] * s[:rank]) @ vh[:rank]
        torch.testing.assert_close(product(factors).flatten(1), expected)
        error = (s[rank:].norm() / s.norm()).item()
        assert factors.relative_error == pytest.approx(error, abs=1e-12)
        assert factors.errors == pytest.approx((error,), abs=1e-12)
    identity = torch.eye(layer.weight[0].numel(), **FLOAT)
    same = svd(layer.weight, 2, second_moment=identity, sensitivity=torch.ones(shape[0]))
    torch.testing.assert_close(product(same), product(svd(layer.weight, 2)))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sensitivity", ["full", "diagonal"])
def test_no_optimiser_finds_a_better_weight(shape, sensitivity):
    layer = Layer(shape, sensitivity=sensitivity)
    factors = svd(layer.weight, 2, second_moment=layer.second_moment, sensitivity=layer.sensitivity)
    target = layer.patches @ layer.weight.flatten(1).mT @ layer.root

    def error(left, right):
        outputs = layer.patches @ (left @ right).mT @ layer.root
        return (outputs - target).square().sum() / target.square().sum()

    def optimum():
        inputs = target.new_empty(2, layer.patches.shape[1]).normal_()
        return minimum(error, [target.new_empty(shape[0], 2).normal_(), inputs])[1]

    torch.manual_seed(0)
    best = min(optimum() for _ in range(3))
    assert factors.errors[0] == pytest.approx(math.sqrt(best), rel=1e-6)
    assert factors.errors[0] <= math.sqrt(best) * (1 + 1e-9)
    assert layer.weighted_change(product(factors)) == pytest.approx(factors.errors[0])
    assert layer.output_change(product(factors)) == pytest.approx(factors.relative_error)


@pytest.mark.parametrize("shape", SHAPES)
def test_errors_are_those_of_every_rank(shape):
    layer = Layer(shape)
    norm = {"second_moment": layer.second_moment, "sensitivity": layer.sensitivity}
    errors = svd_errors(layer.weight, **norm)
    largest = min(shape[0], layer.weight[0].numel())
    assert errors.shape == (largest + 1,)
    assert errors[0] == 1
    for rank in range(1, largest + 1):
        expected = svd(layer.weight, rank, **norm).errors[0]
        assert errors[rank].item() == pytest.approx(expected, rel=1e-6, abs=3e-8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("samples", [1, 5])
def test_fewer_patches_than_inputs(shape, samples):
    """As many ranks as patches are enough; every factor is finite and full rank is the weight."""
    layer = Layer(shape, samples)
    norm = {"second_moment": layer.second_moment, "sensitivity": layer.sensitivity}
    factors = svd(layer.weight, samples, **norm)
    assert factors.relative_error < 1e-7
    assert layer.output_change(product(factors)) < 1e-7
    assert torch.cat([factors.left.flatten(), factors.right.flatten()]).isfinite().all()
    full = svd(layer.weight, min(shape[0], layer.weight[0].numel()), **norm)
    torch.testing.assert_close(product(full), layer.weight, atol=1e-9, rtol=1e-9)


def test_tiny_errors_are_measured_and_not_rounded():
    """A weight of rank 2 but for one part in a million."""
    layer = Layer((8, 5, 2, 2))
    rank_two = product(svd(layer.weight, 2, second_moment=layer.second_moment))
    layer.weight = rank_two + 1e-6 * layer.weight
    factors = svd(layer.weight, 2, second_moment=layer.second_moment)
    assert 1e-7 < factors.relative_error < 1e-6
    assert factors.relative_error == pytest.approx(layer.output_change(product(factors)), rel=1e-5)


def test_outputs_and_inputs_without_effect():
    layer = Layer((6, 3, 2, 2))
    expected = svd(layer.weight, 3)
    without_input = svd(layer.weight, 3, second_moment=torch.zeros(12, 12))
    torch.testing.assert_close(product(without_input), product(expected))
    assert without_input.relative_error == 0
    assert without_input.errors == expected.errors
    no_sensitivity = svd(layer.weight, 3, sensitivity=torch.zeros(6, 6))
    torch.testing.assert_close(product(no_sensitivity), product(expected))

    some = torch.tensor([1.0, 0, 1, 0, 1, 0])
    for sensitivity in (some, some.diag()):
        factors = svd(layer.weight, 3, sensitivity=sensitivity)
        change = product(factors) - layer.weight
        assert change[::2].abs().max() < 1e-9
        assert factors.errors[0] < 1e-4
        assert factors.relative_error > 0.1
        assert product(factors).isfinite().all()

    zero = svd(torch.zeros(6, 3, 2, 2), 2, second_moment=layer.second_moment)
    assert zero.relative_error == zero.errors[0] == 0
    assert product(zero).count_nonzero() == 0
    assert svd_errors(torch.zeros(4, 3)).tolist() == [0] * 4


def test_scales_do_not_matter_and_results_repeat():
    layer = Layer((7, 4, 2, 2))
    moment = layer.second_moment
    first = svd(layer.weight, 3, second_moment=moment, sensitivity=layer.sensitivity)
    again = svd(layer.weight, 3, second_moment=moment, sensitivity=layer.sensitivity)
    for a, b in zip(first, again, strict=True):
        assert (a == b) if not isinstance(a, torch.Tensor) else torch.equal(a, b)
    scaled = svd(
        layer.weight * 1e-20, 3, second_moment=moment * 1e-12, sensitivity=layer.sensitivity * 1e9
    )
    torch.testing.assert_close(product(scaled) * 1e20, product(first))
    assert scaled.relative_error == pytest.approx(first.relative_error)


def test_inputs_are_left_as_they_are_and_types_do_not_matter():
    layer = Layer((7, 4, 2, 2))
    weight = torch.nn.Parameter(layer.weight.bfloat16())
    moment = layer.second_moment.float()
    copies = weight.detach().clone(), moment.clone()
    factors = svd(weight, 3, second_moment=moment)
    assert factors.left.dtype == factors.right.dtype == torch.float64
    assert not factors.left.requires_grad
    torch.testing.assert_close(
        factors, svd(weight.double(), 3, second_moment=moment.double()), rtol=1e-6, atol=1e-8
    )
    assert torch.equal(weight, copies[0])
    assert torch.equal(moment, copies[1])


def filled(value):
    moment = torch.eye(24)
    moment[2, 3] = value
    return moment


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weight": torch.ones(6)}, RuntimeError, r"weight must have 2 or 3 or 4 or 5 dimensions"),
        ({"weight": torch.ones(0, 4)}, RuntimeError, r"none of size 0 \(got shape=\(0, 4\)\)"),
        ({"weight": torch.ones(6, 24).int()}, TypeError, r"weight must be real floating point"),
        ({"weight": torch.full((6, 24), math.nan)}, ValueError, r"weight must be finite \(got 144"),
        ({"rank": 0}, ValueError, r"rank must be from 1 to 6 \(got rank=0\)"),
        ({"rank": 7}, ValueError, r"rank must be from 1 to 6 \(got rank=7\)"),
        ({"rank": 2.0}, TypeError, r"rank must be a whole number \(got 2.0\)"),
        (
            {"second_moment": torch.eye(23)},
            RuntimeError,
            r"must have shape \(24, 24\) \(got",
        ),
        ({"second_moment": filled(math.inf)}, ValueError, r"second_moment must be finite"),
        ({"second_moment": filled(1.0)}, ValueError, r"second_moment must be symmetric"),
        ({"second_moment": -torch.eye(24)}, ValueError, r"positive semidefinite \(got -1 on the"),
        (
            {"second_moment": 2 * torch.ones(24, 24) - torch.eye(24)},
            ValueError,
            r"second_moment must be positive semidefinite \(got an output with the mean square -",
        ),
        ({"sensitivity": torch.ones(5)}, RuntimeError, r"sensitivity must have shape \(6, 6\) or"),
        ({"sensitivity": -torch.ones(6)}, ValueError, r"sensitivity must be positive semidefinite"),
        (
            {"sensitivity": 2 * torch.ones(6, 6) - torch.eye(6)},
            ValueError,
            r"sensitivity must be positive semidefinite \(got a matrix that is not even after",
        ),
        ({"sensitivity": torch.ones(6).int()}, TypeError, r"sensitivity must be real floating"),
    ],
)
def test_errors_are_told(changes, error, message):
    torch.manual_seed(0)
    arguments = {"weight": torch.randn(6, 24), "rank": 3, **changes}
    with pytest.raises(error, match=f"svd: .*{message}"):
        svd(**arguments)
    del arguments["rank"]
    if "rank" not in changes:
        with pytest.raises(error, match=f"svd_errors: .*{message}"):
            svd_errors(**arguments)


def test_inputs_below_the_range_of_float32_are_none():
    """Their squares are rounding errors of any sign, as behind layers that have died."""
    layer = Layer((6, 5, 1, 1))
    rounding = -1e-46 * layer.second_moment
    expected = svd(layer.weight, 3, second_moment=torch.zeros_like(rounding))
    found = svd(layer.weight, 3, second_moment=rounding)
    assert torch.equal(product(found), product(expected))
    # Small inputs whose squares are what they should be count as any others do.
    small = svd(layer.weight, 3, second_moment=1e-60 * layer.second_moment)
    torch.testing.assert_close(
        product(small), product(svd(layer.weight, 3, second_moment=layer.second_moment))
    )
