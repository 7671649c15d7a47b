"""CP layers: parts, ranks, and how a weight is fitted."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sketchlayers.nn import CPConv2d
from sketchlayers.nn._geometry import Geometry
from sketchlayers.nn.factored.cp import cp_weights


def test_factors_are_those_of_the_definition() -> None:
    layer = CPConv2d(6, 10, (3, 2), groups=2, rank=4, dtype=torch.float64)
    outputs = layer.output.weight.reshape(2, 5, 4)
    inputs = layer.input.weight.reshape(2, 4, 3)
    rows, columns = layer.rows.weight.reshape(2, 4, 3), layer.columns.weight.reshape(2, 4, 2)
    weight = torch.einsum("gtr,grs,gri,grj->gtsij", outputs, inputs, rows, columns)
    torch.testing.assert_close(layer.weight, weight.reshape(10, 3, 3, 2))
    assert sum(p.numel() for p in layer.parameters()) == 2 * 4 * (5 + 3 + 3 + 2) + 10


@pytest.mark.parametrize(
    ("kernel", "names"),
    [
        (3, ["input", "rows", "columns", "output"]),
        ((3, 1), ["input", "rows", "output"]),
        ((1, 3), ["input", "columns", "output"]),
        (1, ["input", "output"]),
    ],
)
def test_sides_of_length_one_have_no_factor(kernel: int | tuple, names: list[str]) -> None:
    layer = CPConv2d(6, 10, kernel, stride=2, rank=4)
    assert [name for name, _ in layer.named_children()] == names


def test_ranks_at_which_it_is_smaller() -> None:
    geometry = Geometry(12, 20, (3, 3), groups=2)
    ranks = geometry.shrinking_ranks(cp_weights(geometry, 1))
    assert ranks == range(1, 25)  # R (T + S + h + w) < T S h w
    assert cp_weights(geometry, 24) < geometry.weights <= cp_weights(geometry, 25)
    column = Geometry(1, 1, (3, 1))
    assert not column.shrinking_ranks(cp_weights(column, 1))
    layer = CPConv2d(12, 20, 3, groups=2, bias=False, rate=0.5)
    assert layer.rank == 12
    assert layer.rate == 2 * 12 * (10 + 6 + 3 + 3) / 1080


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "exactly one of rank and rate"),
        ({"rank": 2, "rate": 0.5}, ValueError, "exactly one of rank and rate"),
        ({"rank": 0}, ValueError, "rank must be at least 1"),
        ({"rank": (2, 2)}, TypeError, "rank must be an int"),
        ({"rank": 55}, ValueError, "rank must be at most 54, which is enough for every weight"),
        ({"rate": 1.5}, ValueError, r"rate must be in \(0, 1\]"),
        ({"rank": 2, "kernel_size": (1, 2, 3)}, ValueError, "kernel_size must be an int or two"),
        ({"rank": 2, "groups": 3}, ValueError, "out_channels must be divisible by groups"),
    ],
)
def test_wrong_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"CPConv2d: .*{message}"):
        CPConv2d(6, 10, **{"kernel_size": 3, **arguments})


@pytest.mark.parametrize("kernel", [(3, 3), (1, 3), (3, 1), (1, 1)])
@pytest.mark.parametrize("groups", [1, 2])
def test_full_rank_reproduces_the_layer(kernel: tuple[int, int], groups: int) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, kernel, groups=groups, dtype=torch.float64)
    # As many terms as the smaller side has entries always suffice.
    rank = min(6, 8) // groups * kernel[0] * kernel[1]
    layer = CPConv2d.from_conv(conv, rank)
    image = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(image), conv(image), rtol=1e-5, atol=1e-6)


def test_finds_a_weight_that_has_this_rank() -> None:
    torch.manual_seed(0)
    made = CPConv2d(10, 12, 3, rank=3, dtype=torch.float64)
    layer = CPConv2d.from_conv(made.fold(), 3, tolerance=1e-10, max_sweeps=1000)
    assert layer.fit_error < 1e-4
    torch.testing.assert_close(layer.weight, made.weight, rtol=1e-3, atol=1e-4)


def test_starts_follow_from_the_seed_and_more_are_not_worse() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(10, 12, 3)

    def error(**options: int) -> float:
        fitted = CPConv2d.from_conv(conv, 8, max_sweeps=80, **options).fit_error
        assert fitted is not None
        return fitted

    assert error(seed=4, starts=4) == error(seed=4, starts=4)
    assert len({error(seed=seed, starts=8) for seed in range(3)}) > 1
    assert error(starts=8) < error(starts=1)
