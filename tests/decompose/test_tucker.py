"""Tucker-2 against a general optimiser, tensorly, closed forms and outputs that are measured."""

import itertools
import math

import pytest
import torch
from tensorly.decomposition import partial_tucker

from sketchlayers.decompose import svd, svd_errors, tucker2, tucker2_errors

from .layers import FLOAT, Layer, minimum

SHAPES = [(9, 8, 3, 2), (6, 10, 1, 3)]
OTHER_AXES = [(7, 9, 4), (7, 6, 2, 3, 2)]
RANKS = [(3, 4), (2, None), (None, 3), (5, 6)]


def product(factors):
    weight = factors.core
    if factors.input_factor is not None:
        weight = torch.einsum("ab...,bs->as...", weight, factors.input_factor)
    if factors.output_factor is not None:
        weight = torch.einsum("as...,ta->ts...", weight, factors.output_factor)
    return weight


def norm(layer):
    return {"second_moment": layer.second_moment, "sensitivity": layer.sensitivity}


def never_rise(errors):
    return all(b <= a for a, b in itertools.pairwise(errors))


@pytest.mark.parametrize("shape", SHAPES + OTHER_AXES)
@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("sensitivity", ["full", "diagonal"])
def test_errors_are_what_outputs_show(shape, ranks, sensitivity):
    layer = Layer(shape, sensitivity=sensitivity)
    factors = tucker2(layer.weight, ranks, **norm(layer))
    outputs, channels, *kernel = shape
    core = (ranks[1] or outputs, ranks[0] or channels, *kernel)
    assert factors.core.shape == core
    for factor, rank, size in (
        (factors.input_factor, ranks[0], (core[1], channels)),
        (factors.output_factor, ranks[1], (outputs, core[0])),
    ):
        assert (factor is None) == (rank is None)
        assert factor is None or factor.shape == size
    weight = product(factors)
    assert never_rise(factors.errors)
    assert layer.output_change(weight) == pytest.approx(factors.relative_error, rel=1e-9)
    assert layer.weighted_change(weight) == pytest.approx(factors.errors[-1], rel=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ranks", RANKS)
def test_no_optimiser_finds_a_better_weight(shape, ranks):
    """L-BFGS on all factors gains nothing from ours; of its own local optima few are as good."""
    layer = Layer(shape)
    factors = tucker2(layer.weight, ranks, tolerance=1e-9, max_sweeps=500, **norm(layer))
    target = layer.patches @ layer.weight.flatten(1).mT @ layer.root

    def error(across, core, out):
        weight = torch.einsum("ta,abij,bs->tsij", out, core, across)
        outputs = layer.patches @ weight.flatten(1).mT @ layer.root
        return (outputs - target).square().sum() / target.square().sum()

    across, out = factors.input_factor, factors.output_factor
    across = torch.eye(shape[1], **FLOAT) if across is None else across
    out = torch.eye(shape[0], **FLOAT) if out is None else out
    _, gained = minimum(error, [across, factors.core, out], steps=50)
    assert math.sqrt(gained) == pytest.approx(factors.errors[-1], rel=1e-6)

    torch.manual_seed(0)
    starts = [
        [torch.randn_like(across), torch.randn_like(factors.core), torch.randn_like(out)]
        for _ in range(4)
    ]
    optima = sorted(math.sqrt(minimum(error, start, steps=150)[1]) for start in starts)
    assert factors.errors[-1] <= optima[0] * 1.06
    assert factors.errors[-1] <= optima[1] * 1.001


@pytest.mark.parametrize("ranks", [(3, 4), (5, 6), (2, None)])
def test_without_second_moment_it_is_the_plain_decomposition(ranks):
    layer = Layer((9, 8, 3, 2))
    factors = tucker2(layer.weight, ranks, tolerance=1e-9)
    (core, modes), _ = partial_tucker(
        layer.weight.numpy(),
        rank=[ranks[1] or 9, ranks[0]],
        modes=[0, 1],
        n_iter_max=2000,
        tol=1e-12,
    )
    core, out, across = (torch.tensor(array) for array in (core, *modes))
    expected = torch.einsum("ta,abij,sb->tsij", out, core, across)
    error = (expected - layer.weight).norm() / layer.weight.norm()
    assert factors.relative_error == pytest.approx(error.item(), rel=1e-6)
    assert factors.errors[-1] == pytest.approx(error.item(), rel=1e-6)
    torch.testing.assert_close(product(factors), expected, rtol=1e-3, atol=1e-4)
    orthonormal = factors.input_factor @ factors.input_factor.mT
    torch.testing.assert_close(orthonormal, torch.eye(ranks[0], **FLOAT))


def test_the_second_moment_helps():
    layer = Layer((9, 8, 3, 2))
    plain = layer.output_change(product(tucker2(layer.weight, (4, 4))))
    factors = tucker2(layer.weight, (4, 4), second_moment=layer.second_moment)
    assert factors.relative_error < 0.9 * plain


@pytest.mark.parametrize("second_moment", [False, True])
def test_full_ranks_are_the_weight(second_moment):
    layer = Layer((9, 8, 3, 2))
    given = norm(layer) if second_moment else {}
    for ranks in ((8, 9), (8, None), (None, 9), (None, None)):
        factors = tucker2(layer.weight, ranks, **given)
        torch.testing.assert_close(product(factors), layer.weight)
        assert factors.relative_error < 1e-12
        assert max(factors.errors) < 1e-12
    low = product(tucker2(layer.weight, (4, 5), **given))
    factors = tucker2(low, (4, 5), **given)
    assert factors.relative_error < 1e-7
    torch.testing.assert_close(product(factors), low, rtol=1e-5, atol=1e-6)


def test_one_mode_or_one_position_is_an_svd():
    layer = Layer((9, 8, 3, 2))
    for input_rank in (None, 8):
        factors = tucker2(layer.weight, (input_rank, 4), **norm(layer))
        expected = svd(layer.weight, 4, **norm(layer))
        assert factors.errors == expected.errors
        torch.testing.assert_close(factors.core, expected.right)
        torch.testing.assert_close(factors.output_factor, expected.left)
    layer = Layer((9, 8, 1, 1))
    for ranks in ((3, 5), (5, 3), (3, None), (3, 3)):
        factors = tucker2(layer.weight, ranks, **norm(layer))
        expected = svd(layer.weight, 3, **norm(layer))
        assert factors.errors[-1] == pytest.approx(expected.errors[0])
        torch.testing.assert_close(
            product(factors).flatten(1), (expected.left @ expected.right.flatten(1))
        )


@pytest.mark.parametrize("samples", [1, 7, 20])
@pytest.mark.parametrize("ranks", [(3, 4), (1, 9), (7, 1), (2, None)])
def test_fewer_patches_than_inputs(samples, ranks):
    """The ridge decides what the data leave open; what they say is kept."""
    layer = Layer((9, 8, 3, 2), samples)
    factors = tucker2(layer.weight, ranks, **norm(layer))
    weight = product(factors)
    assert never_rise(factors.errors)
    assert weight.abs().max() < 100 * layer.weight.abs().max()
    assert layer.output_change(weight) == pytest.approx(factors.relative_error, abs=1e-7)
    ridged = layer.weighted_change(weight, ridge=1e-10)
    assert ridged == pytest.approx(factors.errors[-1], rel=1e-4, abs=1e-7)
    ranks = tuple(rank or 9 for rank in ranks)
    if samples == 1:
        assert factors.relative_error < 1e-4
    assert factors.relative_error <= tucker2(layer.weight, ranks).relative_error


def test_channels_without_input():
    """Nothing is known of them, so they follow the weight's own norm in the second place."""
    layer = Layer((9, 8, 3, 2))
    layer.patches.unflatten(1, (8, 6))[:, 2] = 0
    factors = tucker2(layer.weight, (6, 7), **norm(layer))
    assert layer.output_change(product(factors)) == pytest.approx(factors.relative_error)
    assert product(factors).abs().max() < 10 * layer.weight.abs().max()
    kept = [c for c in range(8) if c != 2]
    moment = layer.second_moment.unflatten(0, (8, 6)).unflatten(2, (8, 6))[kept][:, :, kept]
    smaller = tucker2(
        layer.weight[:, kept],
        (6, 7),
        second_moment=moment.flatten(2).flatten(0, 1),
        sensitivity=layer.sensitivity,
    )
    assert factors.errors[-1] == pytest.approx(smaller.errors[-1], rel=1e-3)


def test_inputs_or_outputs_without_effect():
    layer = Layer((9, 8, 3, 2))
    expected = tucker2(layer.weight, (3, 4))
    without_input = tucker2(layer.weight, (3, 4), second_moment=torch.zeros(48, 48))
    torch.testing.assert_close(product(without_input), product(expected))
    assert without_input.relative_error == 0
    no_sensitivity = tucker2(layer.weight, (3, 4), sensitivity=torch.zeros(9))
    torch.testing.assert_close(product(no_sensitivity), product(expected))
    some = torch.tensor([1.0, 0, 1] * 3)
    for sensitivity in (some, some.diag()):
        factors = tucker2(layer.weight, (7, 6), sensitivity=sensitivity)
        important = tucker2(layer.weight[::3], (7, 3))
        assert product(factors).isfinite().all()
        assert factors.errors[-1] < 0.5 * factors.relative_error
        assert important.errors[-1] < 1
    zero = tucker2(torch.zeros(9, 8, 3, 2), (3, 4), second_moment=layer.second_moment)
    assert zero.errors == (0,)
    assert product(zero).count_nonzero() == 0


def test_a_start_saves_sweeps_and_results_repeat():
    layer = Layer((9, 8, 3, 2))
    first = tucker2(layer.weight, (3, 4), **norm(layer))
    again = tucker2(layer.weight, (3, 4), **norm(layer))
    assert first.errors == again.errors
    assert all(torch.equal(a, b) for a, b in zip(first[:3], again[:3], strict=True))
    warm = tucker2(layer.weight, (3, 4), start=first.input_factor, **norm(layer))
    assert len(warm.errors) < len(first.errors)
    assert warm.errors[0] == pytest.approx(first.errors[-1])
    one = tucker2(layer.weight, (3, 4), max_sweeps=1, **norm(layer))
    assert one.errors == first.errors[:1]
    worse = tucker2(layer.weight, (3, 4), start=torch.eye(8)[:3], **norm(layer))
    assert worse.errors[0] > first.errors[0]
    assert never_rise(worse.errors)
    scaled = tucker2(
        layer.weight * 1e-20,
        (3, 4),
        second_moment=layer.second_moment * 1e-12,
        sensitivity=layer.sensitivity * 1e9,
    )
    assert scaled.errors[-1] == pytest.approx(first.errors[-1], rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sensitivity", [False, True])
def test_error_surface(shape, sensitivity):
    """Upper bounds of what `tucker2` reaches, close to it, and exact where it is a closed form."""
    layer = Layer(shape)
    given = norm(layer) if sensitivity else {"second_moment": layer.second_moment}
    outputs, channels = shape[:2]
    input_ranks = [2, 4, channels - 1, channels, None]
    errors = tucker2_errors(layer.weight, input_ranks, **given)
    assert errors.shape == (len(input_ranks), outputs + 1)
    assert (errors[:, 0] == 1).all()
    assert (errors.diff(dim=1) <= 1e-12).all()
    expected = svd_errors(layer.weight, **given)
    for row in errors[-2:]:
        torch.testing.assert_close(row[: len(expected)], expected)
        assert (row[len(expected) :] == 0).all()
    for row, rank in zip(errors[:3], input_ranks, strict=False):
        for output_rank in (1, outputs // 2, outputs):
            fitted = tucker2(layer.weight, (rank, output_rank), **given).errors[-1]
            assert fitted * (1 - 1e-4) <= row[output_rank] <= fitted * 1.25
    rows = tucker2_errors(layer.weight, [3], sweeps=100, **given)
    fitted = tucker2(layer.weight, (3, None), max_sweeps=100, tolerance=0, **given)
    assert rows[0, -1].item() == pytest.approx(fitted.errors[-1], rel=1e-9)
    fitted = tucker2(
        layer.weight, (3, 3), start=fitted.input_factor, max_sweeps=1, tolerance=0, **given
    )
    assert rows[0, 3].item() == pytest.approx(fitted.errors[-1], rel=1e-9)


def test_error_surface_of_nothing():
    assert tucker2_errors(torch.zeros(5, 4, 3, 3), [2, None]).count_nonzero() == 0
    assert tucker2_errors(torch.ones(5, 4, 3, 3), []).shape == (0, 6)


def changed(**changes):
    torch.manual_seed(0)
    return {"weight": torch.randn(6, 4, 2, 3), "ranks": (3, 3), **changes}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"weight": torch.ones(6, 24)}, RuntimeError, r"weight must have 3 or 4 or 5 dimensions"),
        ({"weight": torch.full((6, 4, 2, 3), math.inf)}, ValueError, r"weight must be finite"),
        ({"ranks": (0, 3)}, ValueError, r"input rank must be from 1 to 4 \(got input rank=0\)"),
        ({"ranks": (5, 3)}, ValueError, r"input rank must be from 1 to 4 \(got input rank=5\)"),
        ({"ranks": (3, 7)}, ValueError, r"output rank must be from 1 to 6 \(got output rank=7\)"),
        ({"ranks": (3, 1.5)}, TypeError, r"output rank must be a whole number \(got 1.5\)"),
        ({"ranks": 3}, TypeError, r"ranks must be a pair \(input rank, output rank\) \(got 3\)"),
        ({"start": torch.ones(2, 4)}, RuntimeError, r"start must have shape \(3, 4\)"),
        ({"start": torch.full((3, 4), math.nan)}, ValueError, r"start must be finite"),
        ({"max_sweeps": 0}, ValueError, r"max_sweeps must be at least 1"),
        ({"tolerance": -1.0}, ValueError, r"tolerance must be at least 0"),
        ({"second_moment": torch.eye(23)}, RuntimeError, r"second_moment must have shape \(24, 24"),
        ({"second_moment": torch.randn(24, 24)}, ValueError, r"second_moment must be symmetric"),
        (
            {"second_moment": 2 * torch.ones(24, 24) - torch.eye(24)},
            ValueError,
            r"second_moment must be positive semidefinite",
        ),
        ({"sensitivity": -torch.ones(6)}, ValueError, r"sensitivity must be positive semidefinite"),
        ({"sensitivity": torch.ones(4)}, RuntimeError, r"sensitivity must have shape \(6, 6\) or"),
    ],
)
def test_errors_are_told(changes, error, message):
    with pytest.raises(error, match=f"tucker2: .*{message}"):
        tucker2(**changed(**changes))


def test_errors_of_the_surface_are_told():
    weight = torch.randn(6, 4, 2, 3)
    with pytest.raises(ValueError, match=r"tucker2_errors: input rank must be from 1 to 4 \(got"):
        tucker2_errors(weight, [2, 5])
    with pytest.raises(ValueError, match=r"tucker2_errors: sweeps must be at least 1"):
        tucker2_errors(weight, [2], sweeps=0)
    with pytest.raises(ValueError, match=r"tucker2_errors: second_moment must be finite"):
        tucker2_errors(weight, [2], second_moment=torch.full((24, 24), math.nan))
