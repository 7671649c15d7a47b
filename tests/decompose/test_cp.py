"""CP against a general optimiser, tensorly, and outputs that are measured."""

import itertools
import math

import pytest
import torch
from tensorly.decomposition import parafac

from sketchlayers.decompose import cp, cp_errors, svd

from .layers import FLOAT, Layer, minimum

SHAPES = [(9, 8, 3, 2), (6, 10, 1, 3), (7, 9, 4), (6, 5, 2, 3, 2)]
RANKS = [3, 8]


def product(outputs, inputs, *kernel):
    axes = "ijk"[: len(kernel)]
    parts = ",".join(f"{axis}r" for axis in axes)
    return torch.einsum(f"tr,sr,{parts}->ts{axes}", outputs, inputs, *kernel)


def norm(layer):
    return {"second_moment": layer.second_moment, "sensitivity": layer.sensitivity}


def never_rise(errors):
    return all(b <= a for a, b in itertools.pairwise(errors))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("sensitivity", ["full", "diagonal"])
def test_errors_are_what_outputs_show(shape, rank, sensitivity):
    layer = Layer(shape, sensitivity=sensitivity)
    factors = cp(layer.weight, rank, **norm(layer))
    assert [tuple(part.shape) for part in factors.factors] == [(size, rank) for size in shape]
    weight = product(*factors.factors)
    assert never_rise(factors.errors)
    assert layer.output_change(weight) == pytest.approx(factors.relative_error, rel=1e-9)
    # What is minimised has a ridge more, small by design (see `_IMMATERIAL`).
    weighted = layer.weighted_change(weight)
    assert weighted <= factors.errors[-1] * (1 + 1e-9)
    assert weighted == pytest.approx(factors.errors[-1], rel=0.03)


@pytest.mark.parametrize("rank", RANKS)
def test_no_optimiser_finds_a_better_weight(rank):
    """L-BFGS on all four factors gains nothing from ours, and finds none as good by itself."""
    layer = Layer(SHAPES[0])
    factors = cp(layer.weight, rank, tolerance=1e-9, max_sweeps=2000, **norm(layer))
    target = layer.patches @ layer.weight.flatten(1).mT @ layer.root

    def error(*parts):
        outputs = layer.patches @ product(*parts).flatten(1).mT @ layer.root
        return (outputs - target).square().sum() / target.square().sum()

    # Ours is an optimum with a small ridge, so that a little is left to gain without it.
    _, gained = minimum(error, list(factors.factors), steps=100)
    assert math.sqrt(gained) == pytest.approx(factors.errors[-1], rel=0.01)

    torch.manual_seed(0)
    starts = [[torch.randn(size, rank, **FLOAT) for size in SHAPES[0]] for _ in range(4)]
    optima = [math.sqrt(minimum(error, start, steps=300)[1]) for start in starts]
    assert factors.errors[-1] <= 1.02 * min(optima)


@pytest.mark.parametrize("rank", RANKS)
def test_without_second_moment_it_is_as_near_as_tensorly(rank):
    layer = Layer(SHAPES[0])
    factors = cp(layer.weight, rank, starts=6)
    theirs = []
    for seed in range(6):
        weights, parts = parafac(
            layer.weight.numpy(), rank, n_iter_max=300, init="random", random_state=seed, tol=1e-8
        )
        parts = [torch.tensor(part) for part in parts]
        expected = product(parts[0] * torch.tensor(weights), *parts[1:])
        theirs.append(float((layer.weight - expected).norm() / layer.weight.norm()))
    assert factors.relative_error <= 1.005 * min(theirs)


@pytest.mark.parametrize("seed", range(3))
def test_never_above_the_decomposition_without_data(seed):
    layer = Layer(SHAPES[0], seed=seed)
    plain = layer.output_change(product(*cp(layer.weight, 5, seed=seed).factors))
    factors = cp(layer.weight, 5, second_moment=layer.second_moment, seed=seed)
    assert factors.relative_error < 0.9 * plain


@pytest.mark.parametrize("second_moment", [False, True])
def test_an_exact_decomposition_is_found(second_moment):
    layer = Layer((8, 7, 3, 3))
    torch.manual_seed(0)
    weight = product(*(torch.randn(size, 3, **FLOAT) for size in (8, 7, 3, 3)))
    moment = layer.second_moment if second_moment else None
    assert cp(weight, 3, second_moment=moment, max_sweeps=500).relative_error < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("second_moment", [False, True])
def test_full_rank_is_the_weight(second_moment, shape):
    layer = Layer(shape)
    full = min(shape[:2]) * math.prod(shape[2:])
    factors = cp(layer.weight, full, **(norm(layer) if second_moment else {}))
    torch.testing.assert_close(product(*factors.factors), layer.weight)
    assert factors.relative_error < 1e-12


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_of_a_1x1_kernel_it_is_the_best_matrix(axes):
    layer = Layer((9, 8) + axes * (1,))
    factors = cp(layer.weight, 4, **norm(layer))
    expected = svd(layer.weight, 4, **norm(layer))
    assert factors.relative_error == pytest.approx(expected.relative_error, rel=1e-9)


def test_fewer_patches_than_inputs():
    """A singular second moment: what it does not see is free."""
    layer = Layer(SHAPES[0], samples=20)
    factors = cp(layer.weight, 8, second_moment=layer.second_moment)
    weight = product(*factors.factors)
    assert weight.isfinite().all()
    assert layer.output_change(weight) == pytest.approx(factors.relative_error, rel=1e-4)
    assert factors.relative_error < cp(layer.weight, 8).relative_error


