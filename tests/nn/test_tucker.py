"""Tucker-2 layers: ranks, their uniform family, and how a weight is fitted."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sketchlayers import decompose
from sketchlayers.nn import TuckerConv2d
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn.factored.tucker import Ranks, tucker_weights, uniform_ranks


def test_factors_are_those_of_the_definition() -> None:
    layer = TuckerConv2d(6, 10, (3, 2), groups=2, ranks=(2, 4), dtype=torch.float64)
    us = layer.input.weight.reshape(2, 2, 3)
    core = layer.core.weight.reshape(2, 4, 2, 3, 2)
    ut = layer.output.weight.reshape(2, 5, 4)
    weight = torch.einsum("gta,gabhw,gbs->gtshw", ut, core, us).reshape(10, 3, 3, 2)
    torch.testing.assert_close(layer.weight, weight)
    assert [name for name, _ in layer.named_parameters()] == [
        "input.weight", "core.weight", "output.weight", "output.bias"
    ]  # fmt: skip
    assert TuckerConv2d(6, 10, 3, ranks=(2, None)).core.bias is not None
    assert TuckerConv2d(6, 10, 3, ranks=[None, 3]).ranks == (None, 3)


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3)
)
def test_uniform_ranks_are_a_staircase_of_growing_layers(
    inputs: int, outputs: int, height: int, width: int, groups: int
) -> None:
    geometry = Geometry(groups * inputs, groups * outputs, (height, width), groups=groups)
    ranks = uniform_ranks(geometry)
    sizes = [tucker_weights(geometry, pair) for pair in ranks]
    assert sizes == sorted(set(sizes))
    assert all(size < geometry.weights for size in sizes)
    full = [
        (inputs if first is None else first, outputs if second is None else second)
        for first, second in ranks
    ]
    assert full == sorted(full)
    taps = height * width
    for (first, second), (first_size, second_size) in zip(ranks, full, strict=True):
        # A whole side has no factor, and none is larger than the other side can make use of.
        assert first is None or 1 <= first <= min(inputs - 1, taps * second_size)
        assert second is None or 1 <= second <= min(outputs - 1, taps * first_size)


@pytest.mark.parametrize(("inputs", "outputs"), [(16, 16), (16, 24), (30, 18)])
def test_uniform_ranks_are_shares_of_both_sides(inputs: int, outputs: int) -> None:
    """All pairs that rounding a common share can give, as METHODS' quadratic equation has them."""
    geometry = Geometry(inputs, outputs, (3, 3))
    shares = [step / 20_000 for step in range(1, 20_000)]
    pairs = {(half_up(share * inputs), half_up(share * outputs)) for share in shares}
    expected = {
        pair
        for pair in pairs
        if min(pair) > 0 and tucker_weights(geometry, pair) < geometry.weights
    }
    assert set(uniform_ranks(geometry)) == expected
    # beta^2 S T h w + beta (S^2 + T^2) = rho S T h w for a rate of one half
    a, b = inputs * outputs * 9, inputs**2 + outputs**2
    beta = (-b + math.sqrt(b * b + 2 * a * a)) / (2 * a)
    conv = nn.Conv2d(inputs, outputs, 3, bias=False)
    first, second = TuckerConv2d.from_conv(conv, rate=0.5, init="random").ranks
    assert abs(first - beta * inputs) <= 1 and abs(second - beta * outputs) <= 1


def half_up(value: float) -> int:
    return math.floor(value + 0.5)


def test_layers_with_nothing_to_share() -> None:
    one_pixel = Geometry(12, 20, (1, 1))
    assert uniform_ranks(one_pixel) == [(None, rank) for rank in range(1, 8)]
    assert uniform_ranks(Geometry(1, 24, (3, 3)))[-1] == (None, 6)  # no factor of one channel
    assert uniform_ranks(Geometry(3, 1, (1, 1))) == []
    with pytest.raises(ValueError, match="would grow at any rank"):
        TuckerConv2d(3, 1, 1, rate=0.5)


