"""Rounded weights: the numbers that there are, the error in the norm of the outputs, bad input."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from sketchlayers.decompose import rounded
from sketchlayers.decompose._integers import largest_integer, nearest_integers, step_of
from sketchlayers.decompose.rounding import Rounded

from .layers import FLOAT, Layer

EVERY = range(2, 17)


def allowed(bits: int) -> Tensor:
    """All numbers of so many bits."""
    most = 2**bits - 1 if bits < 8 else 2 ** (bits - 1) - 1
    return torch.arange(-most, most + 1, 2 if bits < 8 else 1, **FLOAT)


def square(weight: Tensor, made: Tensor, moment: Tensor) -> float:
    """``tr(D S D^T)``."""
    change = (weight - made).double().flatten(1)
    return float((change @ moment * change).sum())


def spread(made: Rounded) -> Tensor:
    """The scale of every entry, as a matrix."""
    integers = made.integers.flatten(1)
    each = made.scale.repeat_interleave(integers.shape[1] // made.scale.shape[1], 1)
    return each.expand(integers.shape)


def assert_sound(made: Rounded, bits: int, weight: Tensor) -> None:
    """Numbers that there are, times scales that bfloat16 holds, make the weight."""
    assert made.weight.shape == made.integers.shape == weight.shape
    assert made.weight.dtype == made.scale.dtype == torch.float64
    assert bool(torch.isin(made.integers, allowed(bits)).all())
    assert torch.equal(made.scale.bfloat16().double(), made.scale)
    assert bool((made.scale >= 0).all())
    product = made.integers.flatten(1) * spread(made)
    assert torch.equal(product, made.weight.flatten(1))


def nearest(weight: Tensor, bits: int) -> Tensor:
    """Every number the nearest one, with the scales that reach the largest entries."""
    rows = weight.flatten(1)
    scale = rows.abs().amax(1, keepdim=True) / largest_integer(bits)
    return (nearest_integers(rows / scale, bits) * scale).reshape(weight.shape)


# ------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("bits", EVERY)
def test_as_many_numbers_as_bits_tell_apart(bits: int) -> None:
    numbers = allowed(bits)
    assert largest_integer(bits) == numbers[-1] and step_of(bits) == numbers[1] - numbers[0]
    assert len(numbers) in (2**bits, 2**bits - 1)
    assert torch.equal(nearest_integers(numbers, bits), numbers)
    beyond = torch.tensor([-1e9, 1e9], **FLOAT)
    assert nearest_integers(beyond, bits).tolist() == [float(numbers[0]), float(numbers[-1])]
    between = torch.linspace(float(numbers[0]) - 1, float(numbers[-1]) + 1, 501, **FLOAT)
    found = nearest_integers(between, bits)
    assert bool(torch.isin(found, numbers).all())
    assert float((found - between).abs().max()) <= 1 + 1e-9


@pytest.mark.parametrize("bits", EVERY)
@pytest.mark.parametrize("with_moment", [False, True])
def test_numbers_scales_and_their_product(bits: int, with_moment: bool) -> None:
    layer = Layer((6, 5, 3))
    made = rounded(layer.weight, bits, second_moment=layer.second_moment if with_moment else None)
    assert made.scale.shape == (6, 1)
    assert_sound(made, bits, layer.weight)


@pytest.mark.parametrize(
    "shape", [(4, 6), (4, 6, 3), (4, 3, 2, 2), (4, 2, 2, 1, 3), (1, 1), (3, 1)]
)
def test_weights_of_all_dimensions(shape: tuple[int, ...]) -> None:
    layer = Layer(shape, 40)
    assert_sound(rounded(layer.weight, 3, second_moment=layer.second_moment), 3, layer.weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("moment_dtype", [torch.float32, torch.float64])
def test_types(dtype: torch.dtype, moment_dtype: torch.dtype) -> None:
    layer = Layer((6, 12))
    weight = layer.weight.to(dtype).requires_grad_()
    made = rounded(weight, 4, second_moment=layer.second_moment.to(moment_dtype))
    assert_sound(made, 4, weight)
    assert not made.weight.requires_grad and not made.scale.requires_grad
    expected = rounded(weight.detach().double(), 4, second_moment=layer.second_moment)
    error = square(weight.detach(), made.weight, layer.second_moment)
    assert error <= 1.05 * square(weight.detach(), expected.weight, layer.second_moment)


def test_nothing_that_is_given_changes() -> None:
    layer = Layer((6, 12))
    weight, moment = layer.weight.clone(), layer.second_moment
    kept = moment.clone()
    first = rounded(weight, 3, second_moment=moment, groups=3)
    assert torch.equal(weight, layer.weight) and torch.equal(moment, kept)
    again = rounded(weight, 3, second_moment=moment, groups=3)
    for one, other in zip(first[:3], again[:3], strict=True):
        assert torch.equal(one, other)


# -------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("bits", range(2, 11))
def test_the_error_is_not_above_that_of_the_nearest_numbers(bits: int) -> None:
    for seed in range(2):
        layer = Layer((8, 6, 2, 2), seed=seed)
        moment = layer.second_moment
        made = rounded(layer.weight, bits, second_moment=moment)
        plain = square(layer.weight, nearest(layer.weight, bits), moment)
        alone = square(layer.weight, rounded(layer.weight, bits).weight, moment)
        share = 0.7 if bits in (3, 4) else 1.0
        error = square(layer.weight, made.weight, moment)
        assert error <= share * plain and error <= share * alone


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_each_bit_halves_the_error_about(bits: int) -> None:
    layer = Layer((16, 24))
    errors = [
        square(
            layer.weight,
            rounded(layer.weight, b, second_moment=layer.second_moment).weight,
            layer.second_moment,
        )
        for b in (bits, bits + 2)
    ]
    assert errors[1] < errors[0] / (1.5 if bits == 6 else 4)  # from 7 bits to 8 the numbers change


@pytest.mark.parametrize("seed", range(4))
def test_tiny_matrices_against_all_combinations(seed: int) -> None:
    """Of three inputs and 2 bits, with the scale that was found."""
    layer = Layer((5, 3), 30, seed=seed)
    moment = layer.second_moment
    made = rounded(layer.weight, 2, second_moment=moment)
    every = torch.tensor(list(itertools.product((-3, -1, 1, 3), repeat=3)), **FLOAT)
    found = best = 0.0
    for row, scale, mine in zip(layer.weight, made.scale, made.weight, strict=True):
        changes = row - every * scale
        best += float((changes @ moment * changes).sum(1).min())
        found += square(row[None], mine[None], moment)
    assert best <= found <= 1.05 * best


def test_each_number_is_the_best_given_all_others() -> None:
    layer = Layer((6, 8))
    moment = layer.second_moment
    damped = moment + 1e-3 * float(moment.diagonal().mean()) * torch.eye(8, **FLOAT)
    made = rounded(layer.weight, 3, second_moment=moment)
    error = square(layer.weight, made.weight, damped)
    better = 0
    for i, j in itertools.product(range(6), range(8)):
        for step in (-2, 2):
            number = float(made.integers[i, j]) + step
            if abs(number) <= 7:
                other = made.weight.clone()
                other[i, j] = number * made.scale[i, 0]
                better += square(layer.weight, other, damped) < (1 - 1e-9) * error
    assert better <= 4  # it stops after two passes


def test_the_identity_takes_the_nearest_numbers() -> None:
    layer = Layer((6, 8))
    made = rounded(layer.weight, 4)
    expected = nearest_integers(layer.weight / made.scale, 4)
    assert torch.equal(made.integers, expected)
    given = rounded(layer.weight, 4, second_moment=torch.eye(8, **FLOAT))
    error, other = ((layer.weight - one.weight).norm() for one in (made, given))
    assert other == pytest.approx(float(error), rel=0.05)


def test_its_unit_does_not_matter() -> None:
    layer = Layer((6, 8))
    one = rounded(layer.weight, 3, second_moment=layer.second_moment)
    for factor in (2.0**-30, 2.0**30):
        other = rounded(layer.weight, 3, second_moment=factor * layer.second_moment)
        assert torch.equal(one.integers, other.integers) and torch.equal(one.scale, other.scale)
        scaled = rounded(factor * layer.weight, 3, second_moment=layer.second_moment)
        assert torch.equal(scaled.weight, factor * one.weight)


def test_rows_do_not_depend_on_each_other() -> None:
    layer = Layer((6, 8))
    whole = rounded(layer.weight, 3, second_moment=layer.second_moment)
    alone = rounded(layer.weight[2:3], 3, second_moment=layer.second_moment)
    torch.testing.assert_close(whole.weight[2:3], alone.weight)


def test_weights_that_few_bits_hold_stay() -> None:
    numbers = allowed(4)[torch.randint(16, (5, 12))]
    numbers[:, 0] = 15
    weight = 0.375 * numbers
    made = rounded(weight, 4)
    assert torch.equal(made.weight, weight) and torch.equal(made.scale, torch.full((5, 1), 0.375))
    moment = Layer((5, 12)).second_moment
    torch.testing.assert_close(rounded(weight, 4, second_moment=moment).weight, weight)


def test_many_inputs() -> None:
    """More than are passed on together."""
    layer = Layer((4, 300), 400)
    moment = layer.second_moment
    made = rounded(layer.weight, 4, second_moment=moment)
    assert_sound(made, 4, layer.weight)
    alone = square(layer.weight, rounded(layer.weight, 4).weight, moment)
    assert square(layer.weight, made.weight, moment) < 0.7 * alone


# ----------------------------------------------------------------------------- groups and scales


@pytest.mark.parametrize("with_moment", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4, 12])
def test_groups_have_scales_of_their_own(groups: int, with_moment: bool) -> None:
    layer = Layer((6, 12))
    moment = layer.second_moment if with_moment else None
    made = rounded(layer.weight, 3, second_moment=moment, groups=groups)
    assert made.scale.shape == (6, groups)
    assert_sound(made, 3, layer.weight)
    if not with_moment and groups > 1:
        change = (layer.weight - made.weight).norm()
        assert change < (layer.weight - rounded(layer.weight, 3).weight).norm()
    plain = square(layer.weight, nearest(layer.weight, 3), layer.second_moment)
    if with_moment:
        assert square(layer.weight, made.weight, layer.second_moment) < plain


@pytest.mark.parametrize("with_moment", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_one_scale_for_all_outputs(groups: int, with_moment: bool) -> None:
    layer = Layer((6, 12))
    moment = layer.second_moment if with_moment else None
    made = rounded(layer.weight, 8, second_moment=moment, groups=groups, one_scale=True)
    assert made.scale.shape == (1, groups)
    assert_sound(made, 8, layer.weight)
    assert (layer.weight - made.weight).norm() < 0.05 * layer.weight.norm()


# --------------------------------------------------------------------------------- special cases


@pytest.mark.parametrize("with_moment", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_zero_rows_and_groups_stay_zero(bits: int, with_moment: bool) -> None:
    layer = Layer((6, 12))
    layer.weight[1] = 0
    layer.weight[3, :4] = 0
    moment = layer.second_moment if with_moment else None
    made = rounded(layer.weight, bits, second_moment=moment, groups=3)
    assert_sound(made, bits, layer.weight)
    assert not made.weight[1].any() and not made.weight[3, :4].any()
    assert not made.scale[1].any() and made.scale[3, 0] == 0 and bool((made.scale[0] > 0).all())
    nothing = rounded(torch.zeros(3, 12), bits, second_moment=moment)
    assert not nothing.weight.any() and not nothing.scale.any()


def test_without_input_the_numbers_are_the_nearest() -> None:
    layer = Layer((6, 12))
    made = rounded(layer.weight, 4, second_moment=torch.zeros(12, 12))
    alone = rounded(layer.weight, 4)
    assert torch.equal(made.weight, alone.weight) and torch.equal(made.scale, alone.scale)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_fewer_patches_than_inputs(samples: int, bits: int) -> None:
    layer = Layer((6, 12), samples)
    moment = layer.second_moment
    made = rounded(layer.weight, bits, second_moment=moment)
    assert_sound(made, bits, layer.weight)
    alone = rounded(layer.weight, bits).weight
    assert square(layer.weight, made.weight, moment) < 0.5 * square(layer.weight, alone, moment)
    assert (layer.weight - made.weight).norm() < 6 * (layer.weight - alone).norm()


def test_inputs_that_are_always_zero_are_rounded_too() -> None:
    layer = Layer((6, 12))
    moment = layer.second_moment
    moment[[2, 5]] = 0
    moment[:, [2, 5]] = 0
    made = rounded(layer.weight, 4, second_moment=moment)
    assert_sound(made, 4, layer.weight)
    largest = layer.weight.abs().amax(1) / 15
    change = (layer.weight - made.weight)[:, [2, 5]].abs()
    assert bool((change <= 2 * largest[:, None]).all())


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_tiny_and_huge_weights(size: float) -> None:
    layer = Layer((6, 12))
    weight = size * layer.weight
    made = rounded(weight, 8, second_moment=layer.second_moment)
    assert_sound(made, 8, weight)
    assert (weight - made.weight).norm() < 0.05 * weight.norm()


# ------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"bits": 1}, ValueError, r"bits must be from 2 to 16 \(got bits=1\)"),
        ({"bits": 17}, ValueError, r"bits must be from 2 to 16 \(got bits=17\)"),
        ({"bits": -4}, ValueError, r"bits must be from 2 to 16"),
        ({"groups": 5}, ValueError, r"groups must divide the 12 inputs \(got groups=5\)"),
        ({"groups": 0}, ValueError, r"groups must divide the 12 inputs"),
        ({"groups": -3}, ValueError, r"groups must divide the 12 inputs"),
        ({"groups": 24}, ValueError, r"groups must divide the 12 inputs"),
        ({"weight": torch.ones(5)}, RuntimeError, r"weight must have 2 or 3 or 4 or 5 dimensions"),
        ({"weight": torch.ones(0, 12)}, RuntimeError, r"weight must have .* none of size 0"),
        ({"weight": torch.ones(1, 1, 1, 1, 1, 12)}, RuntimeError, r"weight must have 2 or 3"),
        ({"weight": torch.full((5, 12), math.nan)}, ValueError, r"weight must be finite"),
        ({"weight": torch.full((5, 12), math.inf)}, ValueError, r"weight must be finite"),
        ({"weight": torch.ones(5, 12).long()}, TypeError, r"weight must be real floating point"),
        ({"weight": torch.ones(5, 12) + 0j}, TypeError, r"weight must be real floating point"),
        ({"second_moment": torch.eye(11)}, RuntimeError, r"second_moment must have shape \(12, 12"),
        ({"second_moment": torch.ones(12)}, RuntimeError, r"second_moment must have shape"),
        ({"second_moment": torch.eye(12).long()}, TypeError, r"second_moment must be real float"),
        ({"second_moment": torch.full((12, 12), math.nan)}, ValueError, r"second_moment must be f"),
        ({"second_moment": torch.randn(12, 12)}, ValueError, r"second_moment must be symmetric"),
        ({"second_moment": -torch.eye(12)}, ValueError, r"second_moment must be positive semidef"),
    ],
)
def test_errors_are_told(changes: dict[str, object], error: type[Exception], message: str) -> None:
    arguments: dict[str, object] = {
        "weight": torch.ones(5, 12),
        "bits": 4,
        "second_moment": torch.eye(12),
        **changes,
    }
    with pytest.raises(error, match=f"rounded: {message}"):
        rounded(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", [12, 14, 16])
def test_many_bits_are_nearer_than_the_nearest_numbers_of_a_scale_that_reaches_all(
    bits: int,
) -> None:
    most = 2 ** (bits - 1) - 1
    for seed in range(2):
        layer = Layer((8, 24), seed=seed)
        full = layer.weight.abs().amax(1, keepdim=True) / most
        scale = (full * (1 + 2**-8)).bfloat16().double()
        nearest = (layer.weight / scale).round().clamp(-most, most) * scale
        made = rounded(layer.weight, bits, second_moment=layer.second_moment)
        found = square(layer.weight, made.weight, layer.second_moment)
        assert found <= square(layer.weight, nearest, layer.second_moment)