def test_seeds_and_balance():
    layer = Layer(SHAPES[0])
    first, again = (cp(layer.weight, 5, seed=3, **norm(layer)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.factors, again.factors, strict=True))
    norms = torch.stack([part.norm(dim=0) for part in first.factors])
    torch.testing.assert_close(norms, norms[:1].expand(4, -1))


def test_more_starts_are_not_worse():
    layer = Layer(SHAPES[0])
    errors = [cp(layer.weight, 6, starts=starts, **norm(layer)).errors[-1] for starts in (1, 2, 5)]
    # Of the same optimum: not to the last digit, since sweeps are shared out otherwise.
    assert all(more <= 1.001 * fewer for fewer, more in itertools.pairwise(errors))


def test_a_start_near_the_optimum_is_taken_further():
    layer = Layer(SHAPES[0])
    first = cp(layer.weight, 6, max_sweeps=100, **norm(layer))
    near = layer.weight + 0.02 * torch.randn(SHAPES[0], **FLOAT) * layer.weight.std()
    from_start = cp(near, 6, start=first.factors, max_sweeps=12, **norm(layer))
    anew = cp(near, 6, starts=1, max_sweeps=12, **norm(layer))
    assert from_start.errors[-1] < anew.errors[-1]
    again = cp(layer.weight, 6, start=first.factors, max_sweeps=12, **norm(layer))
    assert again.errors[-1] <= first.errors[-1] * (1 + 1e-9)


@pytest.mark.parametrize("starts", [1, 2])
@pytest.mark.parametrize("second_moment", [False, True])
@pytest.mark.parametrize("rank", [3, 40])
def test_dead_channels(rank, second_moment, starts):
    """A weight of fewer components than its rank."""
    layer = Layer((8, 7, 3, 3))
    weight = layer.weight.clone()
    weight[2:], weight[:, 2:] = 0, 0
    moment = layer.second_moment if second_moment else None
    factors = cp(weight, rank, second_moment=moment, starts=starts)
    assert factors.relative_error < (1e-3 if rank == 40 else 1)
    weight[:, :, 1:] = 0
    assert cp(weight, rank, second_moment=moment, starts=starts).relative_error < 0.5
    assert cp_errors(weight, [rank], second_moment=moment) < 0.5


def test_estimates_are_near_the_errors_of_fits():
    layer = Layer((16, 12, 3, 3))
    ranks = [4, 20, 40, 108]
    found = cp_errors(layer.weight, ranks, max_sweeps=120, **norm(layer))
    fits = [cp(layer.weight, rank, starts=1, max_sweeps=120, **norm(layer)) for rank in ranks]
    expected = torch.tensor([fit.errors[-1] for fit in fits], **FLOAT)
    torch.testing.assert_close(found[:3], expected[:3], rtol=0.3, atol=0)
    assert found[3] == 0


def test_a_weight_of_zeros():
    factors = cp(torch.zeros(4, 3, 2, 2), 2)
    assert not product(*factors.factors).any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"rank": 0}, ValueError, "rank must be"),
        ({"rank": 49}, ValueError, "rank must be"),
        ({"rank": 2.5}, TypeError, "rank must be"),
        ({"starts": 0}, ValueError, "starts must be"),
        ({"max_sweeps": 0}, ValueError, "max_sweeps must be"),
        ({"tolerance": -1.0}, ValueError, "tolerance must"),
        ({"weight": torch.ones(9, 8)}, RuntimeError, "cp: weight must"),
        ({"weight": torch.full((9, 8, 3, 2), torch.nan)}, ValueError, "finite"),
        ({"second_moment": torch.eye(47)}, RuntimeError, "second_moment must"),
        ({"second_moment": -torch.eye(48)}, ValueError, "positive semidefinite"),
        ({"sensitivity": torch.ones(8)}, RuntimeError, "sensitivity must"),
        ({"start": [torch.ones(9, 3)]}, RuntimeError, "start must be one factor for each axis"),
        (
            {"start": [torch.ones(size, 4) for size in SHAPES[0]]},
            RuntimeError,
            "a factor of start must",
        ),
    ],
)
def test_bad_input(change, error, message):
    given = {"weight": Layer(SHAPES[0]).weight, "rank": 3} | change
    with pytest.raises(error, match=message):
        cp(given.pop("weight"), given.pop("rank"), **given)


@pytest.mark.parametrize("noise", [1e-4, 1e-6])
@pytest.mark.parametrize("channels", [32, 64])
def test_inputs_that_hardly_vary_are_fitted(channels: int, noise: float) -> None:
    """Float32 sees their second moment as singular."""
    torch.manual_seed(0)
    size = channels * 9
    directions = torch.randn(size, 3, dtype=torch.float64) + 3
    inputs = torch.randn(2 * size, 3, dtype=torch.float64) @ directions.T
    inputs += noise * torch.randn(2 * size, size, dtype=torch.float64)
    weight = torch.randn(16, channels, 3, 3, dtype=torch.float64)
    moment = inputs.T @ inputs / len(inputs)
    for rank in (4, 24):
        fit = cp(weight, rank, second_moment=moment, starts=2, max_sweeps=40)
        assert fit.relative_error < 10 * noise
