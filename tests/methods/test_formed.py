"""HashedNets, FreshNets, dictionaries and vertical-horizontal filters as methods."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import sketchlayers
from sketchlayers import methods
from sketchlayers.methods import Method
from sketchlayers.nn import (
    DictionaryConv2d,
    DictionaryLinear,
    FreshConv2d,
    HashedConv2d,
    HashedLinear,
    LowRankConv2d,
    LowRankLinear,
)

METHODS = [
    methods.HashedNet(),
    methods.FreshNet(),
    methods.Dictionary(num_columns=4),
    methods.LowRank(),
]
BECOMES = {
    "hashednet": (HashedConv2d, HashedLinear),
    "freshnet": (FreshConv2d, HashedLinear),
    "dictionary": (DictionaryConv2d, DictionaryLinear),
    "lowrank": (LowRankConv2d, LowRankLinear),
}


def layers() -> list[tuple[nn.Module, tuple[int, ...]]]:
    return [
        (nn.Conv2d(12, 20, 3, stride=2, padding=1), (2, 12, 9, 9)),
        (nn.Conv2d(12, 24, (3, 2), groups=3, bias=False), (2, 12, 9, 9)),
        (nn.Conv2d(12, 20, 1, stride=2), (12, 9, 9)),
        (nn.Linear(30, 44), (2, 3, 30)),
        (nn.Linear(64, 7, bias=False).eval(), (5, 64)),
    ]


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("index", range(5))
@torch.no_grad()
def test_sizes_are_those_of_the_layers_built(method: Method, index: int) -> None:
    layer, shape = layers()[index]
    assert method.refusal(layer) is None
    ranks = method.ranks(layer)
    sizes = [method.parameters(layer, rank) for rank in ranks]
    assert sizes == sorted(set(sizes)) and sizes[-1] < size(layer)
    for rank in (ranks[0], ranks[len(ranks) // 2], ranks[-1]):
        built = method.build(layer, rank, init="random", seed=0)
        assert type(built) is BECOMES[method.name][isinstance(layer, nn.Linear)]
        assert built.training == layer.training
        assert size(built) == method.parameters(layer, rank)
        assert built.multiply_adds(shape) == method.multiply_adds(layer, rank, shape)
    for wrong in (lambda: method.parameters(layer, (2, 3)), lambda: method.ranks(nn.ReLU())):
        with pytest.raises((TypeError, AttributeError)):
            wrong()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_which_layers_they_take(method: Method) -> None:
    assert "is not a layer that" in method.refusal(nn.Conv1d(8, 8, 3))
    depthwise = nn.Conv2d(8, 16, 3, groups=8)
    assert (method.refusal(depthwise) is None) == (method.name != "lowrank")
    wide = nn.Conv2d(3, 8, 17)
    assert (method.refusal(wide) is None) == (method.name != "freshnet")
    assert not method.ranks(nn.Conv2d(1, 1, 1))


def test_which_kernel_a_dictionary_has() -> None:
    moment = torch.eye(12)

    def kernel(layer: nn.Module, **options: object) -> str:
        return methods.Dictionary().build(layer, 3, init="fit", seed=0, **options).kernel

    assert kernel(nn.Conv2d(12, 8, 1)) == "covariance"
    assert kernel(nn.Conv2d(12, 8, 1), second_moment=moment) == "covariance"
    assert kernel(nn.Linear(12, 8), second_moment=moment) == "covariance"
    assert kernel(nn.Conv2d(3, 8, 2), second_moment=moment) == "spatial"
    columns = methods.Dictionary(num_columns=4)
    assert columns.build(nn.Linear(12, 8), 3, init="random", seed=0).num_columns == 4
    assert columns.build(nn.Linear(12, 10), 3, init="random", seed=0).num_columns == 2


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_curves_fall_to_what_is_built(method: Method) -> None:
    layer = nn.Conv2d(12, 20, 3)
    samples = torch.randn(300, 108) @ torch.randn(108, 108)
    moment = (samples.T @ samples / 300).double()
    curve = method.curve(layer, second_moment=moment)
    assert [one.parameters for one in curve] == sorted(one.parameters for one in curve)
    errors = [one.squared_error for one in curve]
    assert errors == sorted(errors, reverse=True) and errors[0] <= 1 + 1e-9
    last = curve[-1]
    built = method.build(layer, last.rank, init="fit", seed=0, second_moment=moment)
    assert built.fit_error**2 == pytest.approx(last.squared_error, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("name", list(BECOMES))
@pytest.mark.parametrize("calibrated", [False, True])
def test_a_whole_network(name: str, calibrated: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(),
        nn.Conv2d(32, 32, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval()  # fmt: skip
    images = [torch.randn(20, 3, 12, 12) for _ in range(5)]
    before = [parameter.clone() for parameter in network.parameters()]
    given = {"calibration": images} if calibrated else {"init": "random"}
    result = sketchlayers.compress(network, rate=0.5, method=name, seed=1, **given)
    assert all(torch.equal(*pair) for pair in zip(before, network.parameters(), strict=True))
    assert result.report.rate == pytest.approx(0.5, abs=0.02)
    kinds = BECOMES[name]
    assert isinstance(result.model[2], kinds[0])
    if not calibrated:  # else it may have chosen to leave the small last layer alone
        assert isinstance(result.model[8], kinds[1])
    value = images[0]
    folded = sketchlayers.fold(result.model)
    torch.testing.assert_close(folded(value), result.model(value), rtol=1e-4, atol=1e-4)
    result.model.train()(value).square().sum().backward()
    assert all(p.grad is not None for p in result.model.parameters())


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("freshnet", {"alpha": -1.0}, ValueError, "FreshNet: alpha must be finite and above"),
        ("dictionary", {"kernel": "x"}, ValueError, "Dictionary: kernel must be one of"),
        ("dictionary", {"num_columns": 0}, ValueError, "Dictionary: num_columns must be at least"),
        ("hashednet", {"seed": 1}, TypeError, "method 'hashednet' has no option 'seed'"),
    ],
)
def test_wrong_options(name: str, options: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        methods.get(name, **options)
