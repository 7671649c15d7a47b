"""Initial values: Kaiming's variance for every scale, and who decides the draw."""

import math

import pytest
import torch

from sketchlayers.nn import SKConv2d, SKLinear


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"num_sketches": 3},
        {"mixing": "channel", "num_sketches": 2},
        {"scale": "normalized", "num_sketches": 3},
        {"scale": 0.07, "mixing": "channel"},
        {"groups": 2, "frame": "signs"},
        {"frame": "signs", "scale": "normalized", "mixing": "channel"},
        {"blocks": 2},
        {"blocks": 2, "signs": "hadamard", "mixing": "channel", "num_sketches": 2},
    ],
)
def test_initial_variance_is_kaimings(arguments):
    """The mean of squares over independent layers is 2 / n, within 5 standard errors."""
    torch.manual_seed(0)
    n = 6 // arguments.get("groups", 1) * 6
    squares = torch.stack(
        [
            SKConv2d(6, 8, (3, 2), **{"rank": 1, **arguments}).weight.detach().square().mean()
            for _ in range(600)
        ]
    )
    error = squares.std() / math.sqrt(len(squares))
    assert abs(squares.mean() - 2 / n) < 5 * error
    assert 5 * error < 0.25 * 2 / n  # else a wrong scale could pass


def test_bias_is_drawn_as_the_dense_layer_draws_it():
    conv = SKConv2d(8, 4000, 3, groups=2, rank=1)
    linear = SKLinear(25, 4000, rank=1)
    for bias, n in ((conv.bias, 4 * 9), (linear.bias, 25)):
        assert bias.abs().max() <= 1 / math.sqrt(n)
        # A uniform variable on [-b, b] has variance b^2 / 3 and fourth moment b^4 / 5.
        error = math.sqrt((1 / 5 - 1 / 9) / 4000) / n
        assert abs(bias.detach().square().mean() - 1 / (3 * n)) < 5 * error


def test_the_default_generator_decides_everything():
    layers = []
    for _ in range(2):
        torch.manual_seed(42)
        layers.append([SKConv2d(8, 8, 3, rank=2), SKConv2d(8, 8, 3, rank=2)])
    (first, second), (again, _) = layers
    for name, tensor in [*first.named_parameters(), *first.named_buffers()]:
        assert torch.equal(tensor, again.get_parameter(name) if name in {"s1", "s2", "bias"}
                           else again.get_buffer(name))  # fmt: skip
    assert first._seed != second._seed
    assert not torch.equal(first.u1, second.u1)
    assert not torch.equal(first.u2, second.u2)


def test_a_seed_decides_the_signs_and_nothing_else():
    first, second = SKLinear(20, 30, rank=3, seed=5), SKLinear(20, 30, rank=3, seed=5)
    assert torch.equal(first.u1, second.u1)
    assert torch.equal(first.u2, second.u2)
    assert not torch.equal(first.s1, second.s1)
    assert not torch.equal(first.u1, SKLinear(20, 30, rank=3, seed=6).u1)


def test_both_halves_and_all_groups_have_their_own_signs():
    u1, u2 = SKConv2d(32, 32, 1, groups=2, rank=8, num_sketches=2).sketch_matrices()
    matrices = [*u1.flatten(0, 1), *u2.flatten(0, 1)]
    for i, first in enumerate(matrices):
        assert all(not torch.equal(first, second) for second in matrices[i + 1 :])