@pytest.mark.parametrize("bias", [False, True])
def test_rate_takes_the_nearest_of_the_family(bias: bool) -> None:
    geometry = Geometry(10, 14, (3, 3))
    kept = 14 if bias else 0
    dense = geometry.weights + kept
    sizes = [tucker_weights(geometry, pair) + kept for pair in uniform_ranks(geometry)]
    for target in range(20, dense, 17):
        layer = TuckerConv2d(10, 14, 3, bias=bias, rate=target / dense, device="meta")
        own = sum(parameter.numel() for parameter in layer.parameters())
        assert abs(own - target) == min(abs(size - target) for size in sizes)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "exactly one of ranks and rate"),
        ({"ranks": (2, 2), "rate": 0.5}, ValueError, "exactly one of ranks and rate"),
        ({"ranks": (None, None)}, ValueError, "must not both be None"),
        ({"ranks": (7, 2)}, ValueError, "rank of the inputs must be at most the 6 channels"),
        ({"ranks": (2, 11)}, ValueError, "rank of the outputs must be at most the 10 channels"),
        ({"ranks": (0, 2)}, ValueError, "rank of the inputs must be at least 1"),
        ({"ranks": (2, 1.5)}, TypeError, "rank of the outputs must be an int"),
        ({"ranks": 3}, TypeError, "ranks must be two of int or None"),
        ({"ranks": (1, 2, 3)}, TypeError, "ranks must be two of int or None"),
        ({"rate": 0}, ValueError, r"rate must be in \(0, 1\]"),
        ({"rate": "half"}, TypeError, "rate must be a number"),
        ({"ranks": (2, 2), "groups": 4}, ValueError, "in_channels must be divisible by groups"),
        ({"ranks": (2, 2), "padding": "some"}, ValueError, "padding must be one of"),
        ({"ranks": (2, 2), "padding_mode": "mirror"}, ValueError, "padding_mode must be one of"),
        ({"ranks": (2, 2), "stride": 2, "padding": "same"}, ValueError, "stride must be 1 with"),
    ],
)
def test_wrong_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"TuckerConv2d: .*{message}"):
        TuckerConv2d(6, 10, 3, **arguments)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_full_rank_reproduces_the_layer(groups: int, weighted: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 12, 3, groups=groups, dtype=torch.float64)
    moment = second_moment(8 // groups * 9) if weighted else None
    image = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    sides = 8 // groups, 12 // groups
    for ranks in (sides, (None, sides[1]), (sides[0], None)):
        layer = TuckerConv2d.from_conv(conv, ranks, second_moment=moment)
        assert layer.fit_error < 1e-6
        torch.testing.assert_close(layer(image), conv(image), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("channels", "ranks", "is_exact"),
    [
        ((2, 20), (2, 20), True),
        ((2, 20), (None, 20), True),
        ((2, 20), (1, 12), False),
        ((20, 3), (20, 2), False),
    ],
)
def test_ranks_beyond_what_the_other_side_can_use(
    channels: tuple[int, int], ranks: Ranks, is_exact: bool
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(*channels, (3, 2), dtype=torch.float64)
    layer = TuckerConv2d.from_conv(conv, ranks)
    assert layer.ranks == ranks
    change = (layer.weight - conv.weight).norm() / conv.weight.norm()
    assert layer.fit_error == pytest.approx(change.item(), abs=1e-9)
    assert (layer.fit_error < 1e-9) == is_exact
    # All of it can be trained further.
    layer(torch.randn(1, conv.in_channels, 5, 5, dtype=torch.float64)).square().sum().backward()
    gradients = [part.weight.grad for part in layer.parts()]
    assert all(gradient.flatten(1).any(1).all() for gradient in gradients[:-1])


@pytest.mark.parametrize("ranks", [(3, 4), (3, None), (None, 4)])
def test_groups_are_fitted_one_by_one(ranks: Ranks) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(12, 16, 3, groups=2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        conv.weight[:8] *= 5
    moments = torch.stack([second_moment(54), second_moment(54)])
    layer = TuckerConv2d.from_conv(conv, ranks, second_moment=moments)
    square = reference = 0.0
    for group, weight in enumerate(conv.weight.detach().split(8)):
        one = nn.Conv2d(6, 8, 3, bias=False, dtype=torch.float64)
        one.weight.data.copy_(weight)
        alone = TuckerConv2d.from_conv(one, ranks, second_moment=moments[group])
        torch.testing.assert_close(layer.weight[8 * group : 8 * group + 8], alone.weight)
        matrix = weight.flatten(1)
        size = torch.trace(matrix @ moments[group] @ matrix.T).item()
        square += alone.fit_error**2 * size
        reference += size
    assert layer.fit_error == pytest.approx(math.sqrt(square / reference), rel=1e-9)


def test_a_low_rank_fit_is_the_global_optimum() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 12, 3, dtype=torch.float64)
    moment = second_moment(72)
    layer = TuckerConv2d.from_conv(conv, (None, 5), second_moment=moment)
    assert layer.fit_error == pytest.approx(
        decompose.svd_errors(conv.weight, second_moment=moment)[5].item(), rel=1e-9
    )
    # The joint step of Tucker-2 without an input factor is the same problem.
    same = decompose.tucker2(conv.weight.detach(), (None, 5), second_moment=moment)
    assert layer.fit_error == pytest.approx(same.relative_error, rel=1e-6)


def test_more_sweeps_are_not_worse() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(12, 16, 3)
    moment = second_moment(108)
    errors = [
        TuckerConv2d.from_conv(conv, (4, 5), second_moment=moment, max_sweeps=sweeps).fit_error
        for sweeps in (1, 3, 50)
    ]
    assert errors[0] > errors[1] >= errors[2]


def second_moment(size: int) -> torch.Tensor:
    root = torch.randn(size, 2 * size, dtype=torch.float64)
    root *= torch.logspace(0, -1.5, size, dtype=torch.float64)[torch.randperm(size), None]
    return root @ root.T / (2 * size)
